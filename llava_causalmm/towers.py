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


def check_features(config: Any, layer: int | list[int], strategy: str) -> None:
    """Raise ValueError where a call selects other image features than the configuration says.

    A plan is made for those of the configuration: with others an edit might not reach them.
    """
    asked = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    for name, value in asked.items():
        if value != (configured := getattr(config, name)):
            raise ValueError(
                f"{name}={value!r}: causalmm edits what the model's configuration selects, "
                f"{configured!r}; change it there (model.config.{name}) instead of in a call"
            )
