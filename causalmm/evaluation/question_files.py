"""What a question file must hold, and which of its questions are asked.

Tests: tests/evaluation/test_pope.py, test_mme.py, test_vlind.py, test_chair.py, test_hallusion.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from causalmm.cli.terminal import tell
from causalmm.errors import RequestError
from causalmm.evaluation.records import Question
from causalmm.inputs.stored_pictures import is_there, read_index


def field(row: dict[str, Any], name: str, where: str) -> str:
    """A text that a row must have; `where` begins the sentence that says it has none.

    Raises RequestError where it is missing or blank.
    """
    return _value(row, name, where, str, "text")


def identifier(row: dict[str, Any], name: str, where: str) -> str:
    """A text or whole number that a row must have, as text; raises as `field` does."""
    return str(_value(row, name, where, str | int, "text or a whole number"))


def _value(row: dict[str, Any], name: str, where: str, kind: Any, expected: str) -> Any:
    if name not in row:
        raise RequestError(f"{where} has no {name}")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, kind) or not str(value).strip():
        raise RequestError(f"{where} has {name} {value!r}: expected {expected}")
    return value


def check_unique(questions: Sequence[Question]) -> None:
    """Raise RequestError where two questions have one id."""
    seen = set()
    for each in questions:
        if each.id in seen:
            raise RequestError(f"two questions have the id {each.id!r}")
        seen.add(each.id)


def limited(questions: Sequence[Question], images: int | None) -> list[Question]:
    """Those about the first `images` images; None: all."""
    asked = set(list(dict.fromkeys(question.image for question in questions))[:images])
    return [question for question in questions if question.image in asked]


def with_pictures(questions: Sequence[Question], folders: Iterable[Path]) -> list[Question]:
    """The questions, each with the path of its picture where a folder's pictures.json has it.

    Raises RequestError for a pictures.json that cannot be read.
    """
    index: dict[str, str] = {}
    for folder in folders:
        index = read_index(folder) | index
    return [replace(each, path=index.get(each.image, each.path)) for each in questions]


def check_images(questions: Sequence[Question]) -> None:
    """Say how many of their images are missing. Raises RequestError where none is there."""
    paths = list(dict.fromkeys(question.path for question in questions if question.path))
    missing = [path for path in paths if not is_there(path)]
    if missing and len(missing) == len(paths):
        raise RequestError(f"none of the {len(paths)} images is there (first: {paths[0]})")
    if missing:
        tell(f"{len(missing)} of {len(paths)} images are missing (first: {missing[0]})")
