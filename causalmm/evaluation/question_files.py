"""Text, JSON and JSON lines that users give, read so that whatever is wrong is said in a sentence.

Held by tests/evaluation/test_pope.py, test_mme.py, test_vlind.py and test_chair.py.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from causalmm.cli.json_lines import read_bytes
from causalmm.errors import RequestError
from causalmm.evaluation.records import Question


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, a byte order mark in front allowed.

    Raises RequestError where there is no such file or it is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not text in UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x})"
        ) from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that hold anything, with their numbers from 1."""
    # Not str.splitlines, for which a line ends at other characters too.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises RequestError where it is not JSON, or an object has a key twice.
    """
    text = read_text(path)
    try:
        return _parse(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON ({error})") from None


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON lines file, with the numbers of their lines.

    Raises RequestError for a line that is not a JSON object, a last one cut short among them.
    """
    lines = list(read_lines(path))
    for number, line in lines:
        try:
            row = _parse(line)
        except (ValueError, RecursionError) as error:
            last = ": is the file cut short?" if number == lines[-1][0] else ""
            raise RequestError(f"{path} line {number} is not JSON ({error}){last}") from None
        if not isinstance(row, dict):
            raise RequestError(f"{path} line {number} is not a JSON object")
        yield number, row


def field(row: dict[str, Any], name: str, where: str) -> str:
    """A text that a row must have. `where` begins the sentence that says it has none."""
    if name not in row:
        raise RequestError(f"{where} has no {name}")
    if not isinstance(row[name], str) or not row[name].strip():
        raise RequestError(f"{where} has {name} {row[name]!r}: expected text")
    return row[name]


def identifier(row: dict[str, Any], name: str, where: str) -> str:
    """A text or whole number that a row must have, as text."""
    if name not in row:
        raise RequestError(f"{where} has no {name}")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise RequestError(f"{where} has {name} {value!r}: expected text or a whole number")
    return str(value)


def check_unique(questions: Sequence[Question]) -> None:
    """Raise RequestError where two questions have one id."""
    seen = set()
    for each in questions:
        if each.id in seen:
            raise RequestError(f"two questions have the id {each.id!r}")
        seen.add(each.id)


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} is there twice")
    return read
