"""One attention call by every way to compute it: plain SDPA, ours, the released formulas densely.

A *case* is a tower, the number of queries and of keys, and a way; `call` makes it ready to run.
Inputs are random; languages queries are the last of their keys. Held by
tests/measuring/test_benchmarks.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from causalmm.counterfactual import released
from causalmm.counterfactual.attention import language_attention, vision_attention
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.methods import TOWERS, Formula, find, names

SDPA = "sdpa"
METHODS = {tower: names(tower) for tower in TOWERS}
CLOSED = {
    tower: tuple(name for name in METHODS[tower] if not find(tower, name).visible.builds_a_map)
    for tower in TOWERS
}
"""Methods that never build a map."""


class Shape(NamedTuple):
    """Of the inputs of a call, besides their lengths."""

    batch: int = 1
    heads: int = 8
    shared_heads: int = 8
    head_size: int = 64


class Case(NamedTuple):
    """What is computed, and how."""

    tower: str
    queries: int
    keys: int
    way: str
    """"sdpa", a method, or a method with "dense " before it."""

    @property
    def method(self) -> str:
        return self.way.removeprefix("dense ")

    @property
    def step(self) -> str:
        return "prefill" if self.queries == self.keys else "decode"


def cases(tower: str, keys: int, queries: int) -> list[Case]:
    """SDPA first, then every method, then every released method densely."""
    methods = METHODS[tower]
    released_ones = [name for name in methods if find(tower, name).released is not None]
    ways = [SDPA, *methods, *(f"dense {method}" for method in released_ones)]
    return [Case(tower, queries, keys, way) for way in ways]


def permutes(formula: Formula) -> bool:
    """Whether the whole map of a head is there, to be put in another order."""
    return formula.builds_a_map and not formula.random_weights


def map_bytes(case: Case, shape: Shape, dtype: torch.dtype) -> int:
    """About how much the maps take that exist at a time; 0 where none does."""
    entries = case.queries * case.keys
    formula = None if case.way == SDPA else find(case.tower, case.method).visible
    whole = shape.batch * shape.heads * entries
    # Scores, their softmax in float32 and in the model's precision, the edited map.
    dense = whole * (4 + 3 * dtype.itemsize)
    if case.way.startswith("dense "):
        if permutes(formula):
            dense += shape.heads * entries * 8
        return dense
    if formula is not None and permutes(formula):
        return entries * (shape.batch * 3 * 4 + 4 * 8)  # one head's; an order is sorted int64
    return 0


def call(
    case: Case, shape: Shape, dtype: torch.dtype, device: torch.device
) -> Callable[[], Tensor]:
    """The case on random inputs, ready to run."""
    generator = torch.Generator().manual_seed(0)

    def drawn(heads: int, length: int) -> Tensor:
        size = (shape.batch, heads, length, shape.head_size)
        return torch.randn(size, generator=generator).to(device, dtype)

    query = drawn(shape.heads, case.queries)
    key, value = (drawn(shape.shared_heads, case.keys) for _ in range(2))
    scale = shape.head_size**-0.5
    causal = case.tower == "language"
    if case.way == SDPA:
        grouped = {"enable_gqa": True} if shape.heads != shape.shared_heads else {}
        # One query that sees every key needs no mask.
        masked = causal and case.queries > 1
        return lambda: scaled_dot_product_attention(
            query, key, value, is_causal=masked, scale=scale, **grouped
        )
    if case.way.startswith("dense "):
        edit = _released(case.tower, case.method)
        share = shape.heads // shape.shared_heads
        return lambda: _dense(edit, query, key, value, scale, causal, share)
    if causal:
        visible = AttentionMask(query_start=case.keys - case.queries)
        return lambda: language_attention(case.way, query, key, value, scale=scale, visible=visible)
    return lambda: vision_attention(case.way, query, key, value, scale=scale)


def _dense(
    edit: Callable[[Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool,
    share: int,
) -> Tensor:
    if share > 1:
        key, value = (part.repeat_interleave(share, dim=1) for part in (key, value))
    scores = query @ key.mT * scale
    queries, keys = scores.shape[2:]
    if causal and queries > 1:
        hidden = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill_(hidden, -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    del scores
    return edit(weights) @ value


def _luck(weights: Tensor) -> Tensor:
    return torch.rand_like(weights)


def _permutations(weights: Tensor) -> Tensor:
    entries = weights[0, 0].numel()
    orders = [torch.randperm(entries, device=weights.device) for _ in range(weights.shape[1])]
    return torch.stack(orders)


def _released(tower: str, name: str) -> Callable[[Tensor], Any]:
    """The released formula of a method, of a map [B, H, Q, K], with what it draws."""
    method = find(tower, name)
    edit = getattr(released, method.released_map)
    if method.released.random_weights:
        return lambda weights: edit(weights, _luck(weights))
    if method.stochastic:
        return lambda weights: edit(weights, _permutations(weights))
    return edit
