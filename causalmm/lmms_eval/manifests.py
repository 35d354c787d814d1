"""The entry point: which models there are, told without loading them."""

from lmms_eval.models.registry_v2 import ModelManifest

from causalmm.lmms_eval.arguments import model_names


def manifests() -> list[ModelManifest]:
    """One for each family."""
    return [
        ModelManifest(model_id=name, chat_class_path=f"causalmm.lmms_eval.models.{name}")
        for name in model_names().values()
    ]
