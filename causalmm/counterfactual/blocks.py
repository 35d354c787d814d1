"""Blocks of KV heads, queries and keys: what bounds the memory of a call, and fits a CPU's cache.

Letters as in causalmm/counterfactual/attention.py. Tests: tests/counterfactual/test_attention.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from causalmm.counterfactual.attention_call import AttentionCall, SoftmaxStats
from causalmm.counterfactual.formulas import beside_the_rest

BLOCK_ENTRIES = 2**18
"""Weights that exist at a time on a CPU: 1 MB of them, about what its caches hold."""
CONVERTED_PER_WEIGHT = 8
"""Entries of keys, and of values, that are in float32 at a time for each of those weights: a query
has few weights, and a long KV cache need not be converted whole."""
LEAST_QUERIES, LEAST_KEYS = 16, 512
"""Of each, in a block, at least: matrix products of fewer are slow."""


def in_blocks(
    call: AttentionCall,
    sizes: tuple[int, int, int],
    softmax_stats: Callable[[AttentionCall], SoftmaxStats],
    formula: Callable[[AttentionCall], Tensor],
) -> Tensor:
    """Outputs [B, H, Q, D] of a call, in the dtype of the query, block after block.

    `sizes`: of a block, KV heads, queries whose softmax statistics are computed together where the
    formula takes them, and queries whose outputs are.
    """
    whole = call.query.new_empty(*call.query.shape[:3], call.value.shape[3])
    for kv_heads in ranges(call.key.shape[1], sizes[0]):
        some_heads = call.kv_head_block(kv_heads)
        mine = whole[:, some_heads.heads.start : some_heads.heads.stop]
        for outer in ranges(call.query.shape[2], sizes[1]):
            block = some_heads.block(outer)
            if call.formula.part == "inside":
                block = replace(block, outside=softmax_stats(block.of_part("outside")))
            if call.formula.takes_stats:
                block = block.with_stats(softmax_stats(block))
            part = mine[:, :, outer.start : outer.stop]
            for inner in ranges(len(outer), sizes[2]):
                some = block.block(inner)
                output = formula(some)
                if call.formula.part == "inside":
                    output = beside_the_rest(some, output)
                part[:, :, inner.start : inner.stop] = output
    return whole


def queries_that_fit(call: AttentionCall, width: int) -> int:
    """As many queries as fit a block where each takes `width` entries a row and head."""
    fitting = block_entries(call.query.device) // (call.rows_per_kv_head * width)
    return min(call.query.shape[2], max(LEAST_QUERIES, fitting))


def keys_that_fit(call: AttentionCall) -> int:
    """As many keys as fit a block of all heads and queries."""
    rows = call.key.shape[1] * call.rows_per_kv_head * call.query.shape[2]
    converted = call.key[:, :, 0].numel() // CONVERTED_PER_WEIGHT
    return max(LEAST_KEYS, block_entries(call.query.device) // max(rows, converted))


def kv_heads_that_fit(call: AttentionCall, queries: int, width: int) -> int:
    """As many KV heads as fit a block of so many queries, each taking `width` entries a row and
    head; in blocks about as large as each other."""
    heads, rows = call.key.shape[1], call.rows_per_kv_head * queries * width
    blocks = -(-heads // max(1, block_entries(call.query.device) // rows))
    return -(-heads // blocks)


def block_entries(device: torch.device) -> int:
    """Weights that should exist at a time: few enough for a CPU's caches, elsewhere many."""
    return BLOCK_ENTRIES if device.type == "cpu" else 32 * BLOCK_ENTRIES


def ranges(count: int, at_a_time: int) -> Iterator[range]:
    """The numbers below `count`, `at_a_time` after another."""
    for start in range(0, count, at_a_time):
        yield range(start, min(start + at_a_time, count))
