"""Video as frames: a folder of images, or a file that PyAV decodes.

PyAV comes with qwen-vl-utils and brings its own decoders; of the readers that qwen-vl-utils itself
would call, torchvision's no longer exists and the others are further installations.
Held by tests/test_inputs.py.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from causalmm.errors import RequestError, first_line


class Length(NamedTuple):
    """How many frames a video has, and how many of them are a second."""

    frames: int
    fps: float


def frame_files(folder: Path) -> list[Path]:
    """The files of a folder in the order of their names, frame2 before frame10.

    Raises RequestError where it holds none.
    """
    with _readable(folder):
        files = [each for each in folder.iterdir() if each.is_file() and each.name[0] != "."]
    if not files:
        raise RequestError(f"{folder} holds no frames")
    return sorted(files, key=_in_order)


def check_video(path: Path) -> None:
    """Raise RequestError unless `path` can be opened as a video."""
    with _opened(path):
        pass


def length(path: Path) -> Length:
    """Of a video file, counted: not every container says.

    Raises RequestError where it cannot be read.
    """
    with _opened(path) as stream:
        frames = sum(packet.size > 0 for packet in stream.container.demux(stream))
        rate = stream.average_rate or stream.guessed_rate
    if not frames:
        raise RequestError(f"{path} is a video without frames")
    return Length(frames, float(rate or 1))


def decode(path: Path, chosen: Sequence[int]) -> list[Image.Image]:
    """The frames of ascending numbers `chosen`, in mode RGB, as many as asked for.

    Raises RequestError where the file is damaged.
    """
    wanted, frames = set(chosen), {}
    with _opened(path) as stream:
        stream.thread_type = "AUTO"
        for number, frame in enumerate(stream.container.decode(stream)):
            if number in wanted:
                frames[number] = frame.to_image()
            if number == chosen[-1]:
                break
    if not frames:
        raise RequestError(f"{path} is a damaged or truncated video")
    # A decoder may keep frames back that the container counts: the one before stands in.
    kept = [max((number for number in frames if number <= each), default=None) for each in chosen]
    return [frames[min(frames) if number is None else number] for number in kept]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The video stream of a file."""
    try:
        import av
    except ImportError as error:
        raise RequestError(
            "a video file is decoded by the package av, which cannot be loaded here: install it, "
            "or give a folder of frames"
        ) from error
    with _readable(path), open(path, "rb"):
        pass
    try:
        # Opened here, because FFmpeg would take some names for addresses.
        with open(path, "rb") as file, av.open(file) as container:
            if not container.streams.video:
                raise RequestError(f"{path} holds no video")
            yield container.streams.video[0]
    except (av.error.FFmpegError, OSError) as error:
        raise RequestError(
            f"{path} is not a whole video that FFmpeg can read ({first_line(error)})"
        ) from error


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
