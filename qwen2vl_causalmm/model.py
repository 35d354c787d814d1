"""Qwen2-VL with counterfactual branches: the patched upstream class plus `causalmm=`."""

from causalmm.decoding.generation import CounterfactualGeneration
from causalmm.decoding.plan import Towers
from qwen2vl_causalmm import modeling_qwen2_vl


class Qwen2VLForConditionalGeneration(
    CounterfactualGeneration, modeling_qwen2_vl.Qwen2VLForConditionalGeneration
):
    """Upstream's class of this name; `generate` and `forward` also take `causalmm`."""

    def causalmm_towers(self) -> Towers:
        if "sliding_attention" in self.config.text_config.layer_types:
            raise ValueError("causalmm does not support sliding-window attention layers")
        return Towers(
            vision_layers=self.config.vision_config.depth,
            language_layers=self.config.text_config.num_hidden_layers,
            language_heads=self.config.text_config.num_attention_heads,
        )
