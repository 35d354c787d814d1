"""Blocks of KV heads, queries and keys: what bounds the memory of a call, and fits a CPU's cache.

Letters as in causalmm/counterfactual/attention.py. Tests: tests/counterfactual/test_attention.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from causalmm.counterfactual.attention_call import AttentionCall, SoftmaxStats
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.formulas import beside_the_rest

BLOCK_ENTRIES = 2**18
"""Weights that exist at a time on a CPU: 1 MB of them, about what its caches hold."""
CONVERTED_PER_WEIGHT = 8
"""Entries of keys, and of values, that are in float32 at a time for each of those weights: a query
has few weights, and a long KV cache need not be converted whole."""
MOST_CUTS = 16
"""Places where pictures begin or end, of which each begins a block: more make blocks too small."""
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
    inside = call.formula.part == "inside"
    _, query_cuts = cuts(call.mask)
    whole = call.query.new_empty(*call.query.shape[:3], call.value.shape[3])
    for kv_heads in ranges(call.key.shape[1], sizes[0]):
        some_heads = call.kv_head_block(kv_heads)
        mine = whole[:, some_heads.heads.start : some_heads.heads.stop]
        for outer in ranges(call.query.shape[2], sizes[1], query_cuts):
            block = some_heads.block(outer)
            part = mine[:, :, outer.start : outer.stop]
            if inside:
                outside = softmax_stats(block.of_part("outside"))
                if block.mask.only_part(range(len(outer)), range(block.key.shape[2])) == "outside":
                    part.copy_(outside.output)
                    continue
                block = replace(block.of_part("inside"), outside=outside)
            if call.formula.takes_stats:
                block = block.with_stats(softmax_stats(block))
            for inner in ranges(len(outer), sizes[2]):
                some = block.block(inner)
                output = formula(some)
                part[:, :, inner.start : inner.stop] = (
                    beside_the_rest(some, output) if inside else output
                )
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


def ranges(count: int, at_a_time: int, cuts: Sequence[int] = ()) -> Iterator[range]:
    """The numbers below `count`, `at_a_time` after another, and a new range at each of `cuts`."""
    for first, last in pairwise((0, *cuts, count)):
        for start in range(first, last, at_a_time):
            yield range(start, min(start + at_a_time, last))


def cuts(mask: AttentionMask) -> tuple[list[int], list[int]]:
    """Numbers of keys, and of queries, at which image tokens begin or end, where a part is asked
    for: between them most blocks are all of one part, and so need no mask or no products."""
    if mask.part is None or not mask.image.readable:
        return [], []
    found = []
    for flags in (mask.image.keys, mask.image.queries):
        changes = (flags[:, 1:] != flags[:, :-1]).any(dim=0).nonzero().flatten() + 1
        found.append(changes.tolist() if len(changes) <= MOST_CUTS else [])
    return found[0], found[1]
