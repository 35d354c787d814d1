"""Qwen3-VL with counterfactual branches: the patched upstream class plus `causalmm=`."""

from causalmm.decoding.generation import CounterfactualGeneration
from causalmm.decoding.plan import Towers
from qwen3vl_causalmm import modeling_qwen3_vl


class Qwen3VLForConditionalGeneration(
    CounterfactualGeneration, modeling_qwen3_vl.Qwen3VLForConditionalGeneration
):
    """Upstream's class of this name; `generate` and `forward` also take `causalmm`."""

    def causalmm_towers(self) -> Towers:
        return Towers(
            # The last layer's features are read too, so every layer reaches the text.
            vision_layers=self.config.vision_config.depth,
            language_layers=self.config.text_config.num_hidden_layers,
            language_heads=self.config.text_config.num_attention_heads,
        )
