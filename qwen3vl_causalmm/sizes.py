"""The size in which Qwen3-VL sees the frames of a video. Images are sized as for Qwen2-VL.

Tests: tests/inputs/test_sizes.py.
"""

from typing import Any

from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from qwen2vl_causalmm.sizes import Size, in_ratio


def processed_frame_size(fetched: Size, asked: Size, processor: Any, frames: int) -> Size:
    """In which a video processor hands on so many frames that it was given in size `fetched`.

    `asked` is the size that was rounded to `fetched`. The processor's limits are of the pixels of
    all frames together.
    """
    if not processor.do_resize:
        return fetched
    factor = processor.patch_size * processor.merge_size
    least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
    if fetched.whole(factor) and least <= frames * fetched.pixels <= most:
        return fetched
    size = in_ratio(fetched, asked)
    return Size(*smart_resize(frames, *size, processor.temporal_patch_size, factor, least, most))
