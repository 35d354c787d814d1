"""Blocks of plain tensor operations: every formula on every device.

Letters as in causalmm/counterfactual/attention.py. Tests: tests/counterfactual/test_attention.py.
"""

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from causalmm.counterfactual import blocks, formulas
from causalmm.counterfactual.attention_call import AttentionCall, precise
from causalmm.counterfactual.softmax_stats import softmax_stats

RANDOM_QUERIES = 128
"""Queries in a block of random weights, at most: of keys that only later ones see, none are made
for them."""


def supports(call: AttentionCall) -> bool:
    """Every call is supported."""
    return True


def run(call: AttentionCall) -> Tensor:
    """Outputs [B, H, Q, D] in the dtype of the query."""
    sizes, compute = _block_sizes(call), getattr(formulas, call.formula.compute)
    output = call.query.new_empty(*call.query.shape[:3], call.value.shape[3])
    for kv_heads in blocks.ranges(call.key.shape[1], sizes.kv_heads):
        part = call.kv_head_block(kv_heads)
        if call.formula.random_weights and call.value.device.type == "cpu":
            part = replace(part, value=precise(part.value))  # once for all blocks of queries
        mine = output[:, part.heads.start : part.heads.stop]
        blocks.fill(mine, part, sizes.queries, softmax_stats, compute)
    return output


class BlockSizes(NamedTuple):
    """How much of a call is computed at a time."""

    kv_heads: int
    queries: int


def _block_sizes(call: AttentionCall) -> BlockSizes:
    formula, queries, keys = call.formula, call.query.shape[2], call.key.shape[2]
    if formula.builds_a_map and not formula.random_weights:
        return BlockSizes(1, queries)
    # A formula without weights holds about four tensors like its output at a time.
    by_key = formula.random_weights or call.mask.mask is not None
    width = keys if by_key else 4 * call.value.shape[3]
    together = min(queries, RANDOM_QUERIES) if formula.random_weights else queries
    heads = blocks.kv_heads_that_fit(
        call, together, max(width, keys) if formula.softmax_stats else width
    )
    return BlockSizes(heads, min(together, blocks.queries_that_fit(call, heads * width)))
