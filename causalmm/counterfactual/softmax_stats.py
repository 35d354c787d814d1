"""What formulas need of factual attention: its output and largest weights, in blocks of scores.

Letters as in causalmm/counterfactual/attention.py. Tests: tests/counterfactual/test_attention.py.
"""

from dataclasses import replace

import torch

from causalmm.counterfactual.attention_call import (
    AttentionCall,
    SoftmaxStats,
    grouped_query_product,
    precise,
    precision,
)
from causalmm.counterfactual.blocks import cuts, keys_that_fit, queries_that_fit, ranges


def softmax_stats(call: AttentionCall) -> SoftmaxStats:
    """o_i, m_i and the log-sum-exp of scores; where a query sees nothing, these are NaN, infinite
    and -infinite.

    One block of keys after another, rescaling where a larger score comes: the online softmax
    (Milakov & Gimelshein, 2018, arXiv 1805.02867). So no more keys than a block's are held in the
    precision of the formulas at a time. For scores s_ij and c_i = max_j s_ij, the largest weight
    is m_i = exp(0) / sum_j exp(s_ij - c_i).
    """
    dtype, queries, keys = precision(call.query.dtype), call.query.shape[2], call.key.shape[2]
    keys_at_a_time = keys_that_fit(call)
    width = call.key.shape[1] * min(keys_at_a_time, keys)
    key_cuts, query_cuts = cuts(call.mask)
    query_blocks = list(ranges(queries, queries_that_fit(call, width), query_cuts))
    output = call.query.new_zeros(*call.query.shape[:3], call.value.shape[3], dtype=dtype)
    total = output.new_zeros(*output.shape[:3], 1)
    # Finite, as -inf - -inf would be NaN.
    largest = torch.full_like(total, torch.finfo(dtype).min)
    for some_keys in ranges(keys, keys_at_a_time, key_cuts):
        some = call.block(range(queries), some_keys)
        some = replace(some, key=precise(some.key), value=precise(some.value))
        for block in query_blocks:
            seen = some.mask.key_limit(block, len(some_keys))
            if not seen:
                continue
            only = some.mask.only_part(block, range(seen))
            if only is not None and only != some.mask.part:
                continue
            part = some.block(block, range(seen))
            part = part.without_part() if only else part
            sums = (each[:, :, block.start : block.stop] for each in (largest, total, output))
            old_largest, old_total, old_output = sums
            weights = part.scores()
            top = torch.maximum(old_largest, weights.amax(dim=-1, keepdim=True))
            weights = weights.sub_(top).exp_()
            rescale = (old_largest - top).exp_()
            old_largest.copy_(top)
            old_total.mul_(rescale).add_(weights.sum(dim=-1, keepdim=True))
            old_output.mul_(rescale).add_(grouped_query_product(weights, part.value))
    lse = total.log().add_(largest)
    peak = total.reciprocal_()
    return SoftmaxStats(output.mul_(peak), peak, lse)
