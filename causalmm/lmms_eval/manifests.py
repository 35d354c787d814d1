"""The entry point: which models there are, told without loading them."""

from lmms_eval.models.registry_v2 import ModelManifest

from causalmm.lmms_eval.arguments import MODELS

_CLASSES = {"llava": "CausalMMLlava", "qwen2_vl": "CausalMMQwen2VL"}


def manifests() -> list[ModelManifest]:
    """One for each family."""
    return [
        ModelManifest(
            model_id=name, chat_class_path=f"causalmm.lmms_eval.models.{_CLASSES[family]}"
        )
        for family, name in MODELS.items()
    ]
