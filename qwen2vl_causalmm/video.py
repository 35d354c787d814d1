"""The frames of a video, chosen and sized by qwen_vl_utils' rules.

A file is decoded here, because qwen_vl_utils decodes only with packages that need installing apart.
Held by tests/inputs/test_inputs.py and tests/inputs/test_sizes.py.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import vision_process as rules
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from causalmm.errors import RequestError, first_line
from causalmm.inputs.video import decode, length
from qwen2vl_causalmm.sizes import Size, asked_size, fetched_frame_size, fetched_size


class Frames(NamedTuple):
    """Of a video, as qwen_vl_utils hands them on."""

    pixels: Tensor
    """[T, 3, H, W] of 0 to 255, float32; T is even."""
    asked: Size
    """Before it was rounded."""
    metadata: dict[str, Any]
    """What transformers' VideoMetadata needs to tell the frames' times: `fps` of the video,
    `frames_indices`, the T numbers of the frames in it, and `total_num_frames`, of which these are
    the chosen ones."""


def read_video(part: dict[str, Any], image_patch_size: int) -> Frames:
    """The frames of a message's part whose "video" is a file or a list of frames in mode RGB.

    Raises RequestError where the file cannot be read, is too short for what the part asks, or
    frames cannot have the size that it asks for.
    """
    factor = image_patch_size * rules.SPATIAL_MERGE_SIZE
    listed = isinstance(part["video"], list)
    images, metadata = _listed(part) if listed else _chosen(part)
    frame = Size(images[0].height, images[0].width)
    if listed:
        # Each frame is first an image for itself, of tokens twice as long.
        before = fetched_size(part, frame, factor * rules.SPATIAL_MERGE_SIZE)
        images = [each.resize((before.width, before.height)) for each in images]
    else:
        before = frame
    pixels = torch.from_numpy(np.stack([np.asarray(each) for each in images]))
    pixels = resize(
        pixels.permute(0, 3, 1, 2),
        list(fetched_frame_size(part, frame, before, len(images), factor)),
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    return Frames(pixels.float(), asked_size(part, frame), metadata)


def _listed(part: dict[str, Any]) -> tuple[list[Image.Image], dict[str, Any]]:
    """An even number of frames, and their metadata.

    `sample_fps` of them are a second; `fps` is the name that qwen_vl_utils read before 0.0.14. Of a
    video of `raw_fps` a second, whose length is told from that.
    """
    images = [*part["video"], *part["video"][-1:] * (-len(part["video"]) % rules.FRAME_FACTOR)]
    rate = part.get("sample_fps", part.get("fps", rules.FPS))
    raw = part.get("raw_fps", rate)
    return images, _metadata(raw, range(len(images)), len(images) / rate * raw)


def _metadata(fps: float, indices: Iterable[int], total: float) -> dict[str, Any]:
    return {"fps": fps, "frames_indices": list(indices), "total_num_frames": total}


def _chosen(part: dict[str, Any]) -> tuple[list[Image.Image], dict[str, Any]]:
    """The frames of a file that the part asks for, and their metadata."""
    total, fps = length(part["video"])
    if total == 1 and _wants_all(part):
        return decode(part["video"], [0]) * 2, _metadata(fps, [0, 1], 2)
    try:
        first, last, count = rules.calculate_video_frame_range(part, total, fps)
        number = rules.smart_nframes(part, total_frames=count, video_fps=fps)
    except ValueError as error:
        raise RequestError(
            f"a video of {total} frame{'s' * (total > 1)} at {fps:.4g} a second cannot be taken as "
            f"the messages ask ({first_line(error)})"
        ) from error
    indices = torch.linspace(first, last, number).round().long().tolist()
    return decode(part["video"], indices), _metadata(fps, indices, count)


def _wants_all(part: dict[str, Any]) -> bool:
    """Whether a video of one frame, shown twice, is what a part asks for.

    qwen_vl_utils does so with one listed frame, and takes two or more of a file.
    """
    return not part.get("video_start") and part.get("nframes", 1) <= rules.FRAME_FACTOR
