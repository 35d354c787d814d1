"""One attention call by every contender: plain SDPA, ours, the released formulas on dense maps.

A *case* is a tower, the number of queries and of keys, and a contender; `call` makes it ready to
run. Inputs are random; the language model's queries are the last of their keys.
Tests: tests/measuring/test_benchmarks.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from causalmm.counterfactual import released
from causalmm.counterfactual.attention import language_attention, vision_attention
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.methods import find, names

SDPA, DENSE = "sdpa", "dense "


class Inputs(NamedTuple):
    """Of a call, besides their lengths."""

    batch: int
    heads: int
    kv_heads: int
    head_size: int
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = torch.device("cpu")


class Case(NamedTuple):
    """What is computed, and how."""

    tower: str
    queries: int
    keys: int
    way: str
    """The contender: "sdpa", a method, or a method with "dense " before it."""

    @property
    def method(self) -> str:
        return self.way.removeprefix(DENSE)

    @property
    def step(self) -> str:
        return "prefill" if self.queries == self.keys else "decode"


def cases(tower: str, keys: int, queries: int) -> list[Case]:
    """SDPA first, then every method, then every released method densely."""
    methods = names(tower)
    dense = [DENSE + name for name in methods if find(tower, name).released is not None]
    return [Case(tower, queries, keys, way) for way in (SDPA, *methods, *dense)]


def map_bytes(case: Case, inputs: Inputs) -> int:
    """About how much the maps take that exist at a time; 0 where no head's whole map does."""
    if case.way == SDPA:
        return 0
    formula = find(case.tower, case.method).visible
    permuted = formula.builds_a_map and not formula.random_weights
    dense = case.way.startswith(DENSE)
    heads = inputs.heads if dense else int(permuted)  # ours permutes one head at a time
    # Scores, weights and edited weights; permutations are sorted as int64.
    return heads * case.queries * case.keys * (12 * inputs.batch + 24 * permuted)


def call(case: Case, inputs: Inputs) -> Callable[[], Tensor]:
    """The case on random inputs, ready to run."""
    generator = torch.Generator().manual_seed(0)

    def drawn(heads: int, length: int) -> Tensor:
        size = (inputs.batch, heads, length, inputs.head_size)
        return torch.randn(size, generator=generator).to(inputs.device, inputs.dtype)

    query = drawn(inputs.heads, case.queries)
    key, value = (drawn(inputs.kv_heads, case.keys) for _ in range(2))
    scale = inputs.head_size**-0.5
    causal = case.tower == "language"
    # One query that sees every key needs no mask.
    masked = causal and case.queries > 1
    if case.way == SDPA:
        grouped = {"enable_gqa": True} if inputs.heads != inputs.kv_heads else {}
        return lambda: scaled_dot_product_attention(
            query, key, value, is_causal=masked, scale=scale, **grouped
        )
    if case.way.startswith(DENSE):
        edit, repeats = _released(case.tower, case.method), inputs.heads // inputs.kv_heads

        def dense() -> Tensor:
            keys, values = (part.repeat_interleave(repeats, dim=1) for part in (key, value))
            scores = query @ keys.mT * scale
            if masked:
                hidden = torch.ones(scores.shape[2:], dtype=torch.bool, device=inputs.device)
                scores = scores.masked_fill_(hidden.triu(1), -torch.inf)
            weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
            del scores
            return edit(weights) @ values

        return dense
    if causal:
        visible = AttentionMask(query_start=case.keys - case.queries)
        return lambda: language_attention(case.way, query, key, value, scale=scale, visible=visible)
    return lambda: vision_attention(case.way, query, key, value, scale=scale)


def _released(tower: str, name: str) -> Callable[[Tensor], Any]:
    """The released formula of a method, of a map [B, H, Q, K], with what it draws."""
    method = find(tower, name)
    edit = getattr(released, method.released_map)
    if method.released.random_weights:
        return lambda weights: edit(weights, torch.rand_like(weights))
    if not method.stochastic:
        return edit

    def permute(weights: Tensor) -> Tensor:
        entries, device = weights[0, 0].numel(), weights.device
        orders = [torch.randperm(entries, device=device) for _ in range(weights.shape[1])]
        return edit(weights, torch.stack(orders))

    return permute
