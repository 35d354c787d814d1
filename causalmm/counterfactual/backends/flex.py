"""flex_attention on CUDA.

The kernel returns the log-sum-exp and the largest score of each query beside its output, so that
the largest weight m_i = exp(max - lse) costs no second pass; random weights are
r_ij / sum r = softmax(ln r_ij), a modification of the scores.
Letters as in causalmm/counterfactual/attention.py. Tests: tests/counterfactual/test_flex.py.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from causalmm.counterfactual import blocks, formulas
from causalmm.counterfactual.attention_call import AttentionCall, SoftmaxStats
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.methods import Formula
from causalmm.counterfactual.random_weights import number

QUERIES = 512
"""Queries in a block: enough to fill a GPU, few enough that the formulas around the kernel hold
little beside it. Blocks see no keys after their own, so no kernel needs to know of causality."""
RANDOM_QUERIES = 2048
"""The same for random weights, where nothing is held beside the kernel."""
_HEAD_SIZES = (16, 32, 64, 128, 256)


def supports(call: AttentionCall) -> bool:
    """Whether the kernel takes this call.

    Never on a CPU: that of torch 2.13 is wrong on some of them for some numbers of keys
    (tests/counterfactual/test_flex.py). Nor a decoding step of random weights, where it would read
    keys for scores that nothing needs.
    """
    queries, size = call.query.shape[2:]
    return (
        call.query.is_cuda
        and call.query.dtype != torch.float64
        and call.value.shape[3] == size
        # No `in`: a compiler may have made the size a symbol, and would answer False.
        and any(size == known for known in _HEAD_SIZES)
        and computes(call.formula)
        and not (call.formula.random_weights and queries == 1)
    )


def computes(formula: Formula) -> bool:
    """Whether there is a kernel for a formula: `softmax_stats` suffices where no map is built."""
    return not formula.builds_a_map or formula.compute in _KERNELS


def run(call: AttentionCall) -> Tensor:
    """Outputs [B, H, Q, D] in the dtype of the query."""
    formula, queries, kv_heads = call.formula, call.query.shape[2], call.key.shape[1]
    at_a_time = outer = RANDOM_QUERIES if formula.random_weights else QUERIES
    if formula.whole_map:
        kv_heads, outer = max(1, kv_heads * at_a_time // queries), queries
    compute = _KERNELS.get(formula.compute) or getattr(formulas, formula.compute)
    return blocks.in_blocks(call, (kv_heads, outer, at_a_time), softmax_stats, compute)


def softmax_stats(call: AttentionCall) -> SoftmaxStats:
    """o_i, m_i and the log-sum-exp, float32; where a query sees nothing, m_i is NaN."""
    scale = torch.full((), call.scale, device=call.query.device)
    return SoftmaxStats(*_run(_softmax_stats, call, scale))


def random(call: AttentionCall) -> Tensor:
    """Outputs [B, H, Q, D], in the dtype of the query, of weights r_ij over their visible sum."""
    return _run(_random, call, *(_settled(part) for part in call.hashes))


_KERNELS = {"random": random}
"""What stands for formulas of causalmm/counterfactual/formulas.py that build a map there."""


def _softmax_stats(call: AttentionCall, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    seen = _seen(call.mask)

    def hide(score: Tensor, row: Tensor, head: Tensor, place: Tensor, other: Tensor) -> Tensor:
        return torch.where(seen(row, place, other), score * scale, -torch.inf)

    output, extra = flex_attention(
        call.query,
        call.key,
        call.value,
        score_mod=hide,
        scale=1.0,
        enable_gqa=True,
        return_aux=AuxRequest(lse=True, max_scores=True),
    )
    peak = (extra.max_scores - extra.lse).float().exp()
    return output.float(), peak.unsqueeze(-1), extra.lse.float().unsqueeze(-1)


def _random(call: AttentionCall, queries: Tensor, keys: Tensor) -> Tensor:
    seen = _seen(call.mask)
    every = len(keys) == 1

    def draw(score: Tensor, row: Tensor, head: Tensor, place: Tensor, other: Tensor) -> Tensor:
        drawn = number(queries[row, head, place], keys[0 if every else row, other])
        return torch.where(seen(row, place, other), drawn.log(), -torch.inf)

    return flex_attention(
        call.query, call.key, call.value, score_mod=draw, scale=1.0, enable_gqa=True
    )


def _seen(mask: AttentionMask) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Whether a row's query sees a key, of their numbers."""
    dense, keys, start, causal = mask.mask, mask.keys, mask.query_start, mask.causal
    image, inside = mask.image, mask.part == "inside"

    def seen(row: Tensor, place: Tensor, other: Tensor) -> Tensor:
        if dense is not None:
            return dense[row if len(dense) > 1 else 0, 0, place, other]
        real = other >= 0 if keys is None else keys[row if len(keys) > 1 else 0, other]
        return real & (other <= start + place) if causal else real

    def seen_of_part(row: Tensor, place: Tensor, other: Tensor) -> Tensor:
        sample = row if len(image.keys) > 1 else 0
        pair = image.keys[sample, other] & ~image.queries[sample, place]
        return seen(row, place, other) & (pair if inside else ~pair)

    return seen if mask.part is None else seen_of_part


def _settled(part: Tensor) -> Tensor:
    """The same tensor; a compiled model writes it down here.

    Else what leads to a tensor that a kernel looks up becomes a part of the kernel: computed again
    for each pair, or refused where it holds a running sum.
    """
    part = part.contiguous()
    return part.as_strided(part.shape, part.stride())


def _run(function: Callable[..., Any], call: AttentionCall, *more: Tensor) -> Any:
    """The function of a call, compiled: all around the kernel is launched with it.

    Numbers of the call come to it as tensors. As numbers they would be constants, compiled anew for
    each, or, if they are floats, what kernels of changing lengths cannot take. And filled, for a
    tensor made of a list would have to travel to the device.
    """
    if not isinstance(start := call.mask.query_start, Tensor):
        start = torch.full((), start, device=call.query.device)
    image = call.mask.image and call.mask.image.changed(_settled, _settled)
    call = replace(call, mask=replace(call.mask, query_start=_settled(start), image=image))
    # In a compiled model the kernel is compiled with it.
    return (function if torch.compiler.is_compiling() else _compiled(function))(call, *more)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # There are kinds of calls: one row or more, one query or more, padded or not, either tower.
    # Torch 2.11 has no such option; its own limit for every function holds there.
    known = inspect.signature(torch.compile).parameters
    options = {"recompile_limit": 64} if "recompile_limit" in known else {}
    return torch.compile(function, dynamic=True, **options)
