"""From images and a question, or a whole conversation, to Qwen2-VL's inputs.

Pictures are sized as by qwen_vl_utils' `process_vision_info` and then the checkpoint's processor.
Tests: tests/inputs/test_inputs.py, tests/inputs/test_sizes.py and
tests/families/test_checkpoints.py.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from causalmm.inputs import prompts
from causalmm.inputs.messages import Message, open_messages, parts_of
from causalmm.inputs.prompts import Prepared, Video, chat_text, input_builders

if TYPE_CHECKING:  # they load torch
    from torch import Tensor

    from qwen2vl_causalmm.sizes import Size


def prepare(
    processor: Any, messages: Sequence[Message], *, allow_network: bool = False
) -> Prepared:
    """A conversation made ready for `join`, its images and frames in the size the model sees.

    Raises RequestError for what Qwen2-VL cannot take.
    """
    from qwen2vl_causalmm.video import read_video

    messages = open_messages(messages, allow_network=allow_network)
    text = chat_text(processor, messages)
    patch = processor.image_processor.patch_size
    images = [_image(part, processor.image_processor) for part in parts_of(messages, "image")]
    videos = [
        Video(_processed(pixels, asked, processor.video_processor), metadata)
        for pixels, asked, metadata in (
            read_video(part, patch) for part in parts_of(messages, "video")
        )
    ]
    return Prepared(text, images, videos)


def join(processor: Any, prepared: Sequence[Prepared]) -> Any:
    """Model inputs (a BatchFeature, a row a conversation), padded on the left if of many rows.

    Raises FailureError where the tokenizer cannot pad.
    """
    return prompts.join(processor, prepared, do_resize=False)


build_inputs, build_chat_inputs = input_builders(prepare, join)


def _image(part: dict[str, Any], image_processor: Any) -> Image.Image:
    from qwen_vl_utils.vision_process import SPATIAL_MERGE_SIZE
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    from qwen2vl_causalmm.sizes import Size, asked_size, fetched_size

    picture = Size(part["image"].height, part["image"].width)
    size = fetched_size(part, picture, image_processor.patch_size * SPATIAL_MERGE_SIZE)
    fetched = pil_to_tensor(part["image"].resize((size.width, size.height)))
    return to_pil_image(_processed(fetched, asked_size(part, picture), image_processor))


def _processed(pixels: "Tensor", asked: "Size", processor: Any) -> "Tensor":
    """[..., H, W] in the size that an image or video processor gives what was asked in `asked`."""
    from transformers.image_processing_backends import TorchvisionBackend
    from transformers.image_utils import SizeDict

    from qwen2vl_causalmm.sizes import Size, processed_size

    fetched = Size(*pixels.shape[-2:])
    size = processed_size(fetched, asked, processor)
    if size == fetched:
        return pixels
    target = SizeDict(height=size.height, width=size.width)
    return TorchvisionBackend.resize(processor, pixels, target, resample=processor.resample)
