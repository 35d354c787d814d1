"""Video as frames: a folder of images, or a file that PyAV decodes.

PyAV comes with qwen-vl-utils and brings its own decoders; of the readers that qwen-vl-utils itself
would call, torchvision's no longer exists and the others are further installations.
Held by tests/inputs/test_inputs.py.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from causalmm.errors import RequestError, first_line
from causalmm.inputs.images import is_picture


class Length(NamedTuple):
    """How many frames a video has, and how many of them are a second."""

    frames: int
    fps: float


def is_folder(path: Path) -> bool:
    """Whether a video is a folder of frames. Raises RequestError where that may not be known."""
    with _readable(path):
        return path.is_dir()


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names, frame2 before frame10.

    Raises RequestError where it holds none.
    """
    with _readable(folder):
        files = [each for each in folder.iterdir() if each.is_file() and each.name[0] != "."]
        pictures = [each for each in files if is_picture(each)]
    if not pictures:
        others = f": none of its {len(files)} files is a picture" if files else ""
        raise RequestError(f"{folder} holds no frames{others}")
    return sorted(pictures, key=_in_order)


def check_video(source: Path | bytes, name: str) -> None:
    """Raise RequestError unless a file, or its content, can be opened as a video."""
    with _opened(source, name):
        pass


def check_sizes(frames: Sequence[Image.Image], name: str) -> None:
    """Raise RequestError for frames of a video that are not of one size."""
    if sizes := {each.size for each in frames} - {frames[0].size}:
        (width, height), (other_width, other_height) = frames[0].size, min(sizes)
        raise RequestError(
            f"{name}: the frames of a video are of one size, these are {width} x {height} and "
            f"{other_width} x {other_height}"
        )


def frame_size(source: Path | bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels of a video's frames, as its header says.

    Raises RequestError where it cannot be opened.
    """
    with _opened(source, name) as stream:
        return stream.codec_context.width, stream.codec_context.height


def length(source: Path | bytes) -> Length:
    """Of a video, counted: not every container says.

    Raises RequestError where it cannot be read.
    """
    with _opened(source) as stream:
        frames = sum(packet.size > 0 for packet in stream.container.demux(stream))
        rate = stream.average_rate or stream.guessed_rate
    if not frames:
        raise RequestError(f"{_name(source)} is a video without frames")
    return Length(frames, float(rate or 1))


def decode(source: Path | bytes, chosen: Sequence[int]) -> list[Image.Image]:
    """The frames of ascending numbers `chosen`, upright, in mode RGB, as many as asked for.

    Raises RequestError where the video is damaged or its frames are not of one size.
    """
    wanted, frames = set(chosen), {}
    with _opened(source) as stream:
        stream.thread_type = "AUTO"
        for number, frame in enumerate(stream.container.decode(stream)):
            if number in wanted:
                frames[number] = _upright(frame)
            if number == chosen[-1]:
                break
    if not frames:
        raise RequestError(f"{_name(source)} is a damaged or truncated video")
    check_sizes(list(frames.values()), _name(source))
    # A decoder may keep frames back that the container counts: the one before stands in.
    kept = [max((number for number in frames if number <= each), default=None) for each in chosen]
    return [frames[min(frames) if number is None else number] for number in kept]


@contextlib.contextmanager
def _opened(source: Path | bytes, name: str | None = None) -> Iterator[Any]:
    """The video stream of a file. Sentences call it `name`."""
    name = name or _name(source)
    try:
        import av
    except ImportError as error:
        raise RequestError(
            "a video file is decoded by the package av, which cannot be loaded here: install it, "
            "or give a folder of frames"
        ) from error
    with contextlib.ExitStack() as stack:
        file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else None
        if file is None:
            # Opened here, because FFmpeg would take some names for addresses.
            with _readable(source):
                file = stack.enter_context(open(source, "rb"))
        try:
            with av.open(file) as container:
                if not container.streams.video:
                    raise RequestError(f"{name} holds no video")
                yield container.streams.video[0]
        except (av.error.FFmpegError, OSError) as error:
            raise RequestError(
                f"{name} is not a whole video that FFmpeg can read ({first_line(error)})"
            ) from error


def _upright(frame: Any) -> Image.Image:
    """A frame as it is meant to be seen: a telephone turns its videos by a mark in the file."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _name(source: Path | bytes) -> str:
    return "the video" if isinstance(source, bytes) else str(source)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise RequestError(f"no video file or folder of frames at {path}") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror or error})") from error


def _in_order(path: Path) -> list[tuple[int, str]]:
    return [
        (int(text), "") if text.isdecimal() else (0, text) for text in re.split(r"(\d+)", path.name)
    ]
