"""From images and a question to Qwen2-VL's inputs. Held by tests/test_checkpoints.py."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from causalmm.errors import RequestError


def build_inputs(processor: Any, images: Sequence[Image.Image], prompt: str) -> Any:
    """Model inputs (a BatchFeature of one row) for a user's turn: the images, then the prompt.

    Raises RequestError where the prompt contains a token that stands for an image or video.
    """
    from qwen_vl_utils import process_vision_info

    for token in (processor.image_token, processor.video_token):
        if token in prompt:
            raise RequestError(f"the prompt contains {token}, which stands for an image or video")
    parts = [_image_part(processor.image_processor, image) for image in images]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
    patch_size = processor.image_processor.patch_size
    prepared, _ = process_vision_info(messages, image_patch_size=patch_size)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(images=prepared, text=text, return_tensors="pt")


def _image_part(image_processor: Any, image: Image.Image) -> dict[str, Any]:
    """The message part of an image, with the size that the processor would give it.

    Left alone, qwen_vl_utils resizes within limits of its own first, and a long thin image to no
    height at all.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    size = image_processor.size
    height, width = smart_resize(
        image.height,
        image.width,
        factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
    )
    return {"type": "image", "image": image, "resized_height": height, "resized_width": width}
