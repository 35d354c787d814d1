"""Runs over the same questions side by side and against a base, paired.

Every metric's difference has a bootstrap interval from resamples of images that both runs share.
McNemar's exact test asks whether, where only one run is right, it is as often the one as the other;
unlike the intervals, it takes the questions about one image for independent.
Held by tests/evaluation/test_compare.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causalmm.errors import RequestError
from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.report import Report, make_report, text_table
from causalmm.evaluation.statistics import (
    LEVEL,
    RESAMPLES,
    Estimate,
    differences,
    mcnemar,
)
from causalmm.evaluation.tally import Pair, Tally, join
from causalmm.evaluation.two_way import DECIDING, auc_difference

_SIGNALS = ("yes ratio", "AUC", "bias gain")
_COUNTS = ("unreadable", "failed")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One run less a base, on some of the questions."""

    name: str
    """Of the questions, as in a report."""
    run: str
    base: str
    questions: int
    """That both runs have an answer to."""
    metrics: Mapping[str, Estimate]
    only_run: int
    """Questions that only the run answers right."""
    only_base: int
    p: float
    """McNemar's, exact and two-sided."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "run": self.run,
            "base": self.base,
            "questions": self.questions,
            "metrics": {name: each.to_dict() for name, each in self.metrics.items()},
            "only_run_right": self.only_run,
            "only_base_right": self.only_base,
            "mcnemar_p": self.p,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every run's report, read by the benchmark's main rule, and its differences to the bases."""

    benchmark: str
    bases: tuple[str, ...]
    reports: Mapping[str, Report]
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "benchmark": self.benchmark,
            "bases": list(self.bases),
            "reports": {name: each.to_dict() for name, each in self.reports.items()},
            "differences": [each.to_dict() for each in self.differences],
        }

    def table(self) -> str:
        """For reading: all runs side by side, then what each adds to each base, in points."""
        first = next(iter(self.reports.values()))
        blocks = [
            f"{self.benchmark}: {first.questions} questions about {first.images} images, read by "
            f"the rule: {first.scores[0].rule}; [{LEVEL} % bootstrap intervals over images]",
            self._levels(),
        ]
        for base in self.bases:
            blocks += [f"differences to {base} (paired):", self._differences(base)]
        return "\n\n".join(blocks)

    def _levels(self) -> str:
        reports = self.reports
        first = next(iter(reports.values()))
        signals = {name: _signals(report) for name, report in reports.items()}
        metrics = first.scores[0].metrics
        # POPE's own yes ratio, that of the answers as read, goes before that of P(yes).
        shown = [name for name in _SIGNALS if any(signals.values()) and name not in metrics]
        rows = []
        for at, score in enumerate(first.scores):
            for name, report in reports.items():
                ours, signal = report.scores[at], signals[name].get(score.name, {})
                rows.append(
                    [
                        score.name,
                        name,
                        *map(str, ours.metrics.values()),
                        *(str(signal[each]) if each in signal else "-" for each in shown),
                        *(str(ours.counts.get(each, 0)) for each in _COUNTS),
                    ]
                )
        header = ["", "run", *metrics, *shown, *_COUNTS]
        return text_table(header, rows, left=2)

    def _differences(self, base: str) -> str:
        found = [each for each in self.differences if each.base == base]
        # AUC is there only where both runs have probabilities.
        metrics = list(dict.fromkeys(name for each in found for name in each.metrics))
        rows = [
            [
                each.name,
                each.run,
                *(
                    each.metrics[name].text("+") if name in each.metrics else "-"
                    for name in metrics
                ),
                str(each.only_run),
                str(each.only_base),
                f"{each.p:.3g}",
                str(each.questions),
            ]
            for each in found
        ]
        header = ["", "run", *metrics, "only run", f"only {base}", "McNemar p", "questions"]
        return text_table(header, rows, left=2)


def compare(
    benchmark: str,
    tally: Callable[[Sequence[Pair]], list[Tally]],
    questions: Sequence[Question],
    runs: Mapping[str, Mapping[str, Answer]],
    *,
    bases: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Every run against each of the bases, or against the first run.

    `runs` are answers by question id, by the name of the run. Raises RequestError for less than two
    runs, a base that is none of them, or runs over different questions.
    """
    if len(runs) < 2:
        raise RequestError("a comparison needs two runs or more")
    first, *others = runs
    bases = tuple(dict.fromkeys(bases)) or (first,)
    for base in bases:
        if base not in runs:
            raise RequestError(f"base {base!r}: expected one of the runs {', '.join(runs)}")
    for name in others:
        _check_same(first, runs[first], name, runs[name])
    pairs = {name: join(questions, answers) for name, answers in runs.items()}
    tallies = {name: _headlines(tally, each) for name, each in pairs.items()}
    found = []
    for base in bases:
        rows = [
            _differences(name, base, tally, pairs, tallies, resamples, seed)
            for name in runs
            if name != base
        ]
        # By questions first, so that a table has its runs together.
        found += [each for same in zip(*rows, strict=True) for each in same]
    return Comparison(
        benchmark=benchmark,
        bases=bases,
        reports={
            name: make_report(benchmark, each, tallies[name], resamples=resamples, seed=seed)
            for name, each in pairs.items()
        },
        differences=tuple(found),
    )


def _check_same(
    base: str, base_answers: Mapping[str, Answer], name: str, answers: Mapping[str, Answer]
) -> None:
    """Raise RequestError where two runs answered different questions."""
    for one, other, missing in (
        (name, base, base_answers.keys() - answers.keys()),
        (base, name, answers.keys() - base_answers.keys()),
    ):
        if missing:
            raise RequestError(
                f"{one} lacks {len(missing)} of the questions of {other} (first: {min(missing)}): "
                "runs are compared over the same questions"
            )


def _differences(
    run: str,
    base: str,
    tally: Callable[[Sequence[Pair]], list[Tally]],
    pairs: Mapping[str, Sequence[Pair]],
    tallies: Mapping[str, list[Tally]],
    resamples: int,
    seed: int,
) -> list[Difference]:
    """A run less a base, on all sets of questions."""
    ours, theirs = tallies[run], tallies[base]
    both = _counted(ours) & _counted(theirs)
    kept = {
        name: {pair.question.id: pair for pair in pairs[name] if pair.question.id in both}
        for name in (run, base)
    }
    if len(both) < len(pairs[base]):
        # A caption that failed is left out of its run's measures: leave it out of both.
        ours, theirs = (_headlines(tally, list(kept[name].values())) for name in (run, base))
    return [
        _difference(run, base, mine, other, kept, resamples, seed)
        for mine, other in zip(ours, theirs, strict=True)
    ]


def _difference(
    run: str,
    base: str,
    ours: Tally,
    theirs: Tally,
    pairs: Mapping[str, Mapping[str, Pair]],
    resamples: int,
    seed: int,
) -> Difference:
    metrics = differences(ours.table, theirs.table, theirs.metrics, resamples, seed)
    asked = list(theirs.right)
    gain = auc_difference(
        *([pairs[name][id] for id in asked] for name in (run, base)), resamples, seed
    )
    if gain is not None:
        metrics["AUC"] = gain
    only_run = sum(ours.right[id] and not theirs.right[id] for id in asked)
    only_base = sum(theirs.right[id] and not ours.right[id] for id in asked)
    return Difference(
        name=theirs.name,
        run=run,
        base=base,
        questions=len(asked),
        metrics=metrics,
        only_run=only_run,
        only_base=only_base,
        p=mcnemar(only_run, only_base),
    )


def _headlines(
    tally: Callable[[Sequence[Pair]], list[Tally]], pairs: Sequence[Pair]
) -> list[Tally]:
    return [each for each in tally(pairs) if each.headline]


def _counted(tallies: Sequence[Tally]) -> set[str]:
    """Ids of the questions that are right or wrong."""
    return {id for each in tallies for id in each.right}


def _signals(report: Report) -> dict[str, dict[str, Estimate]]:
    """What P(yes) says under the view that a run decides by, by the name of the questions."""
    found: dict[str, dict[str, Estimate]] = {}
    for view in reversed(DECIDING):
        for row in report.two_way:
            if row.view == view:
                found[row.name] = {name: row.metrics[name] for name in _SIGNALS}
    return found
