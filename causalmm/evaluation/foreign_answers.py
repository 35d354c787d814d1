"""Answers as the scripts of LLaVA and VCD write them: JSON lines with `question_id` and `text`.

`question_id` is that of the benchmark's question file. Lines may have `prompt` and `image`, too,
which are compared with the question's, since ids alone do not tell one file of questions from
another. Tests: tests/evaluation/test_foreign_answers.py.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from causalmm.errors import RequestError
from causalmm.evaluation.question_files import identifier
from causalmm.evaluation.records import Answer, Question
from causalmm.inputs.json_lines import read_json_lines, read_lines, to_object


def is_foreign(file: Path) -> bool:
    """Whether the first line of a file has a `text`, and is none of a run's."""
    _, first = next(read_lines(file), (0, ""))
    record = to_object(first)
    return "text" in record and "error" not in record


def read_foreign(file: Path, questions: Sequence[Question]) -> dict[str, Answer]:
    """The answers by our ids of the questions, of which some may be left without one.

    Raises RequestError for a line that is no answer, an id that is there twice, that no question
    has or that several have, and an answer about another image or prompt.
    """
    known: dict[str, list[Question]] = {}
    for question in questions:
        # In the benchmark's own file, the id may be another one.
        for name in {question.id, str(question.facts.get("question_id", question.id))}:
            known.setdefault(name, []).append(question)
    answers, seen = {}, Counter()
    for number, row in read_json_lines(file):
        where = f"{file} line {number}"
        name, text = identifier(row, "question_id", where), row.get("text")
        if not isinstance(text, str):
            raise RequestError(f"{where} has text {text!r}: expected the answer")
        seen[name] += 1
        question, *others = known.get(name, [None])
        if others:
            raise RequestError(
                f"{where}: question_id {name} is that of {question.id} and {others[0].id}: give "
                "the one question file that these are answers to"
            )
        if question is not None:
            _check(row, question, where)
            answers[question.id] = question.answered(text)
    twice = [name for name, count in seen.items() if count > 1]
    unknown = [name for name in seen if name not in known]
    for names, what in ((twice, "there more than once"), (unknown, "of no question")):
        if names:
            raise RequestError(
                f"{file}: {len(names)} of {len(seen)} question_ids are {what} (first: {names[0]})"
            )
    return answers


def _check(row: dict[str, Any], question: Question, where: str) -> None:
    """Raise RequestError where the answer is about something else than the question."""
    image, prompt = row.get("image"), row.get("prompt")
    text = str(question.facts.get("text", question.prompt))
    image_name, asked_name = (PurePosixPath(str(each)).name for each in (image, question.image))
    for what, given, expected, same in (
        ("image", image, question.image, image_name == asked_name),
        # A script records a prompt with or without what it puts around the question.
        ("prompt", prompt, text, " ".join(text.split()) in " ".join(str(prompt).split())),
    ):
        if given is not None and not same:
            raise RequestError(
                f"{where}: the answer to {question.id} is about another {what} ({given!r}, "
                f"expected {expected!r}): is this the right question file?"
            )
