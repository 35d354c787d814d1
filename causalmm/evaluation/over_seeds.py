"""Runs that differ by their seed alone, together: means, their spread, and paired differences.

Two things vary: which images were asked, and what was drawn. An interval is the bootstrap's over
images, of the mean over seeds on the same resamples; the spread is the standard deviation over
seeds, from n - 1. Runs of one seed each are paired with a base's run of the same seed, or with its
only run where nothing is drawn in it. Tests: tests/evaluation/test_over_seeds.py.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from causalmm.evaluation.report import text_table
from causalmm.evaluation.statistics import LEVEL, Estimate, Metric, Table, around
from causalmm.evaluation.tally import Pair, Tally

_SEEDED = re.compile(r"(?:(?P<name>.+),)?seed=(?P<seed>-?\d+)")
ALONE = "all seeds"
"""The name of a group of runs whose folders say nothing but their seeds."""
Tallies = Callable[[Sequence[Pair]], list[Tally]]


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """The runs of a group on one set of questions."""

    name: str
    """Of the questions, as in a report."""
    group: str
    base: str | None
    """The group that is subtracted, paired by seed; None: nothing is."""
    seeds: tuple[int, ...]
    metrics: Mapping[str, Estimate]
    spread: Mapping[str, float]
    """Standard deviation over seeds."""


def seeded_name(name: str, seed: int) -> str:
    """The name of the run of a group with one seed."""
    return f"{name},seed={seed}" if name else f"seed={seed}"


def groups(runs: Iterable[str]) -> dict[str, dict[int | None, str]]:
    """Names of runs by their seed, by group; None: the name says no seed."""
    found: dict[str, dict[int | None, str]] = {}
    for run in runs:
        named = _SEEDED.fullmatch(run)
        group = run if named is None else named["name"] or ALONE
        found.setdefault(group, {})[None if named is None else int(named["seed"])] = run
    return found


def over_seeds(
    tally: Tallies, pairs: Mapping[str, Sequence[Pair]], bases: Sequence[str] = ()
) -> list[OverSeeds]:
    """Every group of several seeds by itself and less each base, set by set.

    `pairs` are those of a run, by its name; a base is the name of a run or of a group. Nothing
    where no group has several seeds.
    """
    found = {
        name: runs for name, runs in groups(pairs).items() if len(runs) > 1 and None not in runs
    }
    if not found:
        return []
    every = groups(pairs)
    wanted = dict.fromkeys(name for base in bases for name, runs in every.items()
                           if base == name or base in runs.values())  # fmt: skip
    rows = []
    for group, runs in found.items():
        seeds = tuple(sorted(runs))
        ours = [pairs[runs[seed]] for seed in seeds]
        rows += together(tally, group, None, seeds, ours, ())
        for base in wanted:
            theirs = every[base]
            if base == group or not (None in theirs or set(seeds) <= theirs.keys()):
                continue
            paired = [pairs[theirs.get(seed, theirs.get(None))] for seed in seeds]
            rows += together(tally, group, base, seeds, ours, paired)
    return sorted(rows, key=lambda row: (row.base is not None, row.base or ""))


def table(rows: Sequence[OverSeeds]) -> str:
    """For reading: a table without a base, then one a base."""
    blocks = []
    for base in dict.fromkeys(row.base for row in rows):
        some = [row for row in rows if row.base == base]
        what = "mean" if base is None else f"mean difference to {base}, paired by seed,"
        blocks.append(
            f"over seeds: {what} [{LEVEL} % bootstrap interval over images] and standard deviation"
            " over seeds"
        )
        sign = "" if base is None else "+"
        # Captions have others than yes-or-no answers.
        metrics = dict.fromkeys(name for row in some for name in row.metrics)
        cells = [
            [
                row.name,
                row.group,
                len(row.seeds),
                *(f"{row.metrics[name].text(sign)} ± {row.spread[name]:.1f}"
                  if name in row.metrics else "-" for name in metrics),
            ]
            for row in some
        ]  # fmt: skip
        header = ["", "run", "seeds", *metrics]
        blocks.append(text_table(header, cells, left=2))
    return "\n\n".join(blocks)


def together(
    tally: Tallies,
    group: str,
    base: str | None,
    seeds: tuple[int, ...],
    ours: Sequence[Sequence[Pair]],
    theirs: Sequence[Sequence[Pair]],
) -> list[OverSeeds]:
    """The runs of a group together, set by set, less as many runs of a base if there are any.

    One run, with no seed, will do: its spread is NaN.
    """
    counted = _counted(tally, [*ours, *theirs])
    runs, bases = counted[: len(ours)], counted[len(ours) :]
    rows = []
    for at, first in enumerate(runs[0]):
        values, resampled = [], []
        for number, tallies in enumerate(runs):
            value, again = _measured(tallies[at].table, first.metrics)
            if bases:
                less, less_again = _measured(bases[number][at].table, first.metrics)
                value, again = value - less, again - less_again
            values.append(value)
            resampled.append(again)
        mean, spread = np.mean(values, axis=0), np.full(len(first.metrics), np.nan)
        if len(values) > 1:
            spread = np.std(values, axis=0, ddof=1)
        again = np.mean(resampled, axis=0)
        names = list(first.metrics)
        rows.append(
            OverSeeds(
                name=first.name,
                group=group,
                base=base,
                seeds=seeds,
                metrics={
                    name: around(float(mean[place]), again[place])
                    for place, name in enumerate(names)
                },
                spread={name: float(spread[place]) for place, name in enumerate(names)},
            )
        )
    return rows


def _counted(tally: Tallies, runs: Sequence[Sequence[Pair]]) -> list[list[Tally]]:
    """The headlines of each run, over the questions that all of them count."""

    def headlines(pairs: Sequence[Pair]) -> list[Tally]:
        return [each for each in tally(pairs) if each.headline]

    ids = set.intersection(*({id for each in headlines(run) for id in each.right} for run in runs))
    return [headlines([pair for pair in run if pair.question.id in ids]) for run in runs]


def _measured(table: Table, metrics: Mapping[str, Metric]) -> tuple[np.ndarray, np.ndarray]:
    """Each metric [metrics] and its resamples [metrics, resamples], the same images in each."""
    sums, again = table.totals(), table.resampled()
    values = [float(metric.of(sums)) for metric in metrics.values()]
    return np.array(values), np.stack([metric.of(again) for metric in metrics.values()])
