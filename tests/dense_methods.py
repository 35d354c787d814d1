"""What every method gives, on whole attention maps: the table of the design, written out.

The oracle of tests/counterfactual/test_attention.py and tests/dense_branches.py. A new method adds
its formula here; one that is missing is a KeyError, never another method.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from causalmm.counterfactual.methods import METHODS as DECLARED
from causalmm.counterfactual.methods import TOWERS, Formula, Method, find


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
    image: Tensor | None = None
    """Image keys of text queries, bool, the same shape: what scope "image" edits."""

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


def on_image(edit: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Callable[[Map], Tensor]:
    """The weights where only those of image keys change: `edit` gets a_ij and 0 elsewhere, their
    sum A, their number n and which they are."""

    def edited_row(given: Map) -> Tensor:
        inside = given.image & given.seen
        weights = given.weights.masked_fill(~inside, 0.0)
        mass, count = weights.sum(-1, keepdim=True), inside.sum(-1, keepdim=True)
        replaced = edit(weights, mass, count, inside)
        return torch.where(inside.any(-1, keepdim=True) & inside, replaced, given.weights)

    return edited_row


def even_share(weights: Tensor, mass: Tensor, count: Tensor, inside: Tensor) -> Tensor:
    return (mass / count.clamp_min(1)).expand_as(weights)


def away_from_image(weights: Tensor, mass: Tensor, count: Tensor, inside: Tensor) -> Tensor:
    """A (m_I - a_ij) / (n m_I - A), and even where that is 0/0."""
    largest = weights.amax(-1, keepdim=True)
    excess = count * largest - mass
    flat = excess <= (1e-9 if excess.dtype == torch.float64 else 1e-6) * mass
    edited = mass * (largest - weights) / excess.masked_fill(flat, 1.0)
    return torch.where(flat, even_share(weights, mass, count, inside), edited)


def random_on_image(given: Map) -> Tensor:
    def edit(weights: Tensor, mass: Tensor, count: Tensor, inside: Tensor) -> Tensor:
        drawn = given.numbers() * inside
        return mass * drawn / drawn.sum(-1, keepdim=True).clamp_min(1e-30)

    return on_image(edit)(given)


def blind(given: Map) -> Tensor:
    kept = given.weights.masked_fill(given.image, 0.0)
    return kept / kept.sum(-1, keepdim=True).clamp_min(1e-300)


METHODS: dict[tuple[str, str, str], Callable[[Map], Tensor]] = {
    ("language", "uniform", "visible"): uniform,
    ("language", "uniform", "released"): uniform_over_all_keys,
    ("language", "random", "visible"): random,
    ("language", "random", "released"): random_over_all_keys,
    ("language", "uniform", "image"): on_image(even_share),
    ("language", "reverse", "image"): on_image(
        lambda weights, mass, count, inside: weights.amax(-1, keepdim=True) - weights
    ),
    ("language", "reverse_and_normalize", "image"): on_image(away_from_image),
    ("language", "random", "image"): random_on_image,
    ("language", "blind", "image"): blind,
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


def variants(method: Method) -> tuple[str, ...]:
    """The normalizations of scope "all" that a method has, and "image" where it has that scope."""
    normalizations = method.normalizations if "all" in method.scopes else ()
    return (*normalizations, *(scope for scope in method.scopes if scope != "all"))


FORMULAS = {
    tower: [
        (method.name, variant)
        for method in DECLARED
        if method.tower == tower
        for variant in variants(method)
    ]
    for tower in TOWERS
}
"""Every declared method in each of its variants, to parametrise tests with."""


def formula(tower: str, method: str, variant: str) -> Formula:
    """The declared formula of a variant."""
    known = ("visible", "image") if variant == "image" else (variant, "all")
    return find(tower, method).formula(*known)


def settings(variant: str) -> dict[str, str]:
    """The arguments of `language_attention` that a variant stands for."""
    return {"scope": "image"} if variant == "image" else {"normalization": variant}


def config_settings(variant: str) -> dict[str, str]:
    """The same of `CausalMMConfig`."""
    return {"language_scope": "image"} if variant == "image" else {"normalization": variant}


RELEASED = {
    tower: [method for method, variant in FORMULAS[tower] if variant == "released"]
    for tower in TOWERS
}

UNRELEASED = [each for each in FORMULAS["language"] if each[1] != "released"]
"""Of the decoder, those that know every mask and cache."""


def edited(tower: str, method: str, variant: str, given: Map) -> Tensor:
    """The counterfactual weights [..., Q, K] of a method."""
    return METHODS[tower, method, variant](given)
