"""Counterfactual attention from a fused kernel, on CUDA: flex_attention.

Letters as in causalmm/counterfactual/attention.py. The kernel returns the log-sum-exp and the
largest score of each query beside its output, so that the largest weight m_i = exp(max - lse) costs
no second pass; random weights are r_ij / sum r = softmax(ln r_ij), a modification of the scores.
Held by tests/counterfactual/test_flex.py.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from causalmm.counterfactual import random_weights
from causalmm.counterfactual.attention_call import Attention
from causalmm.counterfactual.attention_mask import AttentionMask

QUERIES = 512
"""Queries in a block: enough to fill a GPU, few enough that the formulas around the kernel hold
little beside it. Blocks see no keys after their own, so no kernel needs to know of causality."""
ALONE = 2048
"""The same for random weights, where nothing is held beside the kernel."""
_HEAD_SIZES = (16, 32, 64, 128, 256)


def serves(query: Tensor) -> bool:
    """Whether the kernel takes this query. Never on a CPU: that of torch 2.13 is wrong on some of
    them for some numbers of keys (tests/counterfactual/test_flex.py)."""
    # No `in`: a compiler may have made the size a symbol, and would answer False.
    known = any(query.shape[3] == size for size in _HEAD_SIZES)
    return query.is_cuda and known and query.dtype != torch.float64


def softmax_stats(call: Attention) -> tuple[Tensor, Tensor]:
    """Factual outputs o_i [B, H, Q, D] and largest weights m_i [B, H, Q, 1], float32.

    Where a query sees nothing, m_i is NaN.
    """
    return _run(_statistics, call, torch.full((), call.scale, device=call.query.device))


def random(call: Attention) -> Tensor:
    """Outputs [B, H, Q, D], in the dtype of the query, of weights r_ij over their visible sum."""
    drawn = _run(Attention.drawn, call, *call.origins())
    return _run(_random, call, _settled(drawn.queries), _settled(drawn.keys))


def _statistics(call: Attention, scale: Tensor) -> tuple[Tensor, Tensor]:
    seen = _seen(call.rows)

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
    return output.float(), (extra.max_scores - extra.lse).float().exp().unsqueeze(-1)


def _random(call: Attention, queries: Tensor, keys: Tensor) -> Tensor:
    seen = _seen(call.rows)
    every = len(keys) == 1

    def draw(score: Tensor, row: Tensor, head: Tensor, place: Tensor, other: Tensor) -> Tensor:
        number = random_weights.number(queries[row, head, place], keys[0 if every else row, other])
        return torch.where(seen(row, place, other), number.log(), -torch.inf)

    return flex_attention(
        call.query, call.key, call.value, score_mod=draw, scale=1.0, enable_gqa=True
    )


def _seen(visible: AttentionMask) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Whether a row's query sees a key, of their numbers."""
    mask, keys, start = visible.mask, visible.keys, visible.query_start
    if mask is not None:
        return lambda row, place, other: mask[row if len(mask) > 1 else 0, 0, place, other]

    def seen(row: Tensor, place: Tensor, other: Tensor) -> Tensor:
        real = other >= 0 if keys is None else keys[row if len(keys) > 1 else 0, other]
        return real & (other <= start + place) if visible.causal else real

    return seen


def _settled(part: Tensor) -> Tensor:
    """The same tensor; a compiled model writes it down here.

    Else what leads to a tensor that a kernel looks up becomes a part of the kernel: computed again
    for each pair, or refused where it holds a running sum.
    """
    part = part.contiguous()
    return part.as_strided(part.shape, part.stride())


def _run(function: Callable[..., Any], call: Attention, *more: Tensor) -> Any:
    """The function of a call, compiled: all around the kernel is launched with it.

    Numbers of the call come to it as tensors. As numbers they would be constants, compiled anew for
    each, or, if they are floats, what kernels of changing lengths cannot take. And filled, for a
    tensor made of a list would have to travel to the device.
    """
    if not isinstance(start := call.visible.query_start, Tensor):
        start = torch.full((), start, device=call.query.device)
    call = replace(call, visible=replace(call.visible, query_start=_settled(start)))
    # In a compiled model the kernel is compiled with it.
    return (function if torch.compiler.is_compiling() else _compiled(function))(call, *more)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # There are kinds of calls: one row or more, one query or more, padded or not, either tower.
    return torch.compile(function, dynamic=True, recompile_limit=64)
