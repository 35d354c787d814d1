"""Intervals by bootstrap over images, paired differences, McNemar's test, Holm's correction, AUC.

What is resampled is an image with all questions about it, since answers about one picture are not
independent. A table holds counts an image, and every metric is a sum of ratios of sums of counts,
so that 1,000 resamples are one matrix product. Tests: tests/evaluation/test_statistics.py.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 1000
LEVEL = 95
"""Per cent that an interval covers."""


class ImageCounts(NamedTuple):
    """Counts that one question, or pair of questions, adds to its image."""

    image: str
    counts: Mapping[str, float]
    stratum: str = ""
    """Images are resampled within a stratum, which so keeps its number of images."""


@dataclass(frozen=True, eq=False)
class Table:
    """Counts by image: the same images in the same order whatever the order of the rows."""

    images: tuple[tuple[str, str], ...]
    """Stratum and name."""
    columns: tuple[str, ...]
    counts: np.ndarray
    """[images, columns]"""

    @classmethod
    def of(cls, rows: Iterable[ImageCounts], columns: Iterable[str] = ()) -> "Table":
        """Add up rows; a column that a row does not name is 0 there.

        `columns` come first; those that are not named are in the order of the rows.
        """
        rows = list(rows)
        columns = tuple(dict.fromkeys([*columns, *(name for row in rows for name in row.counts)]))
        images = sorted({(row.stratum, row.image) for row in rows})
        place = {image: at for at, image in enumerate(images)}
        counts = np.zeros((len(images), len(columns)))
        for row in rows:
            added = [float(row.counts.get(name, 0)) for name in columns]
            counts[place[row.stratum, row.image]] += added
        return cls(tuple(images), columns, counts)

    def totals(self) -> dict[str, float]:
        """Each column's sum."""
        return dict(zip(self.columns, self.counts.sum(axis=0).tolist(), strict=True))

    def resampled(self, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
        """Each column's sum in each resample, [resamples]."""
        weights = resampling_weights([stratum for stratum, _ in self.images], resamples, seed)
        return dict(zip(self.columns, (weights @ self.counts).T, strict=True))


class Term(NamedTuple):
    """scale x sum of one column / sum of another; 0 where the latter is 0."""

    part: str
    whole: str
    scale: float = 100.0


@dataclass(frozen=True)
class Metric:
    """A sum of ratios of a table's columns."""

    terms: tuple[Term, ...]

    def of(self, sums: Mapping[str, Any]) -> np.ndarray:
        """The metric of sums, numbers or arrays of resamples."""
        parts = [_divide(sums[part], sums[whole]) * scale for part, whole, scale in self.terms]
        return np.sum(parts, axis=0)

    def undefined(self, sums: Mapping[str, float]) -> bool:
        """Whether a ratio has nothing below its line."""
        return any(not sums[term.whole] for term in self.terms)


def ratio(part: str, whole: str, scale: float = 100.0) -> Metric:
    """The metric of one term, in per cent unless said otherwise."""
    return Metric((Term(part, whole, scale),))


@dataclass(frozen=True)
class Estimate:
    """A value and its bootstrap interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        value, low, high = (
            None if math.isnan(each) else each for each in (self.value, self.low, self.high)
        )
        return {"value": value, "interval": None if low is None else [low, high]}

    def __str__(self) -> str:
        return self.text()

    def text(self, sign: str = "", digits: int = 1) -> str:
        """For a table; sign "+" shows that of a positive value too."""
        if math.isnan(self.value):
            return "-"
        # Adding 0 turns what rounds to -0.0 into 0.0.
        rounded = (round(each, digits) + 0.0 for each in (self.value, self.low, self.high))
        value, low, high = (f"{each:{sign}.{digits}f}" for each in rounded)
        return f"{value} [{low}, {high}]"


def estimates(
    table: Table,
    metrics: Mapping[str, Metric],
    resamples: int = RESAMPLES,
    seed: int = 0,
    *,
    base: Table | None = None,
) -> dict[str, Estimate]:
    """Metrics with their intervals, all on the same resamples; less those of `base`, if given.

    Raises ValueError where the base counts other images.
    """
    tables = [table] if base is None else [table, base]
    if len({each.images for each in tables}) > 1:
        raise ValueError("paired tables must count the same images")
    totals = [each.totals() for each in tables]
    sums = [each.resampled(resamples, seed) for each in tables]
    found = {}
    for name, metric in metrics.items():
        value, *base_value = (float(metric.of(each)) for each in totals)
        resampled, *base_resampled = (metric.of(each) for each in sums)
        found[name] = around(value - sum(base_value), resampled - sum(base_resampled))
    return found


def around(value: float, resampled: np.ndarray) -> Estimate:
    """A value with the central interval of its resamples; those without a value are left out."""
    known = resampled[~np.isnan(resampled)]
    if not known.size:
        return Estimate(value, math.nan, math.nan)
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def resampling_weights(strata: Iterable[str], resamples: int, seed: int) -> np.ndarray:
    """How often each resample draws each image, [resamples, images]."""
    strata = np.array(list(strata))
    weights = np.zeros((resamples, len(strata)))
    generator = np.random.default_rng(seed)
    for stratum in sorted(set(strata.tolist())):
        members = np.flatnonzero(strata == stratum)
        picks = generator.integers(0, len(members), (resamples, len(members)))
        picks += len(members) * np.arange(resamples)[:, None]
        drawn = np.bincount(picks.ravel(), minlength=resamples * len(members))
        weights[:, members] = drawn.reshape(resamples, len(members))
    return weights


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test: are the two equally often right where they differ?"""
    changed = only_first + only_second
    if only_first == only_second:
        return 1.0
    # In whole numbers, which floats of this size would not hold.
    tail = ways = 1
    for k in range(min(only_first, only_second)):
        ways = ways * (changed - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**changed)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of hypotheses, adjusted by Holm's step-down procedure (1979).

    With m of them in ascending order, the i-th becomes the largest (m - j + 1)·p_j of j up to i, at
    most 1. To reject what is below a level leaves no more than that chance of rejecting any true
    hypothesis of the family, however the tests depend on one another.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Share of pairs in which the positive one has the higher score; equal ones count half.

    With `weights` [resamples, n], one AUC for each; NaN where there is no pair.
    """
    scores, positive = np.asarray(scores, float), np.asarray(positive, bool)
    if weights is None:
        return auc(scores, positive, np.ones((1, len(scores))))[0]
    order = np.argsort(scores, kind="stable")
    scores, positive = scores[order], positive[order]
    # Negatives before `low` are below a positive, those from there to `high` equal to it.
    low = np.searchsorted(scores, scores[positive], "left")
    high = np.searchsorted(scores, scores[positive], "right")
    found = []
    ups_at, downs = order[positive], np.where(positive, 0.0, 1.0)
    for each in weights:
        below = np.append(0.0, np.cumsum(each[order] * downs))
        ups = each[ups_at]
        pairs = ups.sum() * below[-1]
        found.append(ups @ (below[low] + below[high]) / 2 / pairs if pairs else np.nan)
    return np.array(found)


def _divide(part: Any, whole: Any) -> np.ndarray:
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.where(whole == 0, 0.0, part / np.where(whole == 0, 1.0, whole))
