"""From images and a question, or a whole conversation, to Qwen2-VL's inputs.

Pictures are sized as by qwen_vl_utils' `process_vision_info` and then the checkpoint's processor.
Tests: tests/inputs/test_inputs.py, tests/inputs/test_sizes.py and
tests/families/test_checkpoints.py.
"""

from collections.abc import Callable, Sequence
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
    from qwen2vl_causalmm.sizes import processed_frame_size

    return prepare_sized(processor, messages, processed_frame_size, allow_network=allow_network)


def prepare_sized(
    processor: Any,
    messages: Sequence[Message],
    frame_size: "Callable[[Size, Size, Any, int], Size]",
    *,
    allow_network: bool,
) -> Prepared:
    """`prepare` of a family whose video processor gives frames a size by a rule of its own.

    `frame_size` takes the size in which qwen_vl_utils hands them on, the one before it was rounded,
    the video processor and the number of frames.
    """
    from qwen2vl_causalmm.sizes import Size
    from qwen2vl_causalmm.video import read_video

    messages = open_messages(messages, allow_network=allow_network)
    text = chat_text(processor, messages)
    patch = processor.image_processor.patch_size
    images = [_image(part, processor.image_processor) for part in parts_of(messages, "image")]
    videos = []
    for part in parts_of(messages, "video"):
        pixels, asked, metadata = read_video(part, patch)
        fetched = Size(*pixels.shape[-2:])
        size = frame_size(fetched, asked, processor.video_processor, len(pixels))
        videos.append(Video(_resized(pixels, size, processor.video_processor), metadata))
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

    from qwen2vl_causalmm.sizes import Size, asked_size, fetched_size, processed_size

    picture = Size(part["image"].height, part["image"].width)
    fetched = fetched_size(part, picture, image_processor.patch_size * SPATIAL_MERGE_SIZE)
    pixels = pil_to_tensor(part["image"].resize((fetched.width, fetched.height)))
    size = processed_size(fetched, asked_size(part, picture), image_processor)
    return to_pil_image(_resized(pixels, size, image_processor))


def _resized(pixels: "Tensor", size: "Size", processor: Any) -> "Tensor":
    """[..., H, W] in another size, as an image or video processor resizes."""
    from transformers.image_processing_backends import TorchvisionBackend
    from transformers.image_utils import SizeDict

    if pixels.shape[-2:] == size:
        return pixels
    target = SizeDict(height=size.height, width=size.width)
    return TorchvisionBackend.resize(processor, pixels, target, resample=processor.resample)
