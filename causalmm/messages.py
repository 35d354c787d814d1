"""Conversations in the form of qwen_vl_utils, checked, with every picture opened.

A conversation is a list of messages {"role", "content"}; content is text or a list of parts:

    {"type": "text", "text": ...}
    {"type": "image", "image": path, file://, data:image/...;base64, or PIL image, sizes}
    {"type": "video", "video": path or file:// of a file or folder, or a list of frames, settings}

The one form that comes out holds parts only, images as RGB and videos as lists of RGB frames; a
video file stays a path, since how many of its frames are wanted depends on the model's package.
Nothing here loads torch. Held by tests/test_inputs.py.
"""

import base64
import binascii
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from causalmm.errors import RequestError
from causalmm.images import open_image
from causalmm.video import check_video, frame_files

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant")
IMAGE_SETTINGS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
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


def read_messages(path: str | Path) -> list[dict[str, Any]]:
    """The conversation in a JSON file, opened.

    Raises RequestError where the file cannot be read or `open_messages` refuses what it holds.
    """
    try:
        messages = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON ({error})") from error
    return open_messages(messages)


def open_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation in the one form; what already has it stays as it is.

    Raises RequestError for anything that is no conversation waiting for an answer, an unknown
    setting, or a picture that cannot be opened.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError("the messages are no list of messages with a role and a content")
    opened = [_message(f"message {number}", each) for number, each in enumerate(messages, 1)]
    if opened[-1]["role"] == "assistant":
        raise RequestError("the last message is the assistant's: expected a user's, to be answered")
    return opened


def _message(where: str, message: Any) -> dict[str, Any]:
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
            _part(f"{where}, part {number}", each) for number, each in enumerate(content, 1)
        ],
    }


def _part(where: str, part: Any) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise RequestError(f"{where}: expected an object with a type")
    kind = part.get("type") or next((name for name in _OPENED if name in part), None)
    if not isinstance(kind, str) or kind not in _OPENED or kind not in part:
        raise RequestError(f"{where}: expected a type of text, image or video, and what is of it")
    return _OPENED[kind](where, part[kind], {**part, "type": kind})


def _text(where: str, text: Any, part: Mapping[str, Any]) -> dict[str, Any]:
    _settings(where, part, "text", ())
    if not isinstance(text, str):
        raise RequestError(f"{where}: text={text!r}: expected text")
    return text_part(text)


def _image(where: str, source: Any, part: Mapping[str, Any]) -> dict[str, Any]:
    settings = _settings(where, part, part["type"], IMAGE_SETTINGS)
    return {"type": "image", "image": _open_image(where, source), **settings}


def _video(where: str, source: Any, part: Mapping[str, Any]) -> dict[str, Any]:
    settings = _settings(where, part, "video", VIDEO_SETTINGS)
    if "fps" in settings and "nframes" in settings:
        raise RequestError(f"{where}: fps and nframes exclude each other")
    if isinstance(source, str | Path):
        path = Path(_local(where, source))
        if not path.is_dir():
            check_video(path)
            return {"type": "video", "video": path, **settings}
        source = frame_files(path)
    if not isinstance(source, Sequence) or not 0 < len(source) <= MAX_FRAMES:
        raise RequestError(
            f"{where}: expected a video file, a folder of frames, or a list of them, at most "
            f"{MAX_FRAMES}"
        )
    frames = [_open_image(where, each) for each in source]
    if sizes := {each.size for each in frames} - {frames[0].size}:
        (width, height), (other_width, other_height) = frames[0].size, min(sizes)
        raise RequestError(
            f"{where}: the frames of a video are of one size, these are {width} x {height} and "
            f"{other_width} x {other_height}"
        )
    return {"type": "video", "video": frames, **settings}


_OPENED = {"text": _text, "image": _image, "image_url": _image, "video": _video}


def _settings(
    where: str, part: Mapping[str, Any], kind: str, allowed: Sequence[str]
) -> dict[str, Any]:
    settings = {name: value for name, value in part.items() if name not in ("type", kind)}
    for name, value in settings.items():
        if name not in allowed:
            # Misspelled, or a second kind, of which qwen_vl_utils and chat templates pick one.
            raise RequestError(f"{where}: unknown {name!r} beside its {kind}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        least = 0 if name == "video_start" else 1e-6
        if not number or not least <= value < math.inf:
            raise RequestError(f"{where}: {name}={value!r}: expected a number > 0")
    if ("resized_height" in settings) != ("resized_width" in settings):
        raise RequestError(f"{where}: resized_height and resized_width go together")
    if settings.get("min_pixels", 0) > settings.get("max_pixels", math.inf):
        raise RequestError(f"{where}: min_pixels is more than max_pixels")
    return settings


def _open_image(where: str, source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return open_image(source, f"{where}: the image")
    if not isinstance(source, str | Path):
        raise RequestError(f"{where}: expected an image, found {type(source).__name__}")
    if str(source).startswith("data:"):
        head, _, data = str(source).partition("base64,")
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            content = b""
        if not head.startswith("data:image") or not content:
            raise RequestError(f"{where}: expected data:image/...;base64, and an image after it")
        return open_image(io.BytesIO(content), f"{where}: the image")
    return open_image(_local(where, source))


def _local(where: str, source: str | Path) -> str | Path:
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise RequestError(f"{where}: {source} is not fetched: download it first")
    return source.removeprefix("file://") if isinstance(source, str) else source
