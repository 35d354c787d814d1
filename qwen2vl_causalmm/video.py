"""The frames of a video file, chosen and sized by qwen_vl_utils' rules.

Decoded here, because qwen_vl_utils decodes only with packages that need installing apart.
Held by tests/test_inputs.py.
"""

import math
from typing import Any

import numpy as np
import torch
from qwen_vl_utils import vision_process as rules
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

from causalmm.video import decode, length


def read_video(part: dict[str, Any], image_patch_size: int) -> Tensor:
    """Frames [T, 3, H, W] of 0 to 255, float32, of a message's part whose "video" is a file.

    Raises RequestError where the file cannot be read, ValueError where it is too short for what
    the part asks.
    """
    total, fps = length(part["video"])
    first, last, count = rules.calculate_video_frame_range(part, total, fps)
    number = rules.smart_nframes(part, total_frames=count, video_fps=fps)
    chosen = torch.linspace(first, last, number).round().long().tolist()
    frames = np.stack([np.asarray(each) for each in decode(part["video"], chosen)])
    size = _size(part, frames.shape, factor=image_patch_size * rules.SPATIAL_MERGE_SIZE)
    return resize(
        torch.from_numpy(frames).permute(0, 3, 1, 2),
        list(size),
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    ).float()


def _size(part: dict[str, Any], shape: tuple[int, ...], factor: int) -> tuple[int, int]:
    """Height and width, in whole tokens, of the frames of a video of shape [T, H, W, 3].

    A frame has at least `min_pixels`, and at most the least of `max_pixels`, qwen_vl_utils' own
    bound and a frame's share of `total_pixels`; the share never falls below the minimum.
    """
    if "resized_height" in part:
        return rules.smart_resize(part["resized_height"], part["resized_width"], factor)
    frames, height, width, _ = shape
    token = factor**2
    least = part.get("min_pixels", rules.VIDEO_MIN_TOKEN_NUM * token)
    total = part.get("total_pixels", 0.9 * rules.MODEL_SEQ_LEN * token)
    share = min(rules.VIDEO_MAX_TOKEN_NUM * token, total * rules.FRAME_FACTOR / frames)
    most = min(part.get("max_pixels", math.inf), max(share, int(1.05 * least)))
    return smart_resize(height, width, factor, min_pixels=least, max_pixels=most)
