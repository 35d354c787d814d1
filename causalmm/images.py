"""Open any image file as the RGB picture its author saw.

Promises, held by tests/test_images.py: the EXIF orientation is applied, what is transparent shows
white, 16-bit grey keeps its shades, and a file that is no whole image raises one clear sentence.
"""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from causalmm.errors import RequestError, first_line

MAX_ASPECT_RATIO = 200
"""Longer side over shorter. Qwen2-VL's own bound; for LLaVA, which enlarges the shorter side to its
full resolution, it bounds memory."""

_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
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


def open_image(path: str | Path) -> Image.Image:
    """The first frame of an image file, upright, in mode RGB.

    Raises RequestError where there is no file, it is not a whole image, has more pixels than
    Pillow's limit against decompression bombs, or is longer than 200 times its width.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                file.load()
                image = to_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise RequestError(f"no image file at {path}") from None
    except IsADirectoryError:
        raise RequestError(f"{path} is a folder, expected an image file") from None
    except PermissionError:
        raise RequestError(f"{path} may not be read: permission denied") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise RequestError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, the limit for an image"
        ) from None
    except UnidentifiedImageError:
        what = "is empty" if _is_empty(path) else "is not an image that Pillow can read"
        raise RequestError(f"{path} {what}") from None
    except _DAMAGED as error:
        raise RequestError(
            f"{path} is a damaged or truncated image ({first_line(error)})"
        ) from error
    width, height = image.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RequestError(
            f"{path} is {width} x {height} pixels: expected sides within a ratio of "
            f"{MAX_ASPECT_RATIO} to 1"
        )
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy in mode RGB: transparency over white, deep grey reduced to 8 bits."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
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


def _is_empty(path: str | Path) -> bool:
    return Path(path).stat().st_size == 0
