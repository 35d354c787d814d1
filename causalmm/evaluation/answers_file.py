"""The answers file: a line an answer, written as it comes, by processes that may be killed.

The first process appends to answers.jsonl, process k to answers.jsonl.k, and each holds the lock of
its file until it ends. Once every question has an answer, whoever sees it joins the parts in the
order of the questions: the file is then the same however many wrote it. A question counts once, by
its first line; a line cut short does not count. Tests: tests/evaluation/test_answers_file.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from causalmm.cli.sole_writer import SUFFIX, sole_writer
from causalmm.errors import RequestError
from causalmm.evaluation.records import Answer, Question
from causalmm.inputs.json_lines import to_line, to_object, whole_lines, write_lines

ANSWERS = "answers.jsonl"
CONTROLS = ("greedy", "sample", "sample+mask", "causalmm", "causalmm+sample")
"""Folders of the runs of --controls, in the order of their table."""
SPURIOUS = ("greedy+yes prompt", "greedy+yes in doubt")
"""The same of --spurious."""
_FIELDS = {
    "question_id": str,
    "image": str,
    "prompt": str,
    "answer": str | None,
    "error": str | None,
    "seconds": int | float,
    "scores": dict | None,
}
_Lines = dict[str, tuple[Answer, bytes]]
"""Each question's first answer and its line, by the question's id."""


def read_answers(path: str | Path) -> dict[str, Answer]:
    """The answers of a run's folder, or of a file, by question id and in the order of the file.

    Raises RequestError where there is none, or a line is no answer.
    """
    path = Path(path)
    files = parts(path) if path.is_dir() else [path]
    if not any(file.is_file() for file in files):
        where = path / ANSWERS if path.is_dir() else path
        raise RequestError(f"there are no answers at {where}")
    return _answers(_read(files))


def find_runs(path: str | Path) -> dict[str, Path]:
    """The runs at a path by name: itself, or those in a folder of controls or of a grid.

    A run goes by the name of its folder, a file of another name by its own. Controls come in the
    order of their table, others by name. Raises RequestError where there is no run.
    """
    path = Path(path)
    if path.is_file() or parts(path):
        alone = path.is_file() and path.name != ANSWERS
        return {path.stem if alone else folder_of(path).name: path}
    names = sorted(each.name for each in path.glob("*") if parts(each))
    if not names:
        raise RequestError(f"there are no answers at {path}")
    first = [name for name in (*CONTROLS, *SPURIOUS) if name in names]
    return {name: path / name for name in dict.fromkeys([*first, *names])}


def folder_of(path: Path) -> Path:
    """The folder of a run that is given by it or by its answers file."""
    return (path.parent if path.name == ANSWERS and path.is_file() else path).resolve()


def parts(folder: Path) -> list[Path]:
    """The files of answers in a folder, the first process's first."""
    numbered = [(0, folder / ANSWERS)] if (folder / ANSWERS).exists() else []
    for file in folder.glob(f"{ANSWERS}.*"):
        if number := re.fullmatch(r"\.([1-9][0-9]*)", file.name.removeprefix(ANSWERS)):
            numbered.append((int(number[1]), file))
    return [file for _, file in sorted(numbered)]


def part_file(folder: Path, process: int) -> Path:
    """Where a process appends."""
    return folder / (f"{ANSWERS}.{process}" if process else ANSWERS)


def check_unwritten(folder: Path) -> None:
    """Raise RequestError where another process writes a part, for who holds the first one's lock.

    A process of an earlier run may outlive its first one.
    """
    locks = folder.glob(f".{ANSWERS}.*{SUFFIX}")
    locked = [file.with_name(file.name[1:].removesuffix(SUFFIX)) for file in locks]
    for file in {*parts(folder), *locked} - {part_file(folder, 0)}:
        with sole_writer(file):
            pass


def gather(folder: Path, questions: Sequence[Question]) -> dict[str, Answer]:
    """What is answered, by id. Joins the parts first where there are several.

    For one process at a time, while no other appends. Raises RequestError where a file holds
    anything but answers to these questions.
    """
    files = parts(folder)
    lines = _read(files)
    known = {question.id: question for question in questions}
    for name, (answer, _) in lines.items():
        asked = known.get(name)
        if asked is None or (asked.image, asked.prompt) != (answer.image, answer.prompt):
            raise RequestError(
                f"{folder} holds an answer to another question ({name}): give another folder"
            )
    if files not in ([], [folder / ANSWERS]) or len(lines) == len(known):
        _join(folder, files, lines, known)
    return _answers(lines)


def finish(folder: Path, questions: Sequence[Question]) -> dict[str, Answer] | None:
    """Join the parts if every question is answered; None where one is not.

    Any number of processes may call this when their own part is done: a file that another one has
    just joined and removed is missed, so that the count falls short, or not needed.
    """
    files = parts(folder)
    lines = _read(files)
    wanted = {question.id: question for question in questions}
    if lines.keys() != wanted.keys():
        return None
    _join(folder, files, lines, wanted)
    return _answers({name: lines[name] for name in wanted})


def drop_failed(folder: Path) -> None:
    """Forget the answers that failed, so that their questions are asked again. Leaves one part."""
    files = parts(folder)
    lines = _read(files)
    kept = {name: each for name, each in lines.items() if each[0].error is None}
    if len(kept) < len(lines):
        _join(folder, files, kept, kept)


def answer_line(answer: Answer) -> bytes:
    """As it stands in the file, the line's end included."""
    return to_line(asdict(answer))


def _answers(lines: _Lines) -> dict[str, Answer]:
    return {name: answer for name, (answer, _) in lines.items()}


def _join(folder: Path, files: Sequence[Path], lines: _Lines, order: Mapping[str, Any]) -> None:
    write_lines(folder / ANSWERS, (lines[name][1] for name in order if name in lines), files)


def _read(files: Sequence[Path]) -> _Lines:
    found: _Lines = {}
    for file in files:
        for number, line in enumerate(whole_lines(file), 1):
            answer = _answer(to_object(line), f"{file} line {number}")
            found.setdefault(answer.question_id, (answer, line))
    return found


def _answer(record: dict[str, Any], where: str) -> Answer:
    fields = {name: record.get(name) for name in _FIELDS}
    for name, kind in _FIELDS.items():
        if not isinstance(fields[name], kind):
            raise RequestError(f"{where} is no answer ({name}: {fields[name]!r})")
    if (fields["answer"] is None) == (fields["error"] is None):
        raise RequestError(f"{where} is no answer (expected either an answer or an error)")
    pairs = fields["scores"] or {}
    for pair in pairs.values():
        numbers = isinstance(pair, list) and all(isinstance(each, int | float) for each in pair)
        if not numbers or len(pair) != 2:
            raise RequestError(f"{where} is no answer (scores: expected pairs of numbers)")
    if pairs:
        fields["scores"] = {name: tuple(pair) for name, pair in pairs.items()}
    return Answer(**fields)
