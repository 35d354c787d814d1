"""What the probability of "yes" knows about yes-or-no questions, beside the answers themselves.

A decoding that only leans further toward one answer changes accuracy without knowing more. So for
the probabilities under each view (factual, adjusted, a counterfactual branch): AUC, which no lean
changes; the yes ratio; and the bias control, the accuracy gained by one constant added to the
log-odds of yes against no, fitted on half of the images and applied to the other half; and the lean
itself, the mean shift of the log-odds against the factual ones, with its spread over questions.
"Yes" stands for the first of a question's two choices.

The plausibility mask leaves the less plausible choice no probability where the model is sure. Such
questions come before or after all others, among each other in the order of their factual
probabilities, which the mask goes by: masking alone changes no AUC. No bias reaches them.
Tests: tests/evaluation/test_two_way.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from causalmm.evaluation.statistics import (
    RESAMPLES,
    Estimate,
    ImageCounts,
    Metric,
    Table,
    Term,
    around,
    auc,
    estimates,
    ratio,
    resampling_weights,
)
from causalmm.evaluation.tally import Pair

DECIDING = ("adjusted", "factual")
"""The view that a run decides by is the first of these that it has."""
UNMASKED = "unmasked"
"""The adjusted view before the plausibility mask, which is no view to decide by."""
_DECISIONS = {"accuracy": ratio("right", "questions"), "yes ratio": ratio("yes", "questions")}
_CERTAIN = 1000.0
"""Log-odds, before the factual ones are added, where the other choice has no probability at all:
more than any float has otherwise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Signal:
    """Questions with log-odds: arrays over the questions that have them."""

    view: str
    ids: tuple[str, ...]
    log_odds: np.ndarray
    positive: np.ndarray
    image: np.ndarray
    """Number of each question's image, in the order of the images' names."""

    @classmethod
    def of(cls, pairs: Sequence[Pair], view: str = "factual") -> "Signal | None":
        """What answers say under a view; None where none has probabilities under it."""
        odds = [
            (question, log_odds(answer.scores or {}, view))
            for question, answer in pairs
            if question.choices and answer.error is None
        ]
        known = [(question, value) for question, value in odds if value is not None]
        if not known:
            return None
        _, image = np.unique([question.image for question, _ in known], return_inverse=True)
        return cls(
            view=view,
            ids=tuple(question.id for question, _ in known),
            log_odds=np.array([value for _, value in known]),
            positive=np.array([each.label == each.choices[0] for each, _ in known]),
            image=image,
        )

    def auc(self, seed: int = 0) -> tuple[float, np.ndarray]:
        """In per cent, and in each resample of images, [resamples]; NaN where only one choice is
        ever right."""
        weights = resampling_weights([""] * (self.image.max() + 1), RESAMPLES, seed)
        resampled = auc(self.log_odds, self.positive, weights[:, self.image])
        return 100 * float(auc(self.log_odds, self.positive)), 100 * resampled

    def table(self, columns: Mapping[str, np.ndarray], strata: np.ndarray | None = None) -> Table:
        """Counts of every question, added up by image."""
        rows = zip(*columns.values(), strict=True)
        counts = (dict(zip(columns, row, strict=True)) for row in rows)
        strata = np.zeros(len(self.ids)) if strata is None else strata
        return Table.of(
            ImageCounts(str(image), each, str(stratum))
            for image, each, stratum in zip(self.image, counts, strata, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class TwoWay:
    """A row of a report: what a view's probabilities say about some questions."""

    name: str
    view: str
    questions: int
    metrics: Mapping[str, Estimate]
    """Accuracy and yes ratio of the more probable choice, AUC, bias gain; in per cent."""
    biases: tuple[float, float]
    """Added to the log-odds of yes: fitted on one half of the images, and on the other."""
    shift: Estimate
    """Mean of the log-odds of yes less the factual ones: how far the view leans, the adjusted one
    before the mask, where that is known; NaN where there is nothing to compare with. Of questions
    of which both choices have a probability in both views."""
    spread: float
    """Standard deviation of the same over questions."""


def two_way(name: str, pairs: Sequence[Pair]) -> list[TwoWay]:
    """One row for each view that the answers have probabilities under."""
    rows = []
    views = dict.fromkeys(view for _, answer in pairs for view in answer.scores or ())
    views.pop(UNMASKED, None)
    for view in views:
        signal = Signal.of(pairs, view)
        if signal is None:
            continue
        gain, biases = bias_control(signal)
        yes = signal.log_odds > 0
        counts = {"questions": np.ones(len(yes)), "yes": yes, "right": yes == signal.positive}
        decisions = estimates(signal.table(counts), _DECISIONS)
        rows.append(
            TwoWay(
                name=name,
                view=view,
                questions=len(signal.ids),
                metrics={**decisions, "AUC": around(*signal.auc()), "bias gain": gain},
                biases=biases,
                **lean(pairs, view),
            )
        )
    return rows


def lean(pairs: Sequence[Pair], view: str) -> dict[str, Any]:
    """`shift` and `spread` of a view, as in `TwoWay`."""
    rows = []
    for question, answer in pairs if view != "factual" else ():
        scores = answer.scores or {}
        shown = UNMASKED if view == "adjusted" and UNMASKED in scores else view
        odds = [log_odds(scores, each) for each in (shown, "factual")]
        if question.choices and None not in odds and max(map(abs, odds)) < _CERTAIN / 2:
            counts = {"shift": odds[0] - odds[1], "questions": 1}
            rows.append(ImageCounts(question.image, counts))
    if not rows:
        return {"shift": Estimate(math.nan, math.nan, math.nan), "spread": math.nan}
    found = estimates(Table.of(rows), {"": ratio("shift", "questions", scale=1.0)})
    return {"shift": found[""], "spread": float(np.std([row.counts["shift"] for row in rows]))}


def auc_difference(pairs: Sequence[Pair], base: Sequence[Pair], seed: int = 0) -> Estimate | None:
    """AUC less a base's, in points, on the same resamples of the questions that have probabilities
    in both runs, each run by the view that it decides by; None where there are no such questions.
    """
    runs = [
        (part, next(filter(None, (Signal.of(part, view) for view in DECIDING)), None))
        for part in (pairs, base)
    ]
    both = set.intersection(*(set(signal.ids if signal else ()) for _, signal in runs))
    if not both:
        return None
    (value, resampled), (base_value, base_resampled) = (
        Signal.of([pair for pair in part if pair.question.id in both], signal.view).auc(seed)
        for part, signal in runs
    )
    return around(value - base_value, resampled - base_resampled)


def bias_control(signal: Signal, seed: int = 0) -> tuple[Estimate, tuple[float, float]]:
    """The gain in accuracy, in points, by a bias fitted on the other half of the images.

    Both halves take their turn and the gains are averaged. The interval resamples images with the
    two biases as they are. With one image there is nothing to fit on: no gain.
    """
    halves = np.random.default_rng(seed).permutation(signal.image.max() + 1) % 2
    odds, positive = signal.log_odds, signal.positive
    first = halves[signal.image] == 0
    biases = tuple(best_bias(odds[part], positive[part]) for part in (first, ~first))
    biased = odds + np.where(first, biases[1], biases[0])
    gain = ((biased > 0) == positive).astype(float) - ((odds > 0) == positive)
    table = signal.table(
        {"first": first, "first gain": gain * first, "other": ~first, "other gain": gain * ~first},
        strata=~first,
    )
    metric = Metric((Term("first gain", "first", 50.0), Term("other gain", "other", 50.0)))
    return estimates(table, {"": metric}, seed=seed)[""], biases


def best_bias(log_odds: np.ndarray, positive: np.ndarray) -> float:
    """The bias that makes most answers right; of equally good ones, the smallest.

    An answer is yes where log-odds + bias > 0, or where it is certain.
    """
    open_ones = np.abs(log_odds) < _CERTAIN / 2
    log_odds, positive = log_odds[open_ones], positive[open_ones]
    if not len(log_odds):
        return 0.0
    values, place = np.unique(log_odds, return_inverse=True)
    ups = np.bincount(place, positive, len(values))
    downs = np.bincount(place, ~positive, len(values))
    # Cut number k says no to the k lowest values and yes to the others.
    right = np.concatenate([[0], np.cumsum(downs)]) + np.concatenate(
        [np.cumsum(ups[::-1])[::-1], [0]]
    )
    between = (values[1:] + values[:-1]) / 2
    # The middle of neighbouring floats may be the upper one.
    between = np.where(between < values[1:], between, values[:-1])
    cuts = np.concatenate([[values[0] - 1], between, [values[-1] + 1]])
    low, high = np.append(-np.inf, values), np.append(values, np.inf)
    cuts[(low <= 0) & (high > 0)] = 0.0
    best = cuts[right == right.max()]
    return float(-best[np.abs(best).argmin()])


def log_odds(scores: Mapping[str, tuple[float, float]], view: str) -> float | None:
    """Of the first choice; None where the view is not there, or gives neither a probability."""
    yes, no = scores.get(view, (0.0, 0.0))
    if not (yes > 0 or no > 0):
        return None
    if yes > 0 and no > 0:
        return math.log(yes) - math.log(no)
    factual = 0.0 if view == "factual" else log_odds(scores, "factual") or 0.0
    # Odds that are certain themselves say no more about the order.
    factual = factual if abs(factual) < _CERTAIN / 2 else 0.0
    return (_CERTAIN if yes > 0 else -_CERTAIN) + factual
