"""From images and a question, or a whole conversation, to Qwen2-VL's inputs.

Pictures are fetched as by qwen_vl_utils' `process_vision_info`.
Held by tests/test_inputs.py and tests/test_checkpoints.py.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from causalmm.errors import RequestError, first_line
from causalmm.messages import IMAGE_SETTINGS, Message, one_turn, open_messages, parts_of
from causalmm.prompts import Prepared, chat_text, join


def build_inputs(processor: Any, images: Sequence[Image.Image], prompt: str) -> Any:
    """Model inputs (a BatchFeature of one row) for a user's turn: the images, then the prompt.

    Raises RequestError where the prompt contains a token that stands for an image or video.
    """
    return build_chat_inputs(processor, one_turn(images, prompt))


def build_chat_inputs(processor: Any, messages: Sequence[Message]) -> Any:
    """Model inputs (a BatchFeature of one row) for the answer to a conversation.

    Messages as in `causalmm.messages`. Raises RequestError for what Qwen2-VL cannot take.
    """
    return join(processor, [prepare(processor, messages)])


def prepare(processor: Any, messages: Sequence[Message]) -> Prepared:
    """A conversation made ready for `join`, its images and frames sized.

    Raises RequestError for what Qwen2-VL cannot take.
    """
    from qwen_vl_utils import fetch_image, fetch_video

    from qwen2vl_causalmm.video import read_video

    messages = open_messages(messages)
    text = chat_text(processor, messages)
    patch = {"image_patch_size": processor.image_processor.patch_size}
    try:
        images = [
            fetch_image(_sized(processor.image_processor, part), **patch)
            for part in parts_of(messages, "image")
        ]
        videos = [
            fetch_video(part, **patch)
            if isinstance(part["video"], list)
            else read_video(part, **patch)
            for part in parts_of(messages, "video")
        ]
    except RequestError:
        raise
    except (ValueError, AssertionError) as error:
        raise RequestError(
            f"a picture cannot be taken as the messages ask ({first_line(error)})"
        ) from error
    return Prepared(text, images, videos)


def _sized(image_processor: Any, part: dict[str, Any]) -> dict[str, Any]:
    """The part of an image with the size that the processor would give it, unless it has its own.

    Left alone, qwen_vl_utils resizes within limits of its own first, and a long thin image to no
    height at all.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    if part.keys() & set(IMAGE_SETTINGS):
        return part
    image, limits = part["image"], image_processor.size
    height, width = smart_resize(
        image.height,
        image.width,
        factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=limits["shortest_edge"],
        max_pixels=limits["longest_edge"],
    )
    return {**part, "resized_height": height, "resized_width": width}
