"""From images and a question, or a whole conversation, to LLaVA's inputs.

Held by tests/inputs/test_inputs.py and tests/families/test_checkpoints.py.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from causalmm.errors import RequestError
from causalmm.inputs.images import check_sides
from causalmm.inputs.messages import Message, one_turn, open_messages, parts_of
from causalmm.inputs.prompts import Prepared, chat_text, join


def build_inputs(processor: Any, images: Sequence[Image.Image], prompt: str) -> Any:
    """Model inputs (a BatchFeature of one row) for a user's turn: the images, then the prompt.

    Raises RequestError where the prompt contains the token that stands for an image.
    """
    return build_chat_inputs(processor, one_turn(images, prompt))


def build_chat_inputs(
    processor: Any, messages: Sequence[Message], *, allow_network: bool = False
) -> Any:
    """Model inputs (a BatchFeature of one row) for the answer to a conversation.

    Messages as in `causalmm.inputs.messages`; pictures at http(s) addresses are fetched only with
    `allow_network`. Raises RequestError for what LLaVA cannot take.
    """
    return join(processor, [prepare(processor, messages, allow_network=allow_network)])


def prepare(
    processor: Any, messages: Sequence[Message], *, allow_network: bool = False
) -> Prepared:
    """A conversation made ready for `join`. Sizes of images are left out: LLaVA has one size.

    Raises RequestError for what LLaVA cannot take.
    """
    messages = open_messages(messages, allow_network=allow_network)
    if any(parts_of(messages, "video")):
        raise RequestError("LLaVA reads images only, and this is a video")
    images = [part["image"] for part in parts_of(messages, "image")]
    for image in images:
        check_sides(image, "the image")
    return Prepared(chat_text(processor, messages), images, [])
