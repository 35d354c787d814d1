"""The towers of the patched LLaVA: which classes build them, and what an edit of them can reach."""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers.models.auto import AutoModel

from causalmm.decoding.plan import Towers
from llava_causalmm.modeling_clip import CLIPVisionModel
from llava_causalmm.modeling_llama import LlamaModel


class PatchedAutoModel:
    """Stands where upstream builds its towers with `AutoModel`: CLIP and Llama are ours, the rest
    upstream's."""

    patched: ClassVar[Mapping[str, type]] = {
        "clip_vision_model": CLIPVisionModel,
        "llama": LlamaModel,
    }

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """The tower of a configuration, patched where we have it."""
        if (patched := cls.patched.get(config.model_type)) is not None:
            return patched._from_config(config, **kwargs)
        return AutoModel.from_config(config, **kwargs)


def count_layers(config: Any) -> Towers:
    """The layers of either tower that an edit can reach, by the configuration of a model that reads
    CLIP's hidden states."""
    selected = config.vision_feature_layer
    indices = [selected] if isinstance(selected, int) else list(selected)
    # hidden_states holds the input of layer 0 and then each layer's output, so index i is
    # computed by layers 0 to i - 1.
    states = config.vision_config.num_hidden_layers + 1
    reached = [index % states for index in indices]
    return Towers(
        vision_layers=max(reached),
        language_layers=config.text_config.num_hidden_layers,
        language_heads=config.text_config.num_attention_heads,
        vision_entry=max(0, min(reached) - 1) if len(reached) > 1 else None,
        features_site=isinstance(selected, int)
        and config.vision_feature_select_strategy == "default",
    )


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
