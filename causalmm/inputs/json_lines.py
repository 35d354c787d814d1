"""Text, JSON and JSON lines: files that users give, and files that are appended to and resumed.

A line of a resumed file counts once its end is written; what a killed writer left after the last
one is no line. Tests: tests/inputs/test_json_lines.py, tests/cli/test_batch_command.py,
tests/evaluation/test_answers_file.py.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from causalmm.errors import RequestError


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises RequestError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror})") from error


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, a byte order mark in front allowed.

    Raises RequestError where it cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not text in UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x})"
        ) from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1."""
    # Not str.splitlines, for which a line ends at other characters too.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises RequestError where it cannot be read, is not JSON, or an object has a key twice.
    """
    text = read_text(path)
    try:
        return _parse(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON ({error})") from None


def read_records(data: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The objects in JSON lines, with the numbers of their lines; blank lines are left out.

    In the place of a line that is no JSON object comes the end of a sentence that says so.
    """
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            try:
                record = _parse(line.decode())
            except (ValueError, RecursionError) as error:
                yield number, f"is not JSON ({error})"
            else:
                yield number, record if isinstance(record, dict) else "is not a JSON object"


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON lines file, with the numbers of their lines.

    Raises RequestError for a line that is not a JSON object, a last one cut short among them.
    """
    records = list(read_records(read_text(path).encode()))
    for number, record in records:
        if isinstance(record, str):
            cut = number == records[-1][0] and record.startswith("is not JSON")
            hint = ": is the file cut short?" * cut
            raise RequestError(f"{path} line {number} {record}{hint}")
        yield number, record


def to_object(text: bytes | str) -> dict[str, Any]:
    """A JSON object; an empty one where the text is none."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def to_line(record: Mapping[str, Any]) -> bytes:
    """One line, its end included."""
    # Half of a surrogate pair, which UTF-8 does not have, stays the escape that it was in JSON.
    return (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def whole_lines(file: Path) -> list[bytes]:
    """The lines of a file with their ends, one cut short left out; none where there is no file."""
    written = b""
    # Another process may have joined its parts meanwhile, see `write_lines`.
    with contextlib.suppress(FileNotFoundError):
        written = file.read_bytes()
    return [line + b"\n" for line in written.split(b"\n")[:-1]]


def cut_torn_line(file: Path) -> None:
    """Remove what a killed writer left after the last whole line."""
    if file.exists():
        length = sum(map(len, whole_lines(file)))
        if length < file.stat().st_size:
            os.truncate(file, length)


def write_lines(file: Path, lines: Iterable[bytes], parts: Sequence[Path] = ()) -> None:
    """Make these the lines of a file, then remove the other files that they were in.

    Killed at any moment, every line is in one of the files, and at most in two.
    """
    data = b"".join(lines)
    if not file.exists() or file.read_bytes() != data:
        write_whole(file, data)
    for part in parts:
        if part != file:
            part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` in the place of a file, which is at every moment the old one or the new one."""
    path = path.resolve()
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(data)
    new.replace(path)


def write_json(path: Path, value: Any) -> None:
    """The same of a value as JSON for reading. Raises ValueError where it holds NaN."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode(errors="backslashreplace"))


def difference(written: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first setting that differs, in words; None where `written` holds all of `wanted`."""
    wanted = json.loads(json.dumps(wanted))
    for name, value in wanted.items():
        if written.get(name) != value:
            return f"{name}: {json.dumps(written.get(name))}, now {json.dumps(value)}"
    return None


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} is there twice")
    return read
