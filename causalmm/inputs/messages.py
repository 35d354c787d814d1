"""Conversations in the form of qwen_vl_utils, checked, with every picture opened.

A conversation is a list of messages {"role", "content"}; content is text or a list of parts:

    {"type": "text", "text": ...}
    {"type": "image", "image": path, file://, data:image/...;base64, or PIL image, sizes}
    {"type": "video", "video": path or file:// of a file or folder, or a list of frames, settings}

or, in the forms of transformers and of OpenAI, with "path" or "url" in the place of "image" and
"video", or as {"type": "image_url", "image_url": {"url": ...}}. Where the network is allowed, an
http(s) address will do as well.

The one form that comes out holds parts only, images as RGB and videos as lists of RGB frames; a
video file stays a path, or the bytes that were fetched, since how many of its frames are wanted
depends on the model's package. Nothing here loads torch. Held by tests/inputs/test_inputs.py and
tests/inputs/test_sources.py.
"""

import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from causalmm.errors import RequestError
from causalmm.inputs.images import open_image
from causalmm.inputs.json_lines import read_json
from causalmm.inputs.sources import find_source
from causalmm.inputs.stored_pictures import StoredPicture
from causalmm.inputs.video import check_sizes, check_video, frame_files, is_folder

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant")
LIMITS = ("min_pixels", "max_pixels")
IMAGE_SETTINGS = (*LIMITS, "resized_height", "resized_width")
VIDEO_SETTINGS = (
    *IMAGE_SETTINGS,
    *("total_pixels", "fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"),
    *("sample_fps", "raw_fps"),
)
MAX_FRAMES = 768
"""Of one video, as in qwen_vl_utils."""


def one_turn(
    images: Sequence[Any], prompt: str | None, video: str | Path | None = None
) -> list[dict[str, Any]]:
    """A user's turn: the images, then video and prompt where there are such."""
    parts = [{"type": "image", "image": image} for image in images]
    if video is not None:
        parts.append({"type": "video", "video": video})
    if prompt is not None:
        parts.append(text_part(prompt))
    return [{"role": "user", "content": parts}]


def text_part(text: str) -> dict[str, Any]:
    """The part of a message that holds text."""
    return {"type": "text", "text": text}


def check_prompt(prompt: str) -> None:
    """Raise RequestError for a prompt that is blank or no text."""
    if not prompt.strip():
        raise RequestError("the prompt is empty")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise RequestError("the prompt is not valid text in this locale's encoding") from None


def parts_of(messages: Sequence[Message], kind: str) -> Iterator[dict[str, Any]]:
    """The parts of a type, in the order of the conversation."""
    for message in messages:
        yield from (part for part in message["content"] if part["type"] == kind)


def limit_sizes(
    messages: Sequence[dict[str, Any]], limits: Mapping[str, int]
) -> list[dict[str, Any]]:
    """An opened conversation with `limits` on each picture that says nothing of its size."""
    return [
        each | {"content": [_limited(part, limits) for part in each["content"]]}
        for each in messages
    ]


def read_messages(path: str | Path, *, allow_network: bool = False) -> list[dict[str, Any]]:
    """The conversation in a JSON file, opened.

    Raises RequestError where the file cannot be read or `open_messages` refuses what it holds.
    """
    return open_messages(read_json(Path(path)), allow_network=allow_network)


def open_messages(
    messages: Sequence[Message], *, allow_network: bool = False
) -> list[dict[str, Any]]:
    """The conversation in the one form; what already has it stays as it is.

    Pictures at http(s) addresses are fetched only with `allow_network`. Raises RequestError for
    anything that is no conversation waiting for an answer, an unknown setting, or a picture that
    cannot be opened.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError("the messages are no list of messages with a role and a content")
    opened = [
        _message(f"message {number}", each, allow_network)
        for number, each in enumerate(messages, 1)
    ]
    if opened[-1]["role"] == "assistant":
        raise RequestError("the last message is the assistant's: expected a user's, to be answered")
    return opened


def _limited(part: dict[str, Any], limits: Mapping[str, int]) -> dict[str, Any]:
    if part["type"] == "text" or part.keys() & set(IMAGE_SETTINGS):
        return part
    return part | limits


def _message(where: str, message: Any, allow_network: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise RequestError(f"{where}: expected an object with a role of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, str):
        content = [text_part(content)]
    if not isinstance(content, Sequence) or not content:
        raise RequestError(f"{where}: expected a content, text or a list of parts")
    return {
        "role": message["role"],
        "content": [
            _part(f"{where}, part {number}", each, allow_network)
            for number, each in enumerate(content, 1)
        ],
    }


def _part(where: str, part: Any, allow_network: bool) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise RequestError(f"{where}: expected an object with a type")
    kind = part.get("type") or next((name for name in _SOURCES if name in part), None)
    names = _SOURCES.get(kind, ()) if isinstance(kind, str) else ()
    name = next((name for name in names if name in part), None)
    if name is None:
        raise RequestError(f"{where}: expected a type of text, image or video, and what is of it")
    # Misspelled, or a second kind, of which qwen_vl_utils and chat templates pick one.
    others = {key: value for key, value in part.items() if key not in ("type", name)}
    if kind == "text":
        return _text(where, part[name], others)
    source = _address(where, part[name]) if name == "image_url" else part[name]
    return (_video if kind == "video" else _image)(where, source, others, allow_network)


_SOURCES = {
    "text": ("text",),
    "image": ("image", "image_url", "path", "url"),
    "image_url": ("image_url", "image", "path", "url"),
    "video": ("video", "path", "url"),
}
"""Where a part of a type holds what it is about."""


def _address(where: str, source: Any) -> Any:
    """Out of the object in which OpenAI's form has it."""
    if not isinstance(source, Mapping):
        return source
    detail = source.get("detail", "auto")
    if "url" not in source or source.keys() - {"url", "detail"}:
        raise RequestError(f"{where}: expected an image_url with a url, and nothing but a detail")
    if detail != "auto":
        raise RequestError(
            f"{where}: detail={detail!r}: expected auto; min_pixels and max_pixels set a size"
        )
    return source["url"]


def _text(where: str, text: Any, others: Mapping[str, Any]) -> dict[str, Any]:
    _check_settings(where, others, "text", ())
    if not isinstance(text, str):
        raise RequestError(f"{where}: text={text!r}: expected text")
    return text_part(text)


def _image(
    where: str, source: Any, settings: Mapping[str, Any], allow_network: bool
) -> dict[str, Any]:
    _check_settings(where, settings, "image", IMAGE_SETTINGS)
    opened = _open_image(where, source, "resized_height" in settings, allow_network)
    return {"type": "image", "image": opened, **settings}


def _video(
    where: str, source: Any, settings: Mapping[str, Any], allow_network: bool
) -> dict[str, Any]:
    _check_settings(where, settings, "video", VIDEO_SETTINGS)
    if "fps" in settings and "nframes" in settings:
        raise RequestError(f"{where}: fps and nframes exclude each other")
    name = f"{where}: the video"
    if isinstance(source, str | Path):
        source, name = find_source(where, source, "video", allow_network=allow_network)
    if isinstance(source, Path) and is_folder(source):
        source = frame_files(source)
    if isinstance(source, Path | bytes):
        check_video(source, name)
        return {"type": "video", "video": source, **settings}
    if not isinstance(source, Sequence) or not 0 < len(source) <= MAX_FRAMES:
        raise RequestError(
            f"{where}: expected a video file, a folder of frames, or a list of them, at most "
            f"{MAX_FRAMES}"
        )
    any_sides = "resized_height" in settings
    frames = [_open_image(where, each, any_sides, allow_network) for each in source]
    check_sizes(frames, where)
    return {"type": "video", "video": frames, **settings}


def _check_settings(
    where: str, settings: Mapping[str, Any], kind: str, allowed: Sequence[str]
) -> None:
    for name, value in settings.items():
        if name not in allowed:
            raise RequestError(f"{where}: unknown {name!r} beside its {kind}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        least = 0 if name == "video_start" else 1e-6
        if number and value > sys.maxsize:
            raise RequestError(f"{where}: {name} is too large: expected at most {sys.maxsize}")
        if not number or not value >= least:
            raise RequestError(f"{where}: {name}={value!r}: expected a number > 0")
    if ("resized_height" in settings) != ("resized_width" in settings):
        raise RequestError(f"{where}: resized_height and resized_width go together")
    if settings.get("min_pixels", 0) > settings.get("max_pixels", math.inf):
        raise RequestError(f"{where}: min_pixels is more than max_pixels")


def _open_image(where: str, source: Any, any_sides: bool, allow_network: bool) -> Image.Image:
    if isinstance(source, Image.Image):
        return open_image(source, f"{where}: the image", any_sides=any_sides)
    if isinstance(source, StoredPicture):  # a benchmark's, never one that a user names
        return open_image(io.BytesIO(source.read()), str(source), any_sides=any_sides)
    if not isinstance(source, str | Path):
        raise RequestError(f"{where}: expected an image, found {type(source).__name__}")
    found = find_source(where, source, "image", allow_network=allow_network)
    content = io.BytesIO(found.content) if isinstance(found.content, bytes) else found.content
    return open_image(content, found.name, any_sides=any_sides)
