"""Blocks of plain tensor operations: every formula on every device.

Letters as in causalmm/counterfactual/attention.py. Tests: tests/counterfactual/test_attention.py.
"""

from dataclasses import replace

from torch import Tensor

from causalmm.counterfactual import blocks, formulas
from causalmm.counterfactual.attention_call import AttentionCall, precise
from causalmm.counterfactual.softmax_stats import softmax_stats

RANDOM_QUERIES = 128
"""Queries in a block of random weights, at most: of keys that only later ones see, none are made
for them."""

STATS_QUERIES = 512
"""Queries whose softmax statistics are computed together, at most: of many heads in a few blocks,
which takes less time than many blocks of single heads."""


def supports(call: AttentionCall) -> bool:
    """Every call is supported."""
    return True


def run(call: AttentionCall) -> Tensor:
    """Outputs [B, H, Q, D] in the dtype of the query."""
    if call.formula.random_weights and call.value.device.type == "cpu":
        call = replace(call, value=precise(call.value))  # once for all blocks
    formula = getattr(formulas, call.formula.compute)
    return blocks.in_blocks(call, _block_sizes(call), softmax_stats, formula)


def _block_sizes(call: AttentionCall) -> tuple[int, int, int]:
    formula, queries, keys = call.formula, call.query.shape[2], call.key.shape[2]
    if formula.builds_a_map and not formula.random_weights:
        return 1, queries, queries
    if formula.part == "inside":
        keys = len(call.mask.image_span(keys))
    # A formula without weights holds about four tensors like its output at a time.
    by_key = formula.random_weights or call.mask.mask is not None
    width = keys if by_key else 4 * call.value.shape[3]
    if formula.takes_stats and not formula.whole_map:
        outer = min(queries, STATS_QUERIES)
        kv_heads = blocks.kv_heads_that_fit(call, outer, call.value.shape[3])
        inner = blocks.queries_that_fit(call, kv_heads * width) if by_key else outer
        return kv_heads, outer, min(outer, inner)
    together = min(queries, RANDOM_QUERIES) if formula.random_weights else queries
    widest = max(width, keys) if formula.whole_map else width
    kv_heads = blocks.kv_heads_that_fit(call, together, widest)
    return kv_heads, queries, min(together, blocks.queries_that_fit(call, kv_heads * width))
