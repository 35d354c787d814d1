"""Where a picture is: a path, a file:// or data: address, or, if allowed, one on the network.

Held by tests/inputs/test_sources.py.
"""

import base64
import binascii
import errno
import os
import re
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote
from urllib.request import url2pathname

from causalmm.errors import RequestError, first_line

TIMEOUT = 20.0
"""Seconds that a server may take for its next word."""
MAX_SECONDS = 300.0
"""For one address in all."""
MAX_BYTES = 2**28
"""Of one address."""
MAX_SHOWN = 60
"""Characters of what is not the name of a file: it may be the file itself, in base64."""

_NETWORK = re.compile(r"https?://", re.IGNORECASE)
_DATA = re.compile(r"data:(image|video)\b.*?base64,", re.IGNORECASE | re.DOTALL)


class Source(NamedTuple):
    """A picture that is not opened yet, and what sentences call it."""

    content: Path | bytes
    name: str


def find_source(where: str, given: str | Path, kind: str, *, allow_network: bool = False) -> Source:
    """The `kind` ("image" or "video") that is given. Sentences begin with `where`.

    Raises RequestError for what cannot name a file, data that is no base64, an address on the
    network unless `allow_network`, or one that cannot be fetched.
    """
    text = str(given)
    if _NETWORK.match(text):
        if not allow_network:
            raise RequestError(
                f"{where}: {text} is not fetched: download it first, or give --allow-network "
                "(in Python allow_network=True)"
            )
        return Source(fetch(text), text)
    if text[:5].lower() == "data:":
        return Source(_decode(where, text, kind), f"{where}: the {kind}")
    if not _possible(text):
        shown = ascii(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")
        raise RequestError(f"{where}: {shown} is not the name of a file")
    if text[:7].lower() == "file://":
        path = _file_path(text)
        return Source(path, str(path))
    return Source(Path(text), text)


def fetch(address: str) -> bytes:
    """What a server answers at an http(s) address. Raises RequestError where there is no answer."""
    from huggingface_hub.utils import httpx

    content, begun = bytearray(), time.monotonic()
    try:
        with httpx.stream("GET", address, timeout=TIMEOUT, follow_redirects=True) as response:
            response.raise_for_status()
            for part in response.iter_bytes():
                content += part
                if len(content) > MAX_BYTES:
                    raise RequestError(f"{address} is larger than {MAX_BYTES:,} bytes")
                if time.monotonic() - begun > MAX_SECONDS:
                    raise RequestError(f"{address} takes more than {MAX_SECONDS:g} seconds")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise RequestError(f"{address} cannot be fetched ({first_line(error)})") from error
    return bytes(content)


def _decode(where: str, text: str, kind: str) -> bytes:
    """The bytes of a data: address; line breaks, blanks and %-codes may be in it."""
    head = _DATA.match(text)
    data = "".join(unquote(text[head.end() :]).split()).rstrip("=") if head else ""
    try:
        content = base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if not content or head[1].lower() != kind:
        raise RequestError(f"{where}: expected data:{kind}/...;base64, and {kind} data after it")
    return content


def _possible(name: str) -> bool:
    """Whether the system takes a name for that of a file, which need not be there."""
    try:
        os.lstat(name)
    except ValueError:  # a character that no name has
        return False
    except OSError as error:
        return bool(name) and error.errno != errno.ENAMETOOLONG
    return True


def _file_path(address: str) -> Path:
    """Of a file:// address: as qwen_vl_utils takes it, or else as a browser does."""
    rest = address[7:]
    if os.path.lexists(rest):
        return Path(rest)
    return Path(url2pathname(re.sub(r"^localhost(?=/)", "", rest)))
