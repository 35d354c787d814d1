"""Contrasts with branches over many questions: their mean, and what they add that is no lean.

A contrast is d = l - l_branch at one step of a plain answer, over the vocabulary. What it does is
measured where it matters: at a two-way question by what it adds to the log-odds of the first choice
against the second, one number; in free text on the most probable tokens, weighted by their plain
probabilities, and less its weighted mean there, since a constant in d changes nothing.

The mean contrast is the lean of a branch. What differs from it is not yet knowledge: the contrast
with a branch that always says the same word differs between questions as much as the plain logits
do. But an affine function of the plain log-odds only moves and stretches them, which puts no
question before another. So the spread is the root mean square of what the best such function
leaves. Tests: tests/evaluation/test_diagnose_center.py.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CONSTANT_BELOW = 0.5
"""Ratio of spread to mean under which a branch is called constant: of mean² + spread², what it adds
besides stretching, at least four fifths are then the same for every question."""
_FEWEST = 20
"""Steps that can tell."""
_TOKENS = 64
"""The most probable tokens of a step that are looked at in free text."""


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


class Contrasts:
    """Of all steps that were added; `state` and `Contrasts(state)` are a copy's way to disk.

    Sums over the vocabulary are float64; what is measured is a row a step, [steps, 1] for two-way
    questions and [steps, tokens] in free text.
    """

    def __init__(self, state: Mapping[str, Tensor] | None = None) -> None:
        held = dict(state or {})
        self._sums = {name: part for name, part in held.items() if name.endswith(" sum")}
        self._rows = {name: [part] for name, part in held.items() if name not in self._sums}

    @property
    def state(self) -> dict[str, Tensor]:
        """All that was added, by name."""
        return self._sums | {name: torch.cat(parts) for name, parts in self._rows.items()}

    @property
    def steps(self) -> int:
        """How many were added."""
        return sum(map(len, self._rows.get("plain", ())))

    def add(
        self,
        factual: Tensor,
        branches: Mapping[str, Tensor],
        choices: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Add a step's logits [vocab]; `choices`: the tokens that spell either of two answers."""
        logits = {name: part.double() for name, part in {"plain": factual, **branches}.items()}
        plain = logits["plain"]
        if choices is None:
            tokens = plain.topk(min(_TOKENS, len(plain))).indices
            self._add_row("tokens", tokens)
            rows = {name: part[tokens] for name, part in logits.items()}
        else:
            rows = {name: _log_odds(part, choices) for name, part in logits.items()}
        for name, part in logits.items():
            added, row = part, rows[name]
            if name != "plain":
                added, row = plain - part, rows["plain"] - row
            key = f"{name} sum"
            self._sums[key] = self._sums[key] + added if key in self._sums else added
            self._add_row(name, row)

    def mean(self, name: str) -> Tensor:
        """A branch's mean contrast, float64 [vocab]."""
        return self._sums[f"{name} sum"] / self.steps

    def lean(self, name: str) -> Lean:
        """How a branch leans over the steps that were added."""
        state, n = self.state, self.steps
        plain, added = state["plain"], state[name]
        if (tokens := state.get("tokens")) is None:
            weights = torch.ones_like(plain)
            means = [part.mean(dim=0).expand_as(part) for part in (plain, added)]
            size = float(added.mean())
        else:
            weights = plain.softmax(dim=-1)
            means = [self.mean(each)[tokens] for each in ("plain", name)]
            size = math.sqrt(_product(weights, *2 * [_centered(weights, means[1])]))
        plain, added = plain - means[0], added - means[1]
        if tokens is not None:
            plain, added = _centered(weights, plain), _centered(weights, added)
        own = _product(weights, plain, plain)
        slope = _product(weights, plain, added) / own if own > 0 else 0.0
        rest = _product(weights, *2 * [added - slope * plain])
        spread = math.sqrt(rest * n / (n - 2)) if n > 2 else math.inf  # two numbers were fitted
        return Lean(size, spread, n)

    def _add_row(self, name: str, row: Tensor) -> None:
        self._rows.setdefault(name, []).append(row.unsqueeze(0))


def _log_odds(logits: Tensor, choices: Sequence[Sequence[int]]) -> Tensor:
    first, second = (logits[list(tokens)].logsumexp(dim=-1) for tokens in choices)
    return (first - second).unsqueeze(0)


def _centered(weights: Tensor, values: Tensor) -> Tensor:
    return values - (weights * values).sum(dim=-1, keepdim=True)


def _product(weights: Tensor, one: Tensor, other: Tensor) -> float:
    """Mean over steps of the weighted sum of products."""
    return float((weights * one * other).sum(dim=-1).mean())
