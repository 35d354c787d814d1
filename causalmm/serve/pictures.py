"""From the address of a picture in a request to the opened picture, within the limits.

No address is ever the name of a file here. Tests: tests/serve/test_pictures.py.
"""

import io
import re

from PIL import Image, UnidentifiedImageError

from causalmm.errors import RequestError
from causalmm.inputs.images import open_image
from causalmm.inputs.sources import find_source
from causalmm.serve.errors import ApiError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Files that are read: decoders in Pillow's own process, of formats that are in wide use."""
_NETWORK = re.compile(r"https?://", re.IGNORECASE)


def is_network(address: str) -> bool:
    """Whether a picture has to be fetched."""
    return _NETWORK.match(address) is not None


def decode_data(address: str, param: str) -> bytes:
    """The bytes in a data: address. Raises ApiError for any other address than one of a picture."""
    if address[:5].lower() != "data:":
        raise ApiError(
            400, f"{param}: expected data:image/...;base64, or an allowed http(s) address",
            param=param,
        )  # fmt: skip
    try:
        return find_source(param, address, "image").content
    except RequestError as error:
        raise ApiError(400, str(error), param=param) from None


def open_picture(content: bytes, param: str, pixels_left: int) -> tuple[Image.Image, int]:
    """The picture in a file's bytes as RGB, and how many pixels are left of those allowed.

    Its size is read before it is decoded. Raises ApiError.
    """
    name = f"{param}: the picture"
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as file:
            pixels = file.width * file.height
    except UnidentifiedImageError:
        raise ApiError(400, f"{name} is no file of {', '.join(FORMATS)}", param=param) from None
    except Exception as error:  # whatever a decoder raises on damaged data
        raise ApiError(400, f"{name} is damaged", param=param) from error
    if pixels > pixels_left:
        raise ApiError(400, f"{name} has too many pixels for one request", param=param)
    try:
        return open_image(io.BytesIO(content), name, formats=FORMATS), pixels_left - pixels
    except RequestError as error:
        raise ApiError(400, str(error), param=param) from None
