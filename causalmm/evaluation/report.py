"""The score of one run: as data, as JSON and as a table to print.

Held by tests/evaluation/test_scoring.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from causalmm.evaluation.statistics import LEVEL, RESAMPLES, Estimate, estimates
from causalmm.evaluation.tally import Pair, Tally, has_failed
from causalmm.evaluation.two_way import TwoWay, two_way

_QUOTED = 60
"""Characters of an answer that a table quotes."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Some of the questions, read by one rule."""

    name: str
    rule: str
    metrics: Mapping[str, Estimate]
    counts: Mapping[str, int]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "rule": self.rule,
            "metrics": {name: each.to_dict() for name, each in self.metrics.items()},
            "counts": dict(self.counts),
            "notes": list(self.notes),
        }


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
    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "benchmark": self.benchmark,
            "questions": self.questions,
            "images": self.images,
            "scores": [each.to_dict() for each in self.scores],
            "two_way": [each.to_dict() for each in self.two_way],
            "failed": dict(self.failed),
            "unreadable": dict(self.unreadable),
            "bootstrap": {"level": LEVEL, "resamples": self.resamples, "seed": self.seed},
        }

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


def make_report(
    benchmark: str,
    pairs: Sequence[Pair],
    tallies: Sequence[Tally],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Report:
    """The report on a benchmark's tallies of a run."""
    by_id = {pair.question.id: pair for pair in pairs}
    headlines = [each for each in tallies if each.headline]
    unreadable = frozenset().union(*(each.unreadable for each in headlines))
    return Report(
        benchmark=benchmark,
        questions=len(pairs),
        images=len({pair.question.image for pair in pairs}),
        scores=tuple(_score(each, resamples, seed) for each in tallies),
        two_way=tuple(
            row
            for each in headlines
            for row in two_way(each.name, [by_id[id] for id in each.right], resamples, seed)
        ),
        failed={
            pair.question.id: pair.answer.error or "no answer"
            for pair in pairs
            if has_failed(pair.answer)
        },
        unreadable={
            pair.question.id: pair.answer.answer or ""
            for pair in pairs
            if pair.question.id in unreadable
        },
        resamples=resamples,
        seed=seed,
    )


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """An aligned Markdown table: so many columns to the left, the others to the right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    rule = ["-" * width for width in widths[:left]]
    rule += ["-" * (width - 1) + ":" for width in widths[left:]]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in (cells[0], rule, *cells[1:])
    )


def _score(tally: Tally, resamples: int, seed: int) -> Score:
    totals = tally.table.totals()
    undefined = [name for name, metric in tally.metrics.items() if metric.undefined(totals)]
    notes = [f"{tally.name}, {tally.rule}: {name} is 0 / 0, shown as 0" for name in undefined]
    return Score(
        name=tally.name,
        rule=tally.rule,
        metrics=estimates(tally.table, tally.metrics, resamples, seed),
        counts={name: round(totals[name]) for name in tally.counted},
        notes=(*tally.notes, *notes),
    )


def _columns(score: Score) -> tuple[str, ...]:
    return (*score.metrics, *score.counts)


def _score_table(scores: Sequence[Score]) -> str:
    rules = len({score.rule for score in scores}) > 1
    header = ["", *(["rule"] if rules else []), *_columns(scores[0])]
    return text_table(
        header,
        (
            [
                score.name,
                *([score.rule] if rules else []),
                *map(str, score.metrics.values()),
                *map(str, score.counts.values()),
            ]
            for score in scores
        ),
        left=1 + rules,
    )


def _two_way_table(rows: Sequence[TwoWay]) -> str:
    header = ["more probable choice", "view", *rows[0].metrics, "biases", "questions"]
    return text_table(
        header,
        (
            [
                row.name,
                row.view,
                *(
                    each.text("+" if name == "bias gain" else "")
                    for name, each in row.metrics.items()
                ),
                ", ".join(f"{round(bias, 2) + 0.0:+.2f}" for bias in row.biases),
                str(row.questions),
            ]
            for row in rows
        ),
        left=2,
    )
