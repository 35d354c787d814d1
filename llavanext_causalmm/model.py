"""LLaVA-NeXT with counterfactual branches: the patched upstream class plus `causalmm=`."""

from causalmm.decoding.generation import CounterfactualGeneration, patched
from causalmm.decoding.plan import Towers
from llava_causalmm.modeling_clip import CLIPVisionModel
from llava_causalmm.modeling_llama import LlamaModel
from llava_causalmm.towers import count_layers
from llavanext_causalmm import modeling_llava_next
from llavanext_causalmm.modeling_mistral import MistralModel


class LlavaNextForConditionalGeneration(
    CounterfactualGeneration, modeling_llava_next.LlavaNextForConditionalGeneration
):
    """Upstream's class of this name; `generate` and `forward` also take `causalmm`."""

    def causalmm_towers(self) -> Towers:
        patched(self.model.vision_tower, CLIPVisionModel)
        patched(self.model.language_model, LlamaModel, MistralModel)
        if getattr(self.config.text_config, "sliding_window", None) is not None:
            raise ValueError("causalmm does not support sliding-window attention layers")
        return count_layers(self.config)
