"""The score of one run: as data, as JSON and as a table to print.

Tests: tests/evaluation/test_scoring.py.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby
from typing import Any

from causalmm.evaluation.statistics import LEVEL, RESAMPLES, Estimate, estimates
from causalmm.evaluation.tally import Pair, Tally, has_failed
from causalmm.evaluation.two_way import TwoWay, two_way

BOOTSTRAP = {"level": LEVEL, "resamples": RESAMPLES, "seed": 0}
"""How the intervals of a report are made."""
_QUOTED = 60
"""Characters of an answer that a table quotes."""


def to_json(value: Any) -> Any:
    """A dataclass as a dictionary of its fields, if it does not say otherwise, with all that is in
    it; NaN, which JSON does not have, is None."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return {each.name: to_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: to_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@dataclass(frozen=True, kw_only=True)
class Score:
    """Some of the questions, read by one rule."""

    name: str
    rule: str
    metrics: Mapping[str, Estimate]
    counts: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is said about one run."""

    benchmark: str
    questions: int
    images: int
    scores: tuple[Score, ...]
    two_way: tuple[TwoWay, ...]
    """Where answers came with probabilities."""
    failed: Mapping[str, str]
    """The error by question id."""
    unreadable: Mapping[str, str]
    """The answer by question id."""
    bootstrap: Mapping[str, int]

    def table(self) -> str:
        """For reading: per cent and points, each with its interval, then what needs a remark."""
        blocks = [
            f"{self.benchmark}: {self.questions} questions about {self.images} images; "
            f"[{LEVEL} % bootstrap intervals over images]"
        ]
        blocks += [_score_table(list(each)) for _, each in groupby(self.scores, _columns)]
        if self.two_way:
            blocks.append(_two_way_table(self.two_way))
        if notes := self._notes():
            blocks.append("\n".join(notes))
        return "\n\n".join(blocks)

    def _notes(self) -> list[str]:
        notes = [note for score in self.scores for note in score.notes]
        for what, texts in (("failed", self.failed), ("cannot be read", self.unreadable)):
            if texts:
                name, text = next(iter(texts.items()))
                quoted = " ".join(text.split())[:_QUOTED]
                plural = "answers" if len(texts) > 1 else "answer"
                notes.append(f"{len(texts)} {plural} {what} (first: {name}, {quoted!r})")
        return notes


def make_report(benchmark: str, pairs: Sequence[Pair], tallies: Sequence[Tally]) -> Report:
    """The report on a benchmark's tallies of a run."""
    by_id = {pair.question.id: pair for pair in pairs}
    headlines = [each for each in tallies if each.headline]
    unreadable = frozenset().union(*(each.unreadable for each in headlines))
    return Report(
        benchmark=benchmark,
        questions=len(pairs),
        images=len({pair.question.image for pair in pairs}),
        scores=tuple(map(_score, tallies)),
        two_way=tuple(
            row
            for each in headlines
            for row in two_way(each.name, [by_id[id] for id in each.right])
        ),
        failed={
            question.id: answer.error or "no answer"
            for question, answer in pairs
            if has_failed(answer)
        },
        unreadable={
            question.id: answer.answer or ""
            for question, answer in pairs
            if question.id in unreadable
        },
        bootstrap=BOOTSTRAP,
    )


def text_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1) -> str:
    """An aligned Markdown table: so many columns to the left, the others to the right."""
    cells = [list(header), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = [str.ljust if column < left else str.rjust for column in range(len(widths))]
    rule = ["-" * width for width in widths[:left]]
    rule += ["-" * (width - 1) + ":" for width in widths[left:]]
    lines = [
        [side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)]
        for row in (cells[0], rule, *cells[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _score(tally: Tally) -> Score:
    totals = tally.table.totals()
    undefined = [name for name, metric in tally.metrics.items() if metric.undefined(totals)]
    notes = [f"{tally.name}, {tally.rule}: {name} is 0 / 0, shown as 0" for name in undefined]
    return Score(
        name=tally.name,
        rule=tally.rule,
        metrics=estimates(tally.table, tally.metrics),
        counts={name: round(totals[name]) for name in tally.counted},
        notes=(*tally.notes, *notes),
    )


def _columns(score: Score) -> tuple[str, ...]:
    return (*score.metrics, *score.counts)


def _score_table(scores: Sequence[Score]) -> str:
    rules = len({score.rule for score in scores}) > 1
    rows = [
        [score.name, *[score.rule] * rules, *score.metrics.values(), *score.counts.values()]
        for score in scores
    ]
    return text_table(["", *["rule"] * rules, *_columns(scores[0])], rows, left=1 + rules)


def _two_way_table(rows: Sequence[TwoWay]) -> str:
    cells = []
    for row in rows:
        metrics = [each.text("+" * (name == "bias gain")) for name, each in row.metrics.items()]
        biases = ", ".join(f"{round(bias, 2) + 0.0:+.2f}" for bias in row.biases)
        spread = "-" if math.isnan(row.spread) else f"{row.spread:.2f}"
        leans = [row.shift.text("+", digits=2), spread]
        cells.append([row.name, row.view, *metrics, biases, *leans, row.questions])
    header = ["more probable choice", "view", *rows[0].metrics, "biases"]
    header += ["log-odds shift", "its spread", "questions"]
    return text_table(header, cells, left=2)
