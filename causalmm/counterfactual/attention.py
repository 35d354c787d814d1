"""Counterfactual attention outputs, without building the attention map.

B rows: S draws of n samples, laid out [draw 0: all samples | draw 1: all samples | ...]. H query
heads, G key-value heads (H = G * g), Q queries, K keys, D head size; vision encoder: Q = K = N.
For query i: a_ij factual softmax weights, S_i the n_i keys it may see, o_i = sum_j a_ij v_j,
m_i = max_j a_ij, u_i = sum of v_j over S_i, M = the largest a_ij of one head's whole map.
A call is worked off in blocks of heads, queries and keys, so that what exists at a time is bounded
and stays in a CPU's cache.
Promises, held in tests/test_attention.py: hidden keys get weight 0; a query that sees no key gets
0; finite inputs give finite outputs; memory grows linearly with K (shuffle: one map at a time).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from causalmm.config import NORMALIZATIONS
from causalmm.counterfactual import random_weights
from causalmm.counterfactual.attention_call import Attention, grouped, precise, precision
from causalmm.counterfactual.attention_mask import Visible
from causalmm.counterfactual.backends import amx, flex
from causalmm.counterfactual.softmax_stats import statistics

FLAT = 64
"""n*m - 1 within this many rounding errors of 0 means a uniform row, whose reverse is 0/0."""
SPAN = 32
"""Places whose running sums are one matrix product, on a CPU."""
LUCKY_QUERIES = 128
"""Queries in a block of random weights, at most: of keys that only later ones see, none are made
for them."""


class Sums(NamedTuple):
    """u_i [B, H, Q, D] and n_i, which broadcasts to [B, H, Q, 1]."""

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """u_i / n_i, and 0 where nothing is seen."""
        return self.total / self.count.clamp_min(1)


def visible_sums(call: Attention) -> Sums:
    """u_i and n_i: sums over the keys before the block, and running ones in it."""
    visible, value = call.rows, call.value
    queries, keys = call.query.shape[2], call.key.shape[2]
    dtype = precision(value.dtype)
    trailing = isinstance(visible.query_start, int) and visible.query_start + queries == keys
    if visible.mask is not None or (visible.causal and queries == 1 and not trailing):
        seen = call.seen().to(dtype)
        return Sums(call.per_query_head(seen @ value.to(dtype)), seen.sum(dim=-1, keepdim=True))

    def added_up(part: Tensor) -> Tensor:
        if not visible.causal:
            return part.sum(dim=2, keepdim=True, dtype=dtype)
        if trailing:
            return _running_sum(part, queries, dtype)
        last = visible.index(queries, value.device)
        return part.cumsum(dim=2, dtype=dtype).index_select(2, last)

    if visible.keys is None:
        count = visible.count(queries, keys, value.device).to(dtype).view(1, 1, -1, 1)
    else:
        count = added_up(visible.keys[:, None, :, None].to(dtype))
    return Sums(call.per_query_head(added_up(value)), count)


def _running_sum(part: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """Sums up to each of the last `queries` places along axis 2."""
    before, own = part.split([part.shape[2] - queries, queries], dim=2)
    before = before.sum(dim=2, keepdim=True, dtype=dtype)
    if part.device.type != "cpu" or queries < 2 * SPAN:
        return before + own.cumsum(dim=2, dtype=dtype)
    # Across rows of memory a CPU's cumsum takes twice as long.
    spans = pad(own.to(dtype), (0, 0, 0, -queries % SPAN)).unflatten(2, (-1, SPAN))
    within = spans.new_ones(SPAN, SPAN).tril() @ spans
    ends = within[..., -1:, :]
    earlier = ends.cumsum(dim=2) - ends
    return (within + (earlier + before.unsqueeze(3))).flatten(2, 3)[:, :, :queries]


def uniform(call: Attention) -> Tensor:
    """Every visible key counts the same: u_i / n_i."""
    return visible_sums(call).mean


def uniform_over_all_keys(call: Attention) -> Tensor:
    """Released: every visible key counts 1/K, K being the number of all keys handed in."""
    return visible_sums(call).total / call.keys_given


def reverse(call: Attention) -> Tensor:
    """Weights m_i - a_ij, not normalised: m_i u_i - o_i."""
    output, peak = call.factual
    return (peak * visible_sums(call).total).sub_(output)


def reverse_and_normalize(call: Attention) -> Tensor:
    """Weights (m_i - a_ij) / (n_i m_i - 1), which sum to 1."""
    output, peak = call.factual
    sums = visible_sums(call)
    return _away_from(output, sums.mean, sums.count * peak - 1)


def random(call: Attention) -> Tensor:
    """Weights r_ij over their sum on visible keys."""
    if call.fused:
        return flex.random(call)
    weights = call.hide(call.random_numbers())
    return weighted(weights, weights.sum(dim=-1, keepdim=True), call.value)


def random_over_all_keys(call: Attention) -> Tensor:
    """Released: weights r_ij over their sum on all K keys, then masked."""
    weights = call.random_numbers()
    total = weights.sum(dim=-1, keepdim=True)
    return weighted(call.hide(weights), total, call.value)


def random_doubled(call: Attention) -> Tensor:
    """Released: weights 2 r_ij, with no row sum."""
    return _product(call.random_numbers().mul_(2), call.value)


def shuffle(call: Attention) -> Tensor:
    """The N x N weights of one head in another order, the same for all images of a draw."""
    outputs = []
    group = len(call.heads) // call.key.shape[1]
    for index, head in enumerate(call.heads):
        key, value = (precise(part[:, index // group]) for part in (call.key, call.value))
        weights = (precise(call.query[:, index]) * call.scale @ key.mT).softmax(dim=-1)
        outputs.append(_permute(weights, call, head) @ value)
    return torch.stack(outputs, dim=1)


class Formula(NamedTuple):
    """How a method's output is computed, and what it needs at a time."""

    compute: Callable[[Attention], Tensor]
    factual: bool = False
    """Whether it looks at the factual output and largest weights."""
    lucky: bool = False
    """Whether it looks at a random number for every pair of a query and a key."""
    whole_map: bool = False
    """Whether it needs all queries of a head at once; with `factual`, M as every m_i."""
    every_key: bool = False
    """Whether it looks at keys too that no query may see."""
    fused: bool = False
    """Whether it can use the fused kernel."""


class Method(NamedTuple):
    """A method's formula under either normalization."""

    visible: Formula
    released: Formula


_UNIFORM = Formula(uniform, fused=True)
_REVERSE = Formula(reverse, factual=True, fused=True)
_REVERSE_AND_NORMALIZE = Formula(reverse_and_normalize, factual=True, fused=True)
_RANDOM = Formula(random, lucky=True, fused=True)
_SHUFFLE = Formula(shuffle, whole_map=True)
LANGUAGE: dict[str, Method] = {
    "uniform": Method(_UNIFORM, Formula(uniform_over_all_keys, fused=True)),
    "reverse": Method(_REVERSE, _REVERSE),
    "reverse_and_normalize": Method(_REVERSE_AND_NORMALIZE, _REVERSE_AND_NORMALIZE),
    "random": Method(_RANDOM, Formula(random_over_all_keys, lucky=True, every_key=True)),
}
VISION: dict[str, Method] = {
    "uniform": Method(_UNIFORM, _UNIFORM),
    # Weights (M - a_ij) / (N M - 1); as released, M - a_ij.
    "reversed": Method(
        _REVERSE_AND_NORMALIZE._replace(whole_map=True), _REVERSE._replace(whole_map=True)
    ),
    "random": Method(_RANDOM, Formula(random_doubled, lucky=True)),
    "shuffle": Method(_SHUFFLE, _SHUFFLE),
}


def language_attention(
    method: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    visible: Visible,
    normalization: str = "visible",
    seed: int = 0,
    draws: Sequence[int] = (0,),
    layer: int = 0,
) -> Tensor:
    """Counterfactual self-attention of the decoder: [B, H, Q, D] in the query's dtype.

    Query [B, H, Q, D], key and value [B, G, K, D], position embeddings applied. The rows hold one
    group of samples a draw; `visible` describes the samples. Raises ValueError for an unknown
    method or normalization and for shapes that do not fit.
    """
    formula = _formula(LANGUAGE, method, normalization)
    return _run(formula, query, key, value, scale, visible, seed, draws, layer)


def vision_attention(
    method: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    normalization: str = "visible",
    seed: int = 0,
    draws: Sequence[int] = (0,),
    layer: int = 0,
) -> Tensor:
    """Counterfactual attention of the vision encoder, where all N patches see each other.

    As `language_attention`; a sample is an image.
    """
    formula = _formula(VISION, method, normalization)
    return _run(formula, query, key, value, scale, Visible(causal=False), seed, draws, layer)


def edited_map(
    method: str,
    weights: Tensor,
    normalization: str = "visible",
    seed: int = 0,
    draws: Sequence[int] = (0,),
    layer: int = 0,
) -> Tensor:
    """The counterfactual map itself, [B, H, N, N], of softmax maps: for the vision site "features".

    A map is the attention output for the identity as values, and it is its own softmax of its
    logarithm: so the formulas of `vision_attention` give it.
    """
    rows, _, patches, _ = weights.shape
    logarithm = precise(weights).log()
    # -inf times the identity's zeros would be NaN; this, too, is a weight of exactly 0.
    logarithm = logarithm.clamp_min(-1e4)
    identity = torch.eye(patches, dtype=logarithm.dtype, device=weights.device)
    identity = identity.expand(rows, 1, patches, patches)  # one head, shared by all
    edited = vision_attention(
        method,
        logarithm,
        identity,
        identity,
        scale=1.0,
        normalization=normalization,
        seed=seed,
        draws=draws,
        layer=layer,
    )
    return edited.to(weights.dtype)


def _run(
    formula: Formula,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    visible: Visible,
    seed: int,
    draws: Sequence[int],
    layer: int,
) -> Tensor:
    _check_shapes(query, key, value, visible, draws)
    call = Attention(
        query=query,
        key=key,
        value=value,
        scale=scale,
        visible=visible.numbered() if formula.lucky else visible,
        heads=range(query.shape[1]),
        keys_given=key.shape[2],
        seed=seed,
        draws=tuple(draws),
        layer=layer,
        fused=formula.fused and flex.serves(query),
    )
    blocks = _block_sizes(call, formula)
    if formula.lucky and not call.fused:
        rows = blocks.shared_heads * call.rows_a_head * blocks.inner
        call = call.with_luck(rows * key.shape[2])
    output = query.new_empty(*query.shape[:3], value.shape[3])
    # Autocast would quietly run the matrix products in half precision.
    with torch.autocast(query.device.type, enabled=False):
        for heads in call.head_blocks(blocks.shared_heads):
            # Random weights are 0 at padding, which sums of values know nothing of.
            ready = _ready_for_products(heads) if formula.lucky else heads.without_padding()
            mine = output[:, heads.heads.start : heads.heads.stop]
            for outer in ready.query_blocks(blocks.outer):
                part = mine[:, :, outer.start : outer.stop]
                _fill(part, formula, _block(formula, ready, outer), blocks.inner)
    # NaN is a query that sees nothing, or sums beyond float32; methods whose weights do not sum
    # to 1 can leave the range of float16.
    return output.nan_to_num_(0.0)


def _fill(output: Tensor, formula: Formula, call: Attention, queries_at_a_time: int) -> None:
    # A function of its own, so that the statistics are gone before the next call's are made.
    if formula.factual:
        found = statistics(call, whole_map=formula.whole_map)
        call = replace(call, factual=found.of_whole_map() if formula.whole_map else found)
    for queries in call.query_blocks(queries_at_a_time):
        part = _block(formula, call, queries)
        output[:, :, queries.start : queries.stop] = formula.compute(part)


def _block(formula: Formula, call: Attention, queries: range) -> Attention:
    keys = call.key.shape[2]
    if not formula.every_key:
        reach = call.visible.reach(queries, keys)
        # Some hidden keys more, so that the maps of a long prompt have few shapes.
        rounded = formula.lucky and amx.suit(call.value)
        keys = min(keys, amx.round_up(reach)) if rounded else reach
    return call.block(queries, keys)


class BlockSizes(NamedTuple):
    """How much of a call is taken at a time."""

    shared_heads: int
    outer: int
    """Queries that share their statistics' blocks."""
    inner: int
    """Queries whose outputs are computed together."""


def _block_sizes(call: Attention, formula: Formula) -> BlockSizes:
    shared, queries, keys = call.key.shape[1], call.query.shape[2], call.key.shape[2]
    if call.fused:
        if not formula.whole_map:
            fitting = flex.ALONE if formula.lucky else flex.QUERIES
            return BlockSizes(shared, fitting, fitting)
        return BlockSizes(max(1, shared * flex.QUERIES // queries), queries, flex.QUERIES)
    if formula.whole_map and not formula.factual:
        return BlockSizes(1, queries, queries)
    # A formula without weights holds about four tensors like its output at a time.
    by_key = formula.lucky or call.visible.mask is not None
    width = keys if by_key else 4 * call.value.shape[3]
    if amx.suit(call.value):
        width = max(1, width // amx.LARGER)
    together = min(queries, LUCKY_QUERIES) if formula.lucky else queries
    heads = call.heads_that_fit(together, max(width, keys) if formula.factual else width)
    if formula.factual and amx.serve(call):
        heads = max(heads, amx.heads_at_a_time(call))
    return BlockSizes(heads, queries, min(together, call.queries_that_fit(heads * width)))


def _formula(methods: dict[str, Method], method: str, normalization: str) -> Formula:
    if method not in methods:
        raise ValueError(f"method={method!r}: expected one of {', '.join(methods)}")
    if normalization not in NORMALIZATIONS:
        allowed = ", ".join(NORMALIZATIONS)
        raise ValueError(f"normalization={normalization!r}: expected one of {allowed}")
    return getattr(methods[method], normalization)


def _check_shapes(
    query: Tensor, key: Tensor, value: Tensor, visible: Visible, draws: Sequence[int]
) -> None:
    rows, heads, queries, _ = query.shape
    if not draws or rows % len(draws):
        raise ValueError(f"draws={tuple(draws)}: expected their number to divide the {rows} rows")
    if key.shape[:3] != value.shape[:3] or key.shape[0] != rows or heads % key.shape[1]:
        raise ValueError(
            f"key {tuple(key.shape)} and value {tuple(value.shape)} do not fit query "
            f"{tuple(query.shape)}: expected {rows} rows, one length, heads that divide {heads}"
        )
    samples = rows // len(draws)
    keys, mask, length = visible.keys, visible.mask, key.shape[2]

    def fits(part: Tensor) -> bool:
        # No `in`: see Intervention.edited in causalmm/decoding/plan.py.
        return len(part) == 1 or len(part) == samples

    if keys is not None and (not fits(keys) or keys.shape[1] != length):
        raise ValueError(
            f"visible.keys {tuple(keys.shape)}: expected {[samples, length]} for {length} keys "
            f"and {rows} rows in {len(draws)} draws"
        )
    if mask is not None and (not fits(mask) or mask.shape[2:] != (queries, length)):
        raise ValueError(
            f"visible.mask {tuple(mask.shape)}: expected {[samples, 1, queries, length]} for "
            f"{rows} rows in {len(draws)} draws"
        )


def weighted(weights: Tensor, total: Tensor, value: Tensor) -> Tensor:
    """sum_j w_ij v_j / total_i, and 0 where that is 0 / 0."""
    return _product(weights, value) / total.clamp_min(torch.finfo(total.dtype).tiny)


def _ready_for_products(call: Attention) -> Attention:
    """The same with values in the precision that `_product` takes, for all blocks of queries."""
    return call if amx.suit(call.value) else replace(call, value=precise(call.value))


def _product(weights: Tensor, value: Tensor) -> Tensor:
    """sum_j w_ij v_j. In tiles the weights are rounded, as SDPA rounds its own."""
    if amx.suit(value):
        return grouped(weights.to(value.dtype), value).float()
    return grouped(weights, precise(value))


def _away_from(output: Tensor, mean: Tensor, excess: Tensor) -> Tensor:
    """sum_j (c - a_j) / (n c - 1) v_j for a largest weight c, given excess = n c - 1.

    With w_j = (c - a_j) / (n c - 1), w_j - 1/n = -(a_j - 1/n) / (n c - 1); and sum_j 1/n v_j is the
    mean. So the result is mean - (output - mean) / excess, where c u and o, large and nearly equal
    in flat rows, need not be subtracted. A flat row is 0/0: the mean. A row that sees nothing is
    NaN.
    """
    flat = excess <= FLAT * torch.finfo(output.dtype).eps
    return mean - (output - mean).div_(excess.masked_fill(flat, torch.inf))


def _permute(weights: Tensor, call: Attention, head: int) -> Tensor:
    """Maps [B, N, N] of one head, the entries of each dealt out again by its draw's permutation."""
    patches, device = weights.shape[-1], weights.device
    orders = [
        random_weights.permutation(call.seed, draw, call.layer, head, patches, device)
        for draw in call.draws
    ]
    entries = weights.flatten(1).unflatten(0, (len(orders), -1))  # [S, n, N * N]
    order = torch.stack(orders).unsqueeze(1).expand_as(entries)
    return entries.gather(-1, order).view_as(weights)
