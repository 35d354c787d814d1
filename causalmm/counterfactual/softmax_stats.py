"""Factual attention: what formulas look at of it, and its output for a decoding step.

Letters as in causalmm/counterfactual/attention.py. Held by tests/counterfactual/test_attention.py.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from causalmm.counterfactual.attention_call import (
    Attention,
    SoftmaxStats,
    grouped,
    precise,
    precision,
    ranges,
)
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.backends import amx, flex

REFINED = 64
"""Queries a block that is computed again."""


def softmax_stats(call: Attention, *, whole_map: bool = False) -> SoftmaxStats:
    """o_i and m_i. `whole_map`: only the largest m_i of a head will be looked at.

    Where a query sees nothing, m_i is infinite and o_i NaN.
    """
    if call.fused:
        return SoftmaxStats(*flex.softmax_stats(call))
    if amx.serves(call):
        found = amx.softmax_stats(call)
        return _refined(call, found, found.of_whole_map().peak if whole_map else found.peak)
    return _from_scores(call)


def _refined(call: Attention, found: SoftmaxStats, peak: Tensor) -> SoftmaxStats:
    """The same where blocks with a flat row, n_i m_i < 2 by the `peak` that formulas look at, are
    computed from scores: they divide by n_i m_i - 1, which must not enlarge the rounding of o_i."""
    queries, keys = call.query.shape[2], call.key.shape[2]
    count = call.visible.count(queries, keys)
    flat = (peak.amin(dim=(0, 1)).flatten() * count < 2).nonzero().flatten()
    for number in (flat // REFINED).unique().tolist():
        some = range(number * REFINED, min((number + 1) * REFINED, queries))
        exact = _from_scores(call.block(some))
        for old, new in zip(found.block(some), exact, strict=True):
            old.copy_(new)
    return found


def _from_scores(call: Attention) -> SoftmaxStats:
    """Both in one pass over the scores: what is largest in a row weighs exp(0) / total, so
    m_i = 1 / total."""
    shared, queries, keys = call.key.shape[1], call.query.shape[2], call.key.shape[2]
    keys_at_a_time = call.keys_that_fit()
    queries_at_a_time = call.queries_that_fit(shared * min(keys_at_a_time, keys))
    if keys_at_a_time >= keys and queries_at_a_time >= queries:
        sums = _exponential_sums(call)
    else:
        sums = _exponential_sums_in_blocks(call, queries_at_a_time, keys_at_a_time)
    peak = sums.total.reciprocal_()
    return SoftmaxStats(sums.output.mul_(peak), peak)


class ExponentialSums(NamedTuple):
    """For scores s_ij: c_i = max_j s_ij [B, H, Q, 1], sum_j exp(s_ij - c_i) [B, H, Q, 1] and
    sum_j exp(s_ij - c_i) v_j [B, H, Q, D]. Where nothing is seen, c_i is finite and the sums 0."""

    largest: Tensor
    total: Tensor
    output: Tensor


def _exponential_sums(call: Attention) -> ExponentialSums:
    weights = call.scores()
    # Finite, as -inf - -inf would be NaN.
    largest = weights.amax(dim=-1, keepdim=True).clamp_min_(torch.finfo(weights.dtype).min)
    weights = weights.sub_(largest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    return ExponentialSums(largest, total, grouped(weights, precise(call.value)))


def _exponential_sums_in_blocks(
    call: Attention, queries_at_a_time: int, keys_at_a_time: int
) -> ExponentialSums:
    """One block of keys after another, rescaling where a larger score comes: the online softmax
    (Milakov & Gimelshein, 2018, arXiv 1805.02867). So no more keys than a block's are held in the
    precision of the formulas at a time."""
    dtype = precision(call.query.dtype)
    output = call.query.new_zeros(*call.query.shape[:3], call.value.shape[3], dtype=dtype)
    total = output.new_zeros(*output.shape[:3], 1)
    sums = ExponentialSums(torch.full_like(total, torch.finfo(dtype).min), total, output)
    for some_keys in ranges(call.key.shape[2], keys_at_a_time):
        some = call.slice_keys(some_keys)
        some = replace(some, key=precise(some.key), value=precise(some.value))
        for queries in call.query_blocks(queries_at_a_time):
            part = some.block(queries)
            if not part.key.shape[2]:
                continue
            here = slice(queries.start, queries.stop)
            largest, total, output = (old[:, :, here] for old in sums)
            new = _exponential_sums(part)
            top = torch.maximum(largest, new.largest)
            old_share, new_share = (largest - top).exp_(), (new.largest - top).exp_()
            largest.copy_(top)
            total.mul_(old_share).add_(new.total.mul_(new_share))
            output.mul_(old_share).add_(new.output.mul_(new_share))
    return sums


def one_query_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, visible: AttentionMask
) -> Tensor:
    """Factual attention of one query a row, [B, H, 1, D] in the query's dtype, without gradients.

    Query [B, H, 1, D], key and value [B, G, K, D]; `visible` describes the rows. On most CPUs
    PyTorch's own kernel, made for many queries, takes several times as long; and it rounds the
    weights, which are float32 here, to the query's precision. A row that sees no key gets 0.
    """
    everything = visible.is_full(key.shape[2])
    # One place for keys and then values: fresh memory costs more than the products.
    room = key.new_empty(key.shape, dtype=precision(key.dtype))
    # Autocast would quietly run the matrix products in half precision.
    with torch.autocast(query.device.type, enabled=False):
        scores = grouped(precise(query) * scale, room.copy_(key).mT)
        if not everything:
            scores.masked_fill_(~visible.to_dense(1, key.shape[2], key.device), -torch.inf)
        output = grouped(scores.softmax(dim=-1), room.copy_(value))
    return (output if everything else output.nan_to_num_(0.0)).to(query.dtype)
