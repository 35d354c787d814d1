"""Uploaded files, opened within the limits.

Tests: tests/app/test_uploads.py.
"""

import os
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from causalmm.app.limits import Limits
from causalmm.errors import RequestError
from causalmm.inputs.images import open_image
from causalmm.inputs.video import frame_size


def open_picture(path: str, limits: Limits) -> Image.Image:
    """An uploaded picture in mode RGB, called by its name alone.

    Raises RequestError where it is gone, too large or no picture.
    """
    name = Path(path).name
    check_kept(path, limits)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            check_pixels(file.size, name, limits)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError):
        pass  # `open_image` says what is wrong with it
    return open_image(path, name)


def check_video_size(path: str, limits: Limits) -> None:
    """Raise RequestError for an uploaded video that is gone, or has too large frames."""
    check_kept(path, limits)
    name = Path(path).name
    check_pixels(frame_size(Path(path), name), name, limits)


def check_kept(path: str, limits: Limits) -> None:
    """Raise RequestError for an uploaded file that was deleted or is too large."""
    name = Path(path).name
    if not os.path.isfile(path):
        raise RequestError(
            f"{name} is not here any more (files are deleted after {limits.kept_seconds // 60} "
            "minutes): upload it again"
        )
    if (size := os.path.getsize(path)) > limits.file_bytes:
        raise RequestError(f"{name} has {size:,} bytes: expected at most {limits.file_bytes:,}")


def check_pixels(size: tuple[int, int], name: str, limits: Limits) -> None:
    """Raise RequestError for a picture or frame of more pixels than allowed."""
    width, height = size
    if width * height > limits.pixels:
        raise RequestError(
            f"{name} is {width} x {height} pixels: expected at most {limits.pixels:,} in all"
        )


def stored(folder: Path) -> int:
    """Bytes of all files under a folder; those deleted meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(place, name))
            except FileNotFoundError:
                continue
    return total
