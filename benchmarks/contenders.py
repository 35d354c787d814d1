"""One attention call by every contender: plain SDPA, ours, the released formulas on dense maps.

A *case* is a tower, the number of queries and of keys, and a contender; `call` makes it ready to
run. Inputs are random; the language model's queries are the last of their keys, which hold an image
as LLaVA-1.5's prompt does. A contender of scope "image" is measured against "sdpa, image": SDPA
over all keys, and once more over the image keys alone.
Tests: tests/measuring/test_benchmarks.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from causalmm.counterfactual import released
from causalmm.counterfactual.attention import language_attention, vision_attention
from causalmm.counterfactual.attention_mask import AttentionMask, ImageTokens
from causalmm.counterfactual.methods import Formula, find, names

SDPA, DENSE, IMAGE = "sdpa", "dense ", ", image"
BEFORE, IMAGE_TOKENS = 5, 576
"""Tokens of text before the image, and those of the image, as in LLaVA-1.5's prompt."""


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
    """The contender: "sdpa", a method, or a method with "dense " before it; with ", image" after it
    for scope "image"."""

    @property
    def method(self) -> str:
        return self.way.removeprefix(DENSE).removesuffix(IMAGE)

    @property
    def scope(self) -> str:
        return "image" if self.way.endswith(IMAGE) else "all"

    @property
    def formula(self) -> Formula | None:
        """None for SDPA."""
        if self.method == SDPA:
            return None
        return find(self.tower, self.method).formula("visible", self.scope)

    @property
    def step(self) -> str:
        return "prefill" if self.queries == self.keys else "decode"


def cases(tower: str, keys: int, queries: int) -> list[Case]:
    """SDPA first, then every method in every scope, then every released method densely."""
    methods = [find(tower, name) for name in names(tower)]
    ours = {
        scope: [method.name for method in methods if scope in method.scopes]
        for scope in ("all", "image")
    }
    ways = [SDPA, *ours["all"]]
    if ours["image"]:
        ways += [name + IMAGE for name in (SDPA, *ours["image"])]
    ways += [DENSE + method.name for method in methods if method.released is not None]
    return [Case(tower, queries, keys, way) for way in ways]


def image_of(keys: int) -> range:
    """Which of so many keys are image tokens: the last, of several, is text."""
    first = min(BEFORE, max(keys - 2, 0))
    return range(first, min(BEFORE + IMAGE_TOKENS, max(keys - 1, first + 1)))


def map_bytes(case: Case, inputs: Inputs) -> int:
    """About how much the maps take that exist at a time; 0 where no head's whole map does."""
    formula = case.formula
    if formula is None:
        return 0
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
    image = image_of(case.keys)
    if case.method == SDPA:
        grouped = {"enable_gqa": True} if inputs.heads != inputs.kv_heads else {}
        sdpa = partial(scaled_dot_product_attention, query, scale=scale, **grouped)
        if case.scope == "all":
            return lambda: sdpa(key, value, is_causal=masked)
        some = [part[:, :, image.start : image.stop] for part in (key, value)]
        return lambda: (sdpa(key, value, is_causal=masked), sdpa(*some))[0]
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
        start, tokens = case.keys - case.queries, torch.zeros(1, case.keys, dtype=torch.bool)
        tokens[:, image.start : image.stop] = True
        tokens = tokens.to(inputs.device)
        visible = AttentionMask(
            query_start=start, image=ImageTokens(keys=tokens, queries=tokens[:, start:])
        )
        return lambda: language_attention(
            case.method, query, key, value, scale=scale, visible=visible, scope=case.scope
        )
    return lambda: vision_attention(case.method, query, key, value, scale=scale)


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
