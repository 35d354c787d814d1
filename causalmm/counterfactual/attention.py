"""Counterfactual attention outputs, without building the attention map.

B rows: S draws of n samples, laid out [draw 0: all samples | draw 1: all samples | ...]. H query
heads, G key-value heads (H = G * g), Q queries, K keys, D head size; vision encoder: Q = K = N.
For query i: a_ij factual softmax weights, S_i the n_i keys it may see, o_i = sum_j a_ij v_j,
m_i = max_j a_ij, u_i = sum of v_j over S_i, M = the largest a_ij of one head's whole map.
A call is worked off in blocks of heads, queries and keys, so that what exists at a time is bounded
and stays in a CPU's cache.
Promises, held in tests/counterfactual/test_attention.py: hidden keys get weight 0; a query that
sees no key gets 0; finite inputs give finite outputs; memory grows linearly with K (shuffle: one
map at a time).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from causalmm.counterfactual import formulas
from causalmm.counterfactual.attention_call import Attention, precise
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.backends import amx, flex
from causalmm.counterfactual.methods import Formula, find
from causalmm.counterfactual.softmax_stats import softmax_stats

RANDOM_QUERIES = 128
"""Queries in a block of random weights, at most: of keys that only later ones see, none are made
for them."""


def language_attention(
    method: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    visible: AttentionMask,
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
    formula = find("language", method).formula(normalization)
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
    formula = find("vision", method).formula(normalization)
    return _run(formula, query, key, value, scale, AttentionMask(causal=False), seed, draws, layer)


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
    visible: AttentionMask,
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
        visible=visible.numbered() if formula.random_weights else visible,
        heads=range(query.shape[1]),
        keys_given=key.shape[2],
        seed=seed,
        draws=tuple(draws),
        layer=layer,
        fused=formula.flex and flex.serves(query),
    )
    blocks = _block_sizes(call, formula)
    if formula.random_weights and not call.fused:
        rows = blocks.shared_heads * call.rows_a_head * blocks.inner
        call = call.with_random_weights(rows * key.shape[2])
    output = query.new_empty(*query.shape[:3], value.shape[3])
    # Autocast would quietly run the matrix products in half precision.
    with torch.autocast(query.device.type, enabled=False):
        for heads in call.head_blocks(blocks.shared_heads):
            # Random weights are 0 at padding, which sums of values know nothing of.
            ready = (
                _ready_for_products(heads) if formula.random_weights else heads.without_padding()
            )
            mine = output[:, heads.heads.start : heads.heads.stop]
            for outer in ready.query_blocks(blocks.outer):
                part = mine[:, :, outer.start : outer.stop]
                _fill(part, formula, _block(formula, ready, outer), blocks.inner)
    # NaN is a query that sees nothing, or sums beyond float32; methods whose weights do not sum
    # to 1 can leave the range of float16.
    return output.nan_to_num_(0.0)


def _fill(output: Tensor, formula: Formula, call: Attention, queries_at_a_time: int) -> None:
    # A function of its own, so that the statistics are gone before the next call's are made.
    if formula.softmax_stats:
        found = softmax_stats(call, whole_map=formula.whole_map)
        call = replace(call, factual=found.of_whole_map() if formula.whole_map else found)
    compute = getattr(formulas, formula.compute)
    for queries in call.query_blocks(queries_at_a_time):
        part = _block(formula, call, queries)
        output[:, :, queries.start : queries.stop] = compute(part)


def _block(formula: Formula, call: Attention, queries: range) -> Attention:
    keys = call.key.shape[2]
    if not formula.every_key:
        reach = call.visible.key_limit(queries, keys)
        # Some hidden keys more, so that the maps of a long prompt have few shapes.
        rounded = formula.random_weights and amx.supports(call.value)
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
            fitting = flex.ALONE if formula.random_weights else flex.QUERIES
            return BlockSizes(shared, fitting, fitting)
        return BlockSizes(max(1, shared * flex.QUERIES // queries), queries, flex.QUERIES)
    if formula.builds_a_map and not formula.random_weights:
        return BlockSizes(1, queries, queries)
    # A formula without weights holds about four tensors like its output at a time.
    by_key = formula.random_weights or call.visible.mask is not None
    width = keys if by_key else 4 * call.value.shape[3]
    if amx.supports(call.value):
        width = max(1, width // amx.LARGER)
    together = min(queries, RANDOM_QUERIES) if formula.random_weights else queries
    heads = call.heads_that_fit(together, max(width, keys) if formula.softmax_stats else width)
    if formula.softmax_stats and amx.serves(call):
        heads = max(heads, amx.heads_at_a_time(call))
    return BlockSizes(heads, queries, min(together, call.queries_that_fit(heads * width)))


def _fits(part: Tensor, samples: int) -> bool:
    # No `in`: see Intervention.edited in causalmm/counterfactual/intervention.py.
    return len(part) == 1 or len(part) == samples


def _check_shapes(
    query: Tensor, key: Tensor, value: Tensor, visible: AttentionMask, draws: Sequence[int]
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

    if keys is not None and (not _fits(keys, samples) or keys.shape[1] != length):
        raise ValueError(
            f"visible.keys {tuple(keys.shape)}: expected {[samples, length]} for {length} keys "
            f"and {rows} rows in {len(draws)} draws"
        )
    if mask is not None and (not _fits(mask, samples) or mask.shape[2:] != (queries, length)):
        raise ValueError(
            f"visible.mask {tuple(mask.shape)}: expected {[samples, 1, queries, length]} for "
            f"{rows} rows in {len(draws)} draws"
        )


def _ready_for_products(call: Attention) -> Attention:
    """The same with values in the precision that `_product` takes, for all blocks of queries."""
    return call if amx.supports(call.value) else replace(call, value=precise(call.value))
