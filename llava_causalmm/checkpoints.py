"""What LLaVA-1.5 checkpoints need: classes by their format, and a whole processor.

Tests: tests/families/test_checkpoints.py and tests/families/test_authors_format.py.
"""

from typing import Any

from PIL import Image

from causalmm.errors import FailureError, RequestError
from causalmm.families.processors import complete


def find_classes(source: str) -> tuple[type, type]:
    """Model class and processor class of a checkpoint of the transformers format or its authors'.

    Raises RequestError for settings that LLaVA-1.5 does not have.
    """
    from llava_causalmm.authors.config import check, read_settings
    from llava_causalmm.model import AuthorsLlava, LlavaForConditionalGeneration

    if (settings := read_settings(source)) is None:
        from transformers import LlavaProcessor

        return LlavaForConditionalGeneration, LlavaProcessor
    try:
        check(settings)
    except RequestError as error:
        raise RequestError(f"{source}: {error}") from error
    from llava_causalmm.authors.processor import LlavaProcessor

    return AuthorsLlava, LlavaProcessor


def complete_processor(source: str, processor: Any, config: Any) -> None:
    """Settings that older transformers did not save, and the size of pictures.

    Raises FailureError where a picture would become other tokens than the model makes features.
    """
    vision = config.vision_config
    saved, _ = type(processor).get_processor_dict(source)
    expected = {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    if vision.model_type == "clip_vision_model":
        expected["num_additional_image_tokens"] = 1  # CLIP's class token
        _check_size(source, processor, vision.image_size)
        # Together these two say how many tokens there are beside the patches, and another pair that
        # says the same works.
        names = ("num_additional_image_tokens", "vision_feature_select_strategy")
        if _beside(*(saved.get(name) for name in names)) == _beside(*map(expected.get, names)):
            expected = {"patch_size": vision.patch_size}
    complete(source, "processor", processor, saved, expected)


def _beside(additional: int | None, strategy: str | None) -> int | None:
    """Image tokens beside those of the patches; None where a setting is missing."""
    if additional is None or strategy is None:
        return None
    return additional - (strategy == "default")


def _check_size(source: str, processor: Any, size: int) -> None:
    picture = processor.image_processor(Image.new("RGB", (size, size)), return_tensors="pt")
    height, width = picture["pixel_values"].shape[-2:]
    if (height, width) != (size, size):
        raise FailureError(
            f"{source}: its processor makes pictures of {width} x {height} pixels, and by the "
            f"model's configuration they have {size} x {size}"
        )
