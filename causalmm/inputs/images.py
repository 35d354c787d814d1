"""Open any image, a file or one already open, as the RGB picture its author saw.

Promises, held by tests/inputs/test_images.py: the EXIF orientation is applied, what is transparent
shows white, 16-bit grey keeps its shades, and a file that is no whole image raises one clear
sentence.
"""

import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from causalmm.errors import RequestError, first_line

MAX_ASPECT_RATIO = 200
"""Longer side over shorter. Qwen2-VL's own bound; for LLaVA, which enlarges the shorter side to its
full resolution, it bounds memory."""

# What Pillow's decoders raise on damaged data.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    RuntimeError,  # AVIF
    struct.error,
    zlib.error,
)


def open_image(
    source: str | Path | BinaryIO | Image.Image,
    name: str | None = None,
    *,
    any_sides: bool = False,
    formats: Sequence[str] | None = None,
) -> Image.Image:
    """The first frame of an image, upright, in mode RGB. Sentences call it `name`, or by its path.

    Only files of Pillow's `formats` are read, if given. Raises RequestError where there is no file,
    it is not a whole image, has more pixels than Pillow's limit against decompression bombs, or,
    unless `any_sides` will do, what `check_sides` refuses.
    """
    if name is None:
        name = str(source) if isinstance(source, str | Path) else "the image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                image = _upright(source)
            else:
                with Image.open(source, formats=formats) as file:
                    image = _upright(file)
    except FileNotFoundError:
        raise RequestError(f"no image file at {name}") from None
    except IsADirectoryError:
        raise RequestError(f"{name} is a folder, expected an image file") from None
    except PermissionError:
        raise RequestError(f"{name} may not be read: permission denied") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise RequestError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, the limit for an image"
        ) from None
    except UnidentifiedImageError:
        what = "is empty" if _is_empty(source) else "is not an image that Pillow can read"
        raise RequestError(f"{name} {what}") from None
    except _DAMAGED as error:
        raise RequestError(
            f"{name} is a damaged or truncated image ({first_line(error)})"
        ) from error
    if not any_sides:
        check_sides(image, name)
    return image


def check_sides(image: Image.Image, name: str) -> None:
    """Raise RequestError for an image one of whose sides is more than 200 times the other."""
    width, height = image.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RequestError(
            f"{name} is {width} x {height} pixels: expected sides within a ratio of "
            f"{MAX_ASPECT_RATIO} to 1"
        )


def is_picture(path: Path) -> bool:
    """Whether a file is called a picture, or else is one.

    By its name first, so that a damaged picture counts; what cannot be read counts as well.
    """
    suffixes = Image.registered_extensions()  # loads the formats
    if suffixes.get(path.suffix.lower()) in Image.OPEN:
        return True
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path):
            return True
    except UnidentifiedImageError:
        return False
    except (*_DAMAGED, Image.DecompressionBombError):
        return True


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy in mode RGB: transparency over white, deep grey reduced to 8 bits."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey of 16 bits divided by 257; of no stated range, stretched from its least to its most."""
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    if mode != "F" and low >= 0 and high <= 65535:
        low, high = 0, 65535
    return np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    return to_rgb(ImageOps.exif_transpose(image))


def _is_empty(source: str | Path | BinaryIO) -> bool:
    if isinstance(source, str | Path):
        return Path(source).stat().st_size == 0
    return source.seek(0, 2) == 0
