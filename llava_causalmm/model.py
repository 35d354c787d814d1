"""LLaVA-1.5 with counterfactual branches: the patched upstream class plus `causalmm=`."""

from typing import Any

from causalmm.decoding.generation import CounterfactualGeneration, patched
from causalmm.decoding.model_type import HUB_OPTIONS
from causalmm.decoding.plan import Towers
from llava_causalmm import modeling_llava
from llava_causalmm.authors.config import read_settings
from llava_causalmm.authors.model import AuthorsFormat
from llava_causalmm.modeling_clip import CLIPVisionModel
from llava_causalmm.modeling_llama import LlamaModel
from llava_causalmm.towers import count_layers


class LlavaForConditionalGeneration(
    CounterfactualGeneration, modeling_llava.LlavaForConditionalGeneration
):
    """Upstream's class of this name; `generate` and `forward` also take `causalmm`."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Upstream's `from_pretrained`, which also loads checkpoints of the authors' format."""
        source, loader = pretrained_model_name_or_path, super()
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        if source is not None and read_settings(source, **hub) is not None:
            loader = AuthorsLlava
        return loader.from_pretrained(source, *model_args, **kwargs)

    def causalmm_towers(self) -> Towers:
        patched(self.model.vision_tower, CLIPVisionModel)
        patched(self.model.language_model, LlamaModel)
        return count_layers(self.config)


class AuthorsLlava(AuthorsFormat, LlavaForConditionalGeneration):
    """A checkpoint of the authors' format."""


# The name that `save_pretrained` writes as the architecture.
AuthorsLlava.__name__ = LlavaForConditionalGeneration.__name__
