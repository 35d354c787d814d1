"""Runs over the same questions side by side and against a base, paired.

Every metric's difference has a bootstrap interval from resamples of images that both runs share.
McNemar's exact test asks whether, where only one run is right, it is as often the one as the other;
unlike the intervals, it takes the questions about one image for independent. Its p is corrected by
Holm's procedure. The family of hypotheses is one set of questions and one base: that no run differs
from the base there. Sets of questions, and bases, are families of their own.
A benchmark may also make the answers of two runs comparable (its `matchings`); their metrics are
then estimated again on these answers, which the resampling leaves as they are.
Tests: tests/evaluation/test_compare.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from causalmm.errors import RequestError
from causalmm.evaluation import over_seeds
from causalmm.evaluation.over_seeds import OverSeeds
from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.report import Report, make_report, text_table
from causalmm.evaluation.statistics import LEVEL, Estimate, estimates, holm, mcnemar
from causalmm.evaluation.tally import Matching, Pair, Tally, join
from causalmm.evaluation.two_way import DECIDING, auc_difference

_SIGNALS = ("yes ratio", "AUC", "bias gain")
_COUNTS = ("unreadable", "failed")
_Tally = Callable[[Sequence[Pair]], list[Tally]]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A run and a base on answers made comparable."""

    run: Mapping[str, Estimate]
    base: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]
    """Paired."""


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
    only_run_right: int
    """Questions that only the run answers right."""
    only_base_right: int
    mcnemar_p: float
    """Exact and two-sided."""
    holm_p: float
    """The same corrected for all runs that are compared with this base on these questions."""
    matched: Mapping[str, Matched]
    """By the name of the benchmark's matching."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every run's report, read by the benchmark's main rule, and its differences to the bases."""

    benchmark: str
    bases: tuple[str, ...]
    reports: Mapping[str, Report]
    differences: tuple[Difference, ...]
    seeds: tuple[OverSeeds, ...]
    """Runs that differ by their seed alone, together."""

    def table(self) -> str:
        """For reading: all runs side by side, then what each adds to each base, in points."""
        first = next(iter(self.reports.values()))
        rules = dict.fromkeys(score.rule for score in first.scores)
        blocks = [
            f"{self.benchmark}: {first.questions} questions about {first.images} images, read by "
            f"the rule: {', '.join(rules)}; [{LEVEL} % bootstrap intervals over images]",
            self._levels(first),
        ]
        for base in self.bases:
            blocks += [f"differences to {base} (paired):", self._differences(base)]
            for name in self.differences[0].matched:
                blocks.append(f"differences to {base} at {name} (paired):")
                blocks.append(self._matched(base, name))
        family = "Holm p is McNemar's p corrected for all runs compared with a base on one set of "
        blocks.append(family + "questions.")
        if self.seeds:
            blocks.append(over_seeds.table(self.seeds))
        return "\n\n".join(blocks)

    def _levels(self, first: Report) -> str:
        # What P(yes) says under the view that a run decides by, by the name of the questions.
        signals = {
            name: {
                row.name: row.metrics
                for view in reversed(DECIDING)
                for row in report.two_way
                if row.view == view
            }
            for name, report in self.reports.items()
        }
        # Captions have others than yes-or-no answers.
        metrics = dict.fromkeys(name for score in first.scores for name in score.metrics)
        # POPE's own yes ratio, that of the answers as read, goes before that of P(yes).
        shown = [name for name in _SIGNALS if any(signals.values()) and name not in metrics]
        rows = []
        for at, score in enumerate(first.scores):
            for name, report in self.reports.items():
                ours, signal = report.scores[at], signals[name].get(score.name, {})
                counts = [ours.counts.get(each, 0) for each in _COUNTS]
                known = [signal.get(each, "-") for each in shown]
                measured = [ours.metrics.get(each, "-") for each in metrics]
                rows.append([score.name, name, *measured, *known, *counts])
        return text_table(["", "run", *metrics, *shown, *_COUNTS], rows, left=2)

    def _differences(self, base: str) -> str:
        found = [each for each in self.differences if each.base == base]
        # AUC is there only where both runs have probabilities.
        metrics = dict.fromkeys(name for each in found for name in each.metrics)
        rows = []
        for each in found:
            known = each.metrics
            gains = [known[name].text("+") if name in known else "-" for name in metrics]
            counts = [each.only_run_right, each.only_base_right]
            tests = [f"{p:.3g}" for p in (each.mcnemar_p, each.holm_p)]
            rows.append([each.name, each.run, *gains, *counts, *tests, each.questions])
        tests = ("McNemar p", "Holm p")
        header = ["", "run", *metrics, "only run", f"only {base}", *tests, "questions"]
        return text_table(header, rows, left=2)

    def _matched(self, base: str, name: str) -> str:
        rows, metrics = [], {}
        for each in self.differences:
            if each.base == base:
                found = each.matched[name]
                metrics = found.difference
                cells = [
                    f"{found.run[metric].value:.1f} against {found.base[metric].value:.1f}: "
                    f"{gain.text('+')}"
                    for metric, gain in metrics.items()
                ]
                rows.append([each.name, each.run, *cells])
        return text_table(["", "run", *metrics], rows, left=2)


def compare(
    benchmark: str,
    tally: _Tally,
    questions: Sequence[Question],
    runs: Mapping[str, Mapping[str, Answer]],
    *,
    bases: Sequence[str] = (),
    matchings: Mapping[str, Matching] | None = None,
    in_other_words: Mapping[str, Sequence[Question]] | None = None,
) -> Comparison:
    """Every run against each of the bases, or against the first run.

    `runs` are answers by question id, by the name of the run; `matchings` are the benchmark's;
    `in_other_words` has the questions of runs that were asked them with other prompts.
    Raises RequestError for less than two runs, a base that is none of them, or runs over different
    questions.
    """
    if len(runs) < 2:
        raise RequestError("a comparison needs two runs or more")
    first, *others = runs
    bases = tuple(dict.fromkeys(bases)) or (first,)
    for base in bases:
        if base not in runs:
            raise RequestError(f"base {base!r}: expected one of the runs {', '.join(runs)}")
    for one, other in (pair for name in others for pair in ((name, first), (first, name))):
        if missing := runs[other].keys() - runs[one].keys():
            raise RequestError(
                f"{one} lacks {len(missing)} of the questions of {other} (first: {min(missing)}): "
                "runs are compared over the same questions"
            )
    asked = dict.fromkeys(runs, questions) | dict(in_other_words or {})
    pairs = {name: join(asked[name], answers) for name, answers in runs.items()}
    found = []
    for base in bases:
        rows = [
            _differences(name, base, tally, pairs[name], pairs[base], matchings or {})
            for name in runs
            if name != base
        ]
        # By questions first, so that a table has its runs together.
        for same in zip(*rows, strict=True):
            corrected = holm([each.mcnemar_p for each in same])
            found += [replace(each, holm_p=p) for each, p in zip(same, corrected, strict=True)]
    return Comparison(
        benchmark=benchmark,
        bases=bases,
        reports={
            name: make_report(benchmark, each, _headlines(tally, each))
            for name, each in pairs.items()
        },
        differences=tuple(found),
        seeds=tuple(over_seeds.over_seeds(tally, pairs, bases)),
    )


def _differences(
    run: str,
    base: str,
    tally: _Tally,
    pairs: Sequence[Pair],
    base_pairs: Sequence[Pair],
    matchings: Mapping[str, Matching],
) -> list[Difference]:
    """A run less a base on each set of questions; p as if no other run were compared."""
    ours, theirs = ({pair.question.id: pair for pair in part} for part in (pairs, base_pairs))
    # A caption that failed is left out of its run's measures: leave it out of both.
    both = set.intersection(
        *(
            {id for each in _headlines(tally, part) for id in each.right}
            for part in (pairs, base_pairs)
        )
    )
    mine_there, theirs_there = ([part[id] for id in ours if id in both] for part in (ours, theirs))
    matched = {
        name: _both(tally, *matching(mine_there, theirs_there))
        for name, matching in matchings.items()
    }
    found = []
    for at, (mine, other) in enumerate(_both(tally, mine_there, theirs_there)):
        asked = list(other.right)
        metrics = estimates(mine.table, other.metrics, base=other.table)
        auc = auc_difference([ours[id] for id in asked], [theirs[id] for id in asked])
        only_run = sum(mine.right[id] and not other.right[id] for id in asked)
        only_base = sum(other.right[id] and not mine.right[id] for id in asked)
        found.append(
            Difference(
                name=other.name,
                run=run,
                base=base,
                questions=len(asked),
                metrics=metrics if auc is None else metrics | {"AUC": auc},
                only_run_right=only_run,
                only_base_right=only_base,
                mcnemar_p=(p := mcnemar(only_run, only_base)),
                holm_p=p,
                matched={name: _matched(*tallies[at]) for name, tallies in matched.items()},
            )
        )
    return found


def _matched(run: Tally, base: Tally) -> Matched:
    return Matched(
        run=estimates(run.table, run.metrics),
        base=estimates(base.table, base.metrics),
        difference=estimates(run.table, base.metrics, base=base.table),
    )


def _both(tally: _Tally, run: Sequence[Pair], base: Sequence[Pair]) -> list[tuple[Tally, Tally]]:
    return list(zip(_headlines(tally, run), _headlines(tally, base), strict=True))


def _headlines(tally: _Tally, pairs: Sequence[Pair]) -> list[Tally]:
    return [each for each in tally(pairs) if each.headline]
