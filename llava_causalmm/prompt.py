"""From images and a question, or a whole conversation, to LLaVA's inputs.

Tests: tests/inputs/test_inputs.py and tests/families/test_checkpoints.py.
"""

from collections.abc import Sequence
from typing import Any

from causalmm.errors import RequestError
from causalmm.inputs.images import check_sides
from causalmm.inputs.messages import Message, open_messages, parts_of
from causalmm.inputs.prompts import Prepared, chat_text, input_builders, join


def prepare(
    processor: Any, messages: Sequence[Message], *, allow_network: bool = False
) -> Prepared:
    """A conversation made ready for `join`. Sizes of images are left out: LLaVA decides itself.

    Raises RequestError for what LLaVA cannot take.
    """
    messages = open_messages(messages, allow_network=allow_network)
    if any(parts_of(messages, "video")):
        raise RequestError("LLaVA reads images only, and this is a video")
    images = [part["image"] for part in parts_of(messages, "image")]
    for image in images:
        check_sides(image, "the image")
    return Prepared(chat_text(processor, messages), images, [])


build_inputs, build_chat_inputs = input_builders(prepare, join)
