"""What the probability of "yes" knows about yes-or-no questions, beside the answers themselves.

A decoding that only leans further toward one answer changes accuracy without knowing more. So for
the probabilities under each view (factual, adjusted, a counterfactual branch): AUC, which no lean
changes; the yes ratio; and the bias control, the accuracy gained by one constant added to the
log-odds of yes against no, fitted on half of the images and applied to the other half. "Yes" stands
for the first of a question's two choices.

The plausibility mask leaves the less plausible choice no probability where the model is sure. Such
questions come before or after all others, among each other in the order of their factual
probabilities, which the mask goes by: masking alone changes no AUC. No bias reaches them.
Held by tests/evaluation/test_two_way.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from causalmm.evaluation.records import Answer
from causalmm.evaluation.statistics import (
    RESAMPLES,
    Estimate,
    Metric,
    Row,
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
_CERTAIN = 1000.0
"""Log-odds, before the factual ones are added, where the other choice has no probability at all:
more than any float has otherwise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Signal:
    """Questions with log-odds: arrays over the questions that have them."""

    ids: tuple[str, ...]
    log_odds: np.ndarray
    positive: np.ndarray
    image: np.ndarray
    """Number of each question's image, in the order of the images' names."""

    @classmethod
    def of(cls, pairs: Sequence[Pair], view: str) -> "Signal | None":
        """What answers say under a view; None where none has probabilities under it."""
        odds = [(pair, _log_odds(pair.answer, view)) for pair in pairs if pair.question.choices]
        known = [(pair.question, value) for pair, value in odds if value is not None]
        if not known:
            return None
        _, image = np.unique([question.image for question, _ in known], return_inverse=True)
        return cls(
            ids=tuple(question.id for question, _ in known),
            log_odds=np.array([value for _, value in known]),
            positive=np.array([each.label == (each.choices or ("",))[0] for each, _ in known]),
            image=image,
        )

    @property
    def images(self) -> int:
        """How many there are."""
        return int(self.image.max()) + 1


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

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "view": self.view,
            "questions": self.questions,
            "metrics": {name: each.to_dict() for name, each in self.metrics.items()},
            "biases": list(self.biases),
        }


def two_way(
    name: str, pairs: Sequence[Pair], resamples: int = RESAMPLES, seed: int = 0
) -> list[TwoWay]:
    """One row for each view that the answers have probabilities under."""
    rows = []
    for view in dict.fromkeys(view for _, answer in pairs for view in answer.scores or ()):
        signal = Signal.of(pairs, view)
        if signal is None:
            continue
        gain, biases = bias_control(signal, resamples, seed)
        metrics = {
            **_decisions(signal, resamples, seed),
            "AUC": auc_estimate(signal, resamples, seed),
            "bias gain": gain,
        }
        questions = len(signal.log_odds)
        rows.append(
            TwoWay(name=name, view=view, questions=questions, metrics=metrics, biases=biases)
        )
    return rows


def auc_estimate(signal: Signal, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """AUC in per cent; NaN where only one choice is ever right."""
    value = 100 * float(auc(signal.log_odds, signal.positive))
    return around(value, _resampled_auc(signal, resamples, seed))


def auc_difference(
    pairs: Sequence[Pair], base: Sequence[Pair], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """AUC less a base's, in points, on the same resamples of the questions that have probabilities
    in both runs, each run by the view that it decides by; None where there are no such questions.
    """
    views = [_deciding(part) for part in (pairs, base)]
    if None in views:
        return None
    known = [Signal.of(part, view) for part, view in zip((pairs, base), views, strict=True)]
    both = set(known[0].ids) & set(known[1].ids)
    signals = [
        Signal.of([pair for pair in part if pair.question.id in both], view)
        for part, view in zip((pairs, base), views, strict=True)
    ]
    if None in signals:
        return None
    ours, theirs = (_resampled_auc(each, resamples, seed) for each in signals)
    values = [100 * float(auc(each.log_odds, each.positive)) for each in signals]
    return around(values[0] - values[1], ours - theirs)


def bias_control(
    signal: Signal, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Estimate, tuple[float, float]]:
    """The gain in accuracy, in points, by a bias fitted on the other half of the images.

    Both halves take their turn and the gains are averaged. The interval resamples images with the
    two biases as they are. With one image there is nothing to fit on: no gain.
    """
    halves = np.random.default_rng(seed).permutation(signal.images) % 2
    first = halves[signal.image] == 0
    biases = tuple(
        best_bias(signal.log_odds[part], signal.positive[part]) for part in (first, ~first)
    )
    rows = []
    for odds, positive, image, in_first in zip(
        signal.log_odds, signal.positive, signal.image, first, strict=True
    ):
        half, bias = ("first", biases[1]) if in_first else ("second", biases[0])
        gain = float((odds + bias > 0) == positive) - float((odds > 0) == positive)
        rows.append(Row(str(image), {f"{half} gain": gain, f"{half} questions": 1}, half))
    columns = [f"{half} {what}" for half in ("first", "second") for what in ("gain", "questions")]
    metric = Metric(tuple(Term(*columns[at : at + 2], 50.0) for at in (0, 2)))
    return estimates(Table.of(rows, columns), {"": metric}, resamples, seed)[""], biases


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


def _deciding(pairs: Sequence[Pair]) -> str | None:
    return next((view for view in DECIDING if Signal.of(pairs, view) is not None), None)


def _decisions(signal: Signal, resamples: int, seed: int) -> dict[str, Estimate]:
    yes = signal.log_odds > 0
    rows = [
        Row(str(image), {"questions": 1, "yes": said, "right": said == positive})
        for image, said, positive in zip(signal.image, yes, signal.positive, strict=True)
    ]
    metrics = {"accuracy": ratio("right", "questions"), "yes ratio": ratio("yes", "questions")}
    return estimates(Table.of(rows, rows[0].counts), metrics, resamples, seed)


def _resampled_auc(signal: Signal, resamples: int, seed: int) -> np.ndarray:
    weights = resampling_weights([""] * signal.images, resamples, seed)
    return 100 * auc(signal.log_odds, signal.positive, weights[:, signal.image])


def _log_odds(answer: Answer, view: str) -> float | None:
    """None where the view is not there, or leaves probability to neither choice."""
    if answer.error is not None or not answer.scores or view not in answer.scores:
        return None
    yes, no = answer.scores[view]
    if not (yes > 0 or no > 0):
        return None
    if yes > 0 and no > 0:
        return math.log(yes) - math.log(no)
    factual = 0.0 if view == "factual" else _log_odds(answer, "factual") or 0.0
    # Odds that are certain themselves say no more about the order.
    factual = factual if abs(factual) < _CERTAIN / 2 else 0.0
    return (_CERTAIN if yes > 0 else -_CERTAIN) + factual
