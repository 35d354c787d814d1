"""The size in which Qwen2-VL sees a picture: that of `process_vision_info` and the processor.

Upstream rounds to whole tokens more than once: qwen_vl_utils within the limits that a message asks
for, then the processor within the checkpoint's. All of it is followed here, and a long thin picture
is judged by its true sides: rounding 41 x 6000 pixels to 28 x 5992 makes a ratio of 214, which the
next rounding would refuse. Held by tests/inputs/test_sizes.py.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image
from qwen_vl_utils import vision_process as rules
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from causalmm.errors import RequestError
from causalmm.inputs.images import MAX_ASPECT_RATIO


class Size(NamedTuple):
    """Of a picture, in pixels."""

    height: float
    """Whole, but where a message asks for something else."""
    width: float

    @property
    def pixels(self) -> float:
        return self.height * self.width

    @property
    def ratio(self) -> float:
        """The longer side over the shorter."""
        return max(self) / min(self)

    def whole(self, factor: int) -> bool:
        """Whether both sides are multiples of `factor`."""
        return not any(side % factor for side in self)


def asked_size(settings: Mapping[str, Any], picture: Size) -> Size:
    """The size before any rounding: `resized_height` and `resized_width`, or else the picture's.

    Raises RequestError where one side is more than 200 times the other.
    """
    asked, named = picture, f"a picture of {picture.width} x {picture.height} pixels"
    if "resized_height" in settings:
        asked = Size(settings["resized_height"], settings["resized_width"])
        named = f"resized_height={asked.height} and resized_width={asked.width}"
    if asked.ratio > MAX_ASPECT_RATIO:
        raise RequestError(
            f"{named}: expected sides within a ratio of {MAX_ASPECT_RATIO} to 1, "
            f"found {asked.ratio:.4g} to 1"
        )
    return asked


def fetched_size(settings: Mapping[str, Any], picture: Size, factor: int) -> Size:
    """In which qwen_vl_utils hands an image on; `factor`: a token's side in pixels.

    Raises RequestError where it has none.
    """
    asked = asked_size(settings, picture)
    given = {} if "resized_height" in settings else settings
    least = given.get("min_pixels", rules.IMAGE_MIN_TOKEN_NUM * factor**2)
    most = given.get("max_pixels", rules.IMAGE_MAX_TOKEN_NUM * factor**2)
    _check_limits(given, least, most)
    return _rounded(asked, asked, factor, least, most)


def fetched_frame_size(
    settings: Mapping[str, Any], frame: Size, before: Size, frames: int, factor: int
) -> Size:
    """In which qwen_vl_utils hands the frames of a video on, an even number of them.

    `frame` is a frame's size, and `before` the one in which they come to be fitted into the limits
    of a video. A frame has at least `min_pixels`, and at most the least of `max_pixels`,
    qwen_vl_utils' own bound and a frame's share of `total_pixels`; the share never falls below the
    minimum. Raises RequestError where there is no such size.
    """
    asked = asked_size(settings, frame)
    if "resized_height" in settings:
        return fetched_size(settings, frame, factor)
    token = factor**2
    least = settings.get("min_pixels", rules.VIDEO_MIN_TOKEN_NUM * token)
    total = settings.get("total_pixels", rules.MODEL_SEQ_LEN * token * 0.9)
    share = min(rules.VIDEO_MAX_TOKEN_NUM * token, total / frames * rules.FRAME_FACTOR)
    most = min(settings.get("max_pixels", math.inf), max(share, int(1.05 * least)))
    _check_limits(settings, least, most)
    return _rounded(before, asked, factor, least, most)


def processed_size(fetched: Size, asked: Size, processor: Any) -> Size:
    """In which an image or video processor hands on what it was given in size `fetched`.

    `asked` is the size that was rounded to `fetched`.
    """
    if not processor.do_resize:
        return fetched
    factor = processor.patch_size * processor.merge_size
    least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
    if fetched.whole(factor) and least <= fetched.pixels <= most:
        return fetched
    return Size(*smart_resize(*in_ratio(fetched, asked), factor, least, most))


def processed_frame_size(fetched: Size, asked: Size, processor: Any, frames: int) -> Size:
    """The same of a video's frames, each for itself whatever their number."""
    return processed_size(fetched, asked, processor)


def _check_limits(given: Mapping[str, Any], least: float, most: float) -> None:
    """Raise RequestError where limits, one of them `given`, contradict each other."""
    if least > most and "max_pixels" in given:
        raise RequestError(
            f"max_pixels={given['max_pixels']}: expected at least {least:,}, or a smaller "
            "min_pixels beside it"
        )
    if least > most:
        raise RequestError(
            f"min_pixels={least}: expected at most {most:,}, or a larger max_pixels beside it"
        )


def _rounded(size: Size, asked: Size, factor: int, least: float, most: float) -> Size:
    """By qwen_vl_utils, of a size that came of `asked`."""
    if size.whole(factor) and least <= size.pixels <= most:
        return size
    size = in_ratio(size, asked)
    rounded = Size(*rules.smart_resize(*size, factor, least, most))
    if not rounded.pixels:
        unlimited = Size(*rules.smart_resize(*size, factor, 0, math.inf)).pixels
        enough = min(unlimited, math.floor(size.ratio * factor**2) + 1)
        raise RequestError(
            f"a picture of {size.width} x {size.height} pixels does not fit into {most:,} pixels "
            f"in whole tokens of {factor} x {factor}: expected a max_pixels of at least {enough:,}"
        )
    if rounded.pixels > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise RequestError(
            f"a picture of {size.width} x {size.height} pixels would be enlarged to "
            f"{rounded.width} x {rounded.height}, more than {Image.MAX_IMAGE_PIXELS:,} pixels, the "
            f"limit for an image: expected a smaller min_pixels than {least:,}"
        )
    return rounded


def in_ratio(size: Size, asked: Size) -> Size:
    """A size that came of `asked` by rounding, or that one where rounding made it too long."""
    return size if size.ratio <= MAX_ASPECT_RATIO else asked
