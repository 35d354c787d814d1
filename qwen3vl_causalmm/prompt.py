"""From images and a question, or a whole conversation, to Qwen3-VL's inputs.

As for Qwen2-VL, but for the size of a video's frames. The processor writes the time of each pair of
frames into the prompt.
Tests: tests/inputs/test_inputs.py, tests/inputs/test_sizes.py and
tests/families/test_checkpoints.py.
"""

from collections.abc import Sequence
from typing import Any

from causalmm.inputs.messages import Message
from causalmm.inputs.prompts import Prepared, input_builders
from qwen2vl_causalmm.prompt import join, prepare_sized

__all__ = ["build_chat_inputs", "build_inputs", "join", "prepare"]


def prepare(
    processor: Any, messages: Sequence[Message], *, allow_network: bool = False
) -> Prepared:
    """A conversation made ready for `join`, its images and frames in the size the model sees.

    Raises RequestError for what Qwen3-VL cannot take.
    """
    from qwen3vl_causalmm.sizes import processed_frame_size  # loads torch

    return prepare_sized(processor, messages, processed_frame_size, allow_network=allow_network)


build_inputs, build_chat_inputs = input_builders(prepare, join)
