"""Answers counted: what every benchmark makes of a run, and what reports and comparisons read.

Questions and answers are joined by id. A failed answer, like one that cannot be read, is counted
apart and is never right. Tests: tests/evaluation/test_pope.py, test_mme.py, test_vlind.py,
test_chair.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from causalmm.errors import RequestError
from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.statistics import Metric, Table


class Pair(NamedTuple):
    """A question and its answer."""

    question: Question
    answer: Answer


class Reading(NamedTuple):
    """What an answer was taken for."""

    question: Question
    said: str | None
    """One of the question's choices; None where there is no answer or it cannot be read."""
    failed: bool
    """Nothing was generated."""

    @property
    def right(self) -> bool:
        """Whether the right choice was read."""
        return self.said is not None and self.said == self.question.label

    @property
    def unreadable(self) -> bool:
        """There is an answer that is neither choice."""
        return self.said is None and not self.failed


@dataclass(frozen=True, kw_only=True, eq=False)
class Tally:
    """One row of a report: some of the questions, read by one rule."""

    name: str
    rule: str
    """How answers were read."""
    table: Table
    metrics: Mapping[str, Metric]
    counted: tuple[str, ...]
    """Columns of the table that a report shows as they are."""
    right: Mapping[str, bool]
    """By question id."""
    unreadable: frozenset[str] = frozenset()
    """Ids of questions whose answer is there but was taken for no choice."""
    headline: bool = True
    """Whether comparisons and the signal are shown for it."""
    notes: tuple[str, ...] = ()


Matching = Callable[[Sequence[Pair], Sequence[Pair]], tuple[Sequence[Pair], Sequence[Pair]]]
"""Makes the answers of a run and of a base comparable: takes both and returns both, the questions
the same and in the same order. None of the answers has failed."""


def has_failed(answer: Answer) -> bool:
    """Whether nothing was generated."""
    return answer.answer is None or answer.error is not None


def join(questions: Sequence[Question], answers: Mapping[str, Answer]) -> list[Pair]:
    """Every question with its answer.

    Raises RequestError where answers are missing, or were given about another image or prompt.
    """
    if missing := [each.id for each in questions if each.id not in answers]:
        raise RequestError(
            f"{len(missing)} of {len(questions)} questions have no answer (first: {missing[0]}): "
            "finish the run, or give the flags that it was asked with, --limit among them"
        )
    pairs = [Pair(each, answers[each.id]) for each in questions]
    for question, answer in pairs:
        for what in ("image", "prompt"):
            asked, given = getattr(question, what), getattr(answer, what)
            if asked != given:
                raise RequestError(
                    f"the answer to {question.id} is about another {what} ({given!r}, expected "
                    f"{asked!r}): were the questions read with other flags?"
                )
    return pairs


def readings(pairs: Sequence[Pair], rule: Callable[[str, str], str | None]) -> list[Reading]:
    """Answers read by a rule."""
    return [
        Reading(question, None, True)
        if has_failed(answer)
        else Reading(question, rule(answer.answer, question.label or ""), False)
        for question, answer in pairs
    ]


def outcome(read: Sequence[Reading]) -> dict[str, Any]:
    """What a tally holds of single questions: `right` and `unreadable`."""
    return {
        "right": {each.question.id: each.right for each in read},
        "unreadable": frozenset(each.question.id for each in read if each.unreadable),
    }
