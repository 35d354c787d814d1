"""From the config.json of LLaVA's authors to a `LlavaConfig`.

Every setting that changes what the model computes is mapped or refused; those that only the
authors' training read are left out. What their older files leave unsaid has `LlamaConfig`'s
default, as in their own code. Held by tests/families/test_authors_format.py.
"""

from collections.abc import Mapping
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedConfig

from causalmm.errors import RequestError, first_line

PADDED = {"pad": True, "square": False, None: False}
"""`image_aspect_ratio`, and whether images are padded to a square."""

_PROJECTOR = {"linear": "linear", "mlp2x_gelu": "gelu"}
_FEATURES = {"patch": "default", "cls_patch": "full"}
_OTHER_MODELS = {
    # Any other value changes the prompt, the features or the weights.
    "mm_patch_merge_type": ("flat", None),
    "mm_resampler_type": (None,),
    "mm_use_im_start_end": (False, None),
    "s2": (False, None),
    "quantization_config": (None,),
    "model_type": ("llava", "llava_llama"),
}
_LLAVA_NEXT = ("spatial_unpad", "anyres", "llava_mistral")
"""Values of LLaVA-1.6 among them."""
_LLAMA = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings"),
    *("initializer_range", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("attention_bias", "attention_dropout", "mlp_bias", "tie_word_embeddings"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)


def is_authors_format(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json is of the authors' format, in which the language model comes first."""
    kind = settings.get("model_type")
    return kind in ("llava_llama", "llava_mistral") or (
        kind == "llava" and "mm_vision_tower" in settings and "text_config" not in settings
    )


def read_settings(source: str, **hub: Any) -> dict[str, Any] | None:
    """The config.json of a folder or hub id of the authors' format; None for any other.

    `hub` are options of `HUB_OPTIONS`.
    """
    try:
        settings, _ = PreTrainedConfig.get_config_dict(source, **hub)
    except OSError:
        return None  # Whoever reads it next says better what is wrong.
    return settings if is_authors_format(settings) else None


class AuthorsConfig(LlavaConfig):
    """`LlavaConfig` as read from the authors' config.json."""

    @classmethod
    def from_pretrained(cls, source: str, **hub: Any) -> LlavaConfig:
        """The configuration of a folder or hub id. Raises RequestError as `convert` does."""
        settings = read_settings(source, **hub)
        if settings is None:
            raise RequestError(f"{source} is not a LLaVA checkpoint in its authors' format")
        return convert(settings, read_tower_config(settings, **hub))


def convert(settings: Mapping[str, Any], vision: CLIPVisionConfig) -> LlavaConfig:
    """The authors' settings and their tower's configuration as one `LlavaConfig`.

    The image token is the id after the last word, so `vocab_size` is one more than theirs.
    Raises RequestError for a setting that LLaVA-1.5 does not have.
    """
    check(settings)
    layer = settings.get("mm_vision_select_layer")
    states = vision.num_hidden_layers + 1
    if type(layer) is not int or not -states <= layer < states:
        raise RequestError(
            f"mm_vision_select_layer is {layer!r}: expected one of the vision tower's {states} "
            "hidden states"
        )
    known = {name: settings[name] for name in _LLAMA if name in settings}
    words = settings.get("vocab_size", LlamaConfig().vocab_size)
    text = LlamaConfig(vocab_size=words + 1, **known)
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act=_PROJECTOR[settings.get("mm_projector_type", "linear")],
        vision_feature_layer=layer,
        vision_feature_select_strategy=_FEATURES[settings.get("mm_vision_select_feature", "patch")],
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=settings.get("dtype", settings.get("torch_dtype")),
    )


def check(settings: Mapping[str, Any]) -> None:
    """Raise RequestError, a sentence, for settings that LLaVA-1.5 does not have."""
    allowed = _OTHER_MODELS | {
        "mm_projector_type": tuple(_PROJECTOR),
        "mm_vision_select_feature": tuple(_FEATURES),
        "image_aspect_ratio": tuple(PADDED),
    }
    for name, values in allowed.items():
        if name in settings and settings[name] not in values:
            expected = " or ".join(repr(value) for value in values if value is not None)
            conversions = (
                "; LLaVA-1.6 is read as converted for transformers, such as "
                "llava-hf/llava-v1.6-mistral-7b-hf"
            )
            raise RequestError(
                f"{name} is {settings[name]!r}, which LLaVA-1.5 does not have: expected "
                f"{expected or 'none'}{conversions * (settings[name] in _LLAVA_NEXT)}"
            )
    if not isinstance(settings.get("mm_vision_tower"), str):
        raise RequestError("its config.json names no vision tower (mm_vision_tower)")


def read_tower_config(settings: Mapping[str, Any], **hub: Any) -> CLIPVisionConfig:
    """The configuration of the CLIP checkpoint that `mm_vision_tower` names, a folder or hub id.

    Raises RequestError where it cannot be read or is not CLIP.
    """
    check(settings)
    tower = settings["mm_vision_tower"]
    try:
        kind = PreTrainedConfig.get_config_dict(tower, **tower_options(hub))[0].get("model_type")
        if kind not in ("clip", "clip_vision_model"):
            raise RequestError(f"the vision tower {tower} is of type {kind!r}: expected CLIP")
        return CLIPVisionConfig.from_pretrained(tower, **tower_options(hub))
    except OSError as error:
        raise RequestError(
            f"the vision tower {tower} (mm_vision_tower in config.json) is neither a folder here "
            f"nor readable from the hub ({first_line(error)})"
        ) from error


def tower_options(hub: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `HUB_OPTIONS` that hold for the tower's checkpoint, another repository."""
    return {name: hub[name] for name in hub if name not in ("revision", "subfolder")}
