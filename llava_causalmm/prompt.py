"""From images and a question to LLaVA's inputs. Held by tests/test_checkpoints.py."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from causalmm.errors import RequestError


def build_inputs(processor: Any, images: Sequence[Image.Image], prompt: str) -> Any:
    """Model inputs (a BatchFeature of one row) for a user's turn: the images, then the prompt.

    Raises RequestError where the prompt contains the token that stands for an image.
    """
    if processor.image_token in prompt:
        raise RequestError(
            f"the prompt contains {processor.image_token}, which stands for an image"
        )
    content = [*[{"type": "image"} for _ in images], {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return processor(images=list(images) or None, text=text, return_tensors="pt")
