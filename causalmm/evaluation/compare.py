"""Runs over the same questions against the first: paired differences and McNemar's exact test.

Every metric's difference has a bootstrap interval from resamples of images that both runs share.
McNemar's test asks whether, where only one run is right, it is as often the one as the other.
Held by tests/test_compare.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causalmm.errors import RequestError
from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.report import text_table
from causalmm.evaluation.statistics import (
    LEVEL,
    RESAMPLES,
    Estimate,
    differences,
    estimates,
    mcnemar,
)
from causalmm.evaluation.tally import Pair, Tally, join
from causalmm.evaluation.two_way import auc_difference


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One run less the base, on some of the questions."""

    name: str
    """Of the questions, as in a report."""
    run: str
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
            "questions": self.questions,
            "metrics": {name: each.to_dict() for name, each in self.metrics.items()},
            "only_run_right": self.only_run,
            "only_base_right": self.only_base,
            "mcnemar_p": self.p,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every run against the base."""

    benchmark: str
    base: str
    rule: str
    levels: Mapping[str, Mapping[str, Estimate]]
    """The base's own metrics, by the name of the questions."""
    differences: tuple[Difference, ...]
    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "benchmark": self.benchmark,
            "base": self.base,
            "rule": self.rule,
            "levels": {
                name: {metric: each.to_dict() for metric, each in levels.items()}
                for name, levels in self.levels.items()
            },
            "differences": [each.to_dict() for each in self.differences],
            "bootstrap": {"level": LEVEL, "resamples": self.resamples, "seed": self.seed},
        }

    def table(self) -> str:
        """For reading: the base's own values, and below each what the others add, in points."""
        title = (
            f"{self.benchmark}: differences to {self.base}, read by the rule: {self.rule}; "
            f"[{LEVEL} % paired bootstrap intervals over images]"
        )
        # AUC is there only where both runs have probabilities.
        metrics = list(dict.fromkeys(name for each in self.differences for name in each.metrics))
        header = ["", "run", *metrics, "only run", "only base", "McNemar p", "questions"]
        rows = []
        for name, levels in self.levels.items():
            values = [str(levels[metric]) if metric in levels else "" for metric in metrics]
            rows.append([name, self.base, *values, "", "", "", ""])
            rows += [_row(each, metrics) for each in self.differences if each.name == name]
        return f"{title}\n\n{text_table(header, rows, left=2)}"


def compare(
    benchmark: str,
    tally: Callable[[Sequence[Pair]], list[Tally]],
    questions: Sequence[Question],
    runs: Mapping[str, Mapping[str, Answer]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Every other run against the first of `runs`, which are answers by question id, by name.

    Raises RequestError for less than two runs, or runs over different questions.
    """
    if len(runs) < 2:
        raise RequestError("a comparison needs two runs or more")
    base, *others = runs
    for name in others:
        _check_same(base, runs[base], name, runs[name])
    pairs = {name: join(questions, answers) for name, answers in runs.items()}
    tallies = {
        name: [each for each in tally(joined) if each.headline] for name, joined in pairs.items()
    }
    by_id = {name: {pair.question.id: pair for pair in joined} for name, joined in pairs.items()}
    found = [
        _difference(name, ours, theirs, by_id[name], by_id[base], resamples, seed)
        for at, theirs in enumerate(tallies[base])
        for name in others
        for ours in [tallies[name][at]]
    ]
    return Comparison(
        benchmark=benchmark,
        base=base,
        rule=tallies[base][0].rule,
        levels={
            each.name: estimates(each.table, each.metrics, resamples, seed)
            for each in tallies[base]
        },
        differences=tuple(found),
        resamples=resamples,
        seed=seed,
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


def _difference(
    run: str,
    ours: Tally,
    theirs: Tally,
    pairs: Mapping[str, Pair],
    base_pairs: Mapping[str, Pair],
    resamples: int,
    seed: int,
) -> Difference:
    metrics = differences(ours.table, theirs.table, theirs.metrics, resamples, seed)
    both = [id for id in theirs.right if id in ours.right]
    gain = auc_difference(
        *([each[id] for id in theirs.right] for each in (pairs, base_pairs)), resamples, seed
    )
    if gain is not None:
        metrics["AUC"] = gain
    only_run = sum(ours.right[id] and not theirs.right[id] for id in both)
    only_base = sum(theirs.right[id] and not ours.right[id] for id in both)
    return Difference(
        name=theirs.name,
        run=run,
        questions=len(both),
        metrics=metrics,
        only_run=only_run,
        only_base=only_base,
        p=mcnemar(only_run, only_base),
    )


def _row(difference: Difference, metrics: Sequence[str]) -> list[str]:
    found = [difference.metrics.get(name) for name in metrics]
    return [
        difference.name,
        difference.run,
        *("-" if each is None else each.text("+") for each in found),
        str(difference.only_run),
        str(difference.only_base),
        f"{difference.p:.3g}",
        str(difference.questions),
    ]
