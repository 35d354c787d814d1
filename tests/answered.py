"""Answers to questions, as a run leaves them, for tests of what is made of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from causalmm.evaluation.records import Answer, Question


def answered(
    questions: Sequence[Question],
    answers: Mapping[str, str] | Sequence[str] | Callable[[Question], str],
    scores: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> dict[str, Answer]:
    """Answers by question id: given by id, in the questions' order, or made from a question."""
    if callable(answers):
        answers = {each.id: answers(each) for each in questions}
    elif not isinstance(answers, Mapping):
        answers = {each.id: text for each, text in zip(questions, answers, strict=True)}
    return {
        each.id: each.answered(answers[each.id], scores=(scores or {}).get(each.id))
        for each in questions
    }


def failed(answers: dict[str, Answer], id: str, error: str = "out of memory") -> dict[str, Answer]:
    """The same, but for one question that got an error."""
    return answers | {id: replace(answers[id], answer=None, error=error, scores=None)}
