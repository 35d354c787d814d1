"""Which class builds a tower of the patched LLaVA: CLIP and Llama are ours, the rest upstream's."""

from typing import Any

from transformers.models.auto import AutoModel

from llava_causalmm.modeling_clip import CLIPVisionModel
from llava_causalmm.modeling_llama import LlamaModel

_PATCHED = {"clip_vision_model": CLIPVisionModel, "llama": LlamaModel}


class PatchedAutoModel:
    """Stands where upstream builds its towers with `AutoModel`."""

    @staticmethod
    def from_config(config: Any, **kwargs: Any) -> Any:
        """The tower of a configuration, patched where we have it."""
        if (patched := _PATCHED.get(config.model_type)) is not None:
            return patched._from_config(config, **kwargs)
        return AutoModel.from_config(config, **kwargs)
