"""What every method gives, on whole attention maps: the table of the design, written out.

The oracle of tests/counterfactual/test_attention.py and tests/dense_branches.py. A new method adds
its formula here; one that is missing is a KeyError, never another method.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from causalmm.counterfactual.methods import METHODS as DECLARED
from causalmm.counterfactual.methods import TOWERS


@dataclass(frozen=True)
class Map:
    """Maps of any number of heads and rows, and what a method may draw for them."""

    weights: Tensor  # [..., Q, K], softmax weights, 0 where hidden
    seen: Tensor  # bool, the same shape
    numbers: Callable[[], Tensor]
    """r_ij from 0 to 1, which broadcast to the weights."""
    orders: Callable[[], Tensor]
    """Permutations of the entries of each map, [..., N * N]."""
    start: int
    """Which key is the first query's own."""

    @property
    def shown(self) -> Tensor:
        return self.seen.to(self.weights.dtype)

    @property
    def count(self) -> Tensor:
        return self.shown.sum(-1, keepdim=True)


def uniform(given: Map) -> Tensor:
    return given.shown / given.count.clamp_min(1)


def uniform_over_all_keys(given: Map) -> Tensor:
    return given.shown / given.weights.shape[-1]


def away_from(given: Map, largest: Tensor) -> Tensor:
    """(m - a_ij) / (n m - 1), and even where that is 0/0."""
    excess = given.count * largest - 1
    flat = excess < (1e-9 if excess.dtype == torch.float64 else 1e-6)
    edited = (largest - given.weights) * given.shown / excess.masked_fill(flat, 1.0)
    return torch.where(flat, uniform(given), edited)


def row_largest(given: Map) -> Tensor:
    return given.weights.amax(-1, keepdim=True)


def map_largest(given: Map) -> Tensor:
    return given.weights.amax((-1, -2), keepdim=True).expand_as(given.weights[..., :1])


def random(given: Map) -> Tensor:
    drawn = given.numbers() * given.shown
    return drawn / drawn.sum(-1, keepdim=True).clamp_min(1e-30)


def random_over_all_keys(given: Map) -> Tensor:
    return given.numbers() / given.numbers().sum(-1, keepdim=True) * given.shown


def shuffled(given: Map) -> Tensor:
    entries = given.weights.flatten(-2)
    return entries.gather(-1, given.orders().expand_as(entries)).view_as(given.weights)


METHODS: dict[tuple[str, str, str], Callable[[Map], Tensor]] = {
    ("language", "uniform", "visible"): uniform,
    ("language", "uniform", "released"): uniform_over_all_keys,
    ("language", "random", "visible"): random,
    ("language", "random", "released"): random_over_all_keys,
    ("vision", "reversed", "visible"): lambda given: away_from(given, map_largest(given)),
    ("vision", "reversed", "released"): lambda given: map_largest(given) - given.weights,
    ("vision", "random", "visible"): random,
    ("vision", "random", "released"): lambda given: (2 * given.numbers()).expand_as(given.weights),
}
for normalization in ("visible", "released"):
    METHODS |= {
        ("language", "reverse", normalization): lambda given: (
            (row_largest(given) - given.weights) * given.shown
        ),
        ("language", "reverse_and_normalize", normalization): lambda given: away_from(
            given, row_largest(given)
        ),
        ("vision", "uniform", normalization): uniform,
        ("vision", "shuffle", normalization): shuffled,
    }


FORMULAS = {
    tower: [
        (method.name, normalization)
        for method in DECLARED
        if method.tower == tower
        for normalization in method.normalizations
    ]
    for tower in TOWERS
}
"""Every declared method under each normalization that it has, to parametrise tests with."""


RELEASED = {
    tower: [method for method, normalization in FORMULAS[tower] if normalization == "released"]
    for tower in TOWERS
}


def edited(tower: str, method: str, normalization: str, given: Map) -> Tensor:
    """The counterfactual weights [..., Q, K] of a method."""
    return METHODS[tower, method, normalization](given)
