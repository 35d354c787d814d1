"""Running sums of contrasts over questions: their mean, and what they add that is no lean.

A contrast is d = l - l_branch at one step of a plain answer, over the vocabulary. What it does is
measured where it matters: at a two-way question by what it adds to the log-odds of the first choice
against the second, one number; in free text over the vocabulary, weighted by the plain
probabilities p, and less E_p[d], since a constant in d changes nothing.

The mean of that is the lean of a branch. What differs between questions is not yet knowledge: the
contrast with a branch that always says the same word differs as much as the plain logits do. An
affine function of the plain log-odds only moves and stretches them, which puts no question before
another. So the spread is the root mean square of what remains after the best such function.
Sums are float64. Tests: tests/evaluation/test_center.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

CONSTANT_BELOW = 0.5
"""Ratio of spread to mean under which a branch is called constant: of mean² + spread², what it adds
besides stretching, at least four fifths are then the same for every question."""
_FEWEST = 20
"""Steps that can tell."""


class Lean(NamedTuple):
    """What a branch's contrast adds on average, and how much of it is special to a question.

    Both are of log-odds for two-way questions; of logits, and then not below 0, for free text.
    """

    mean: float
    spread: float
    steps: int

    @property
    def ratio(self) -> float:
        """Spread to the size of the mean; infinite where there is no mean."""
        return self.spread / abs(self.mean) if self.mean else math.inf

    @property
    def constant(self) -> bool:
        """Whether the contrast does little but lean."""
        return self.steps >= _FEWEST and self.ratio < CONSTANT_BELOW


@dataclass
class ContrastSums:
    """Of all steps that were added; `scalars` and `tensors` are all of its state.

    Keys: "steps"; "weights", sum of p; "BRANCH sum", sum of d; and of what is measured, z, of each
    branch and of the plain model ("plain"): "z", "z weighted" (times p), and "z z", "z plain",
    sums of products under p. Each has an entry a token of the vocabulary, or for two-way questions
    one.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many were added."""
        return int(self.scalars.get("steps", 0))

    def add(
        self,
        factual: Tensor,
        branches: Mapping[str, Tensor],
        choices: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Add a step's logits [vocab]; `choices`: the tokens that spell either of two answers."""
        factual = factual.double()
        one = torch.ones(1, dtype=torch.float64)
        weights = factual.softmax(dim=-1) if choices is None else one
        plain = _measured(factual, weights, choices)
        self._add("steps", 1)
        self._add("weights", weights)
        self._add_measured("plain", plain, plain, weights)
        for name, logits in branches.items():
            self._add(f"{name} sum", factual - logits.double())
            added = plain - _measured(logits.double(), weights, choices)
            self._add_measured(name, added, plain, weights)
            self._add(f"{name} {name}", float(weights @ added**2))

    def mean(self, name: str) -> Tensor:
        """A branch's mean contrast, float64 [vocab]."""
        return self.tensors[f"{name} sum"] / self.steps

    def lean(self, name: str) -> Lean:
        """How a branch leans over the steps that were added."""
        mean, n = self.tensors[name] / self.steps, self.steps
        size = float(mean) if len(mean) == 1 else self._size(mean)
        slope = 0.0
        if (own := self._covariance("plain", "plain")) > 0:
            slope = self._covariance(name, "plain") / own
        rest = self._covariance(name, name) - slope * self._covariance(name, "plain")
        # Two numbers were fitted; what rounding leaves of 0 may be negative.
        spread = math.sqrt(max(rest, 0.0) * n / (n - 2)) if n > 2 else math.inf
        return Lean(size, spread, n)

    def _size(self, mean: Tensor) -> float:
        return math.sqrt(float(self.tensors["weights"] @ mean**2) / self.steps)

    def _covariance(self, one: str, other: str) -> float:
        """Mean over steps of E_p[(z - mean z) (w - mean w)], in sums that need no mean before."""
        n, means = self.steps, {name: self.tensors[name] / self.steps for name in (one, other)}
        product = self.scalars[f"{one} {other}"]
        product -= float(self.tensors[f"{one} weighted"] @ means[other])
        product -= float(self.tensors[f"{other} weighted"] @ means[one])
        product += float(self.tensors["weights"] @ (means[one] * means[other]))
        return product / n

    def _add_measured(self, name: str, value: Tensor, plain: Tensor, weights: Tensor) -> None:
        self._add(name, value)
        self._add(f"{name} weighted", weights * value)
        self._add(f"{name} plain", float(weights @ (value * plain)))

    def _add(self, key: str, value: float | Tensor) -> None:
        held: dict = self.tensors if isinstance(value, Tensor) else self.scalars
        held[key] = held[key] + value if key in held else value


def _measured(logits: Tensor, weights: Tensor, choices: Sequence[Sequence[int]] | None) -> Tensor:
    """Log-odds [1] of two choices, or logits [vocab] less their mean under `weights`."""
    if choices is None:
        return logits - weights @ logits
    first, second = (logits[list(tokens)].logsumexp(dim=-1) for tokens in choices)
    return (first - second).unsqueeze(0)
