"""Counterfactual attention from a fused kernel, on CUDA: flex_attention.

Letters as in causalmm/attention.py. The kernel returns the log-sum-exp and the largest score of
each query beside its output, so that the largest weight m_i = exp(max - lse) costs no second pass;
random weights are r_ij / sum r = softmax(ln r_ij), a modification of the scores.
Held by tests/test_fused.py.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from causalmm import hashing
from causalmm.visible import Visible

QUERIES = 512
"""Queries in a block: enough to fill a GPU, few enough that the formulas around the kernel hold
little beside it. Blocks see no keys after their own, so no kernel needs to know of causality."""
_HEAD_SIZES = (16, 32, 64, 128, 256)


def serves(query: Tensor) -> bool:
    """Whether the kernel takes this query."""
    return query.is_cuda and query.shape[3] in _HEAD_SIZES and query.dtype != torch.float64


def statistics(
    query: Tensor, key: Tensor, value: Tensor, scale: float, visible: Visible
) -> tuple[Tensor, Tensor]:
    """Factual outputs o_i [B, H, Q, D] and largest weights m_i [B, H, Q, 1], float32.

    Query [B, H, Q, D], key and value [B, G, K, D]; `visible` describes the rows. Where a query sees
    nothing, m_i is NaN.
    """
    seen = _seen(visible, query.device)

    def hide(score: Tensor, row: Tensor, head: Tensor, place: Tensor, other: Tensor) -> Tensor:
        return torch.where(seen(row, place, other), score, -torch.inf)

    modify = None if visible.everything(key.shape[2]) else hide
    output, extra = _kernel()(
        query,
        key,
        value,
        score_mod=modify,
        scale=scale,
        enable_gqa=True,
        return_aux=AuxRequest(lse=True, max_scores=True),
    )
    return output.float(), (extra.max_scores - extra.lse).float().exp().unsqueeze(-1)


def random(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Visible,
    queries: Tensor,
    keys: Tensor,
) -> Tensor:
    """Outputs [B, H, Q, D], float32, of weights r_ij over their sum on visible keys.

    `queries` [B, H, Q] and `keys` [B or 1, K] are the halves of `hashing.uniform`.
    """
    seen = _seen(visible, query.device)
    every = len(keys) == 1

    def draw(score: Tensor, row: Tensor, head: Tensor, place: Tensor, other: Tensor) -> Tensor:
        number = hashing.number(queries[row, head, place], keys[0 if every else row, other])
        return torch.where(seen(row, place, other), number.log(), -torch.inf)

    return _kernel()(query, key, value, score_mod=draw, enable_gqa=True).float()


def _seen(visible: Visible, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Whether a row's query sees a key, of their numbers."""
    mask, keys = visible.mask, visible.keys
    # A tensor: as a number it would be a constant of the kernel, compiled anew for each.
    start = torch.as_tensor(visible.query_start, device=device)
    if mask is not None:
        return lambda row, place, other: mask[row if len(mask) > 1 else 0, 0, place, other]

    def seen(row: Tensor, place: Tensor, other: Tensor) -> Tensor:
        real = other >= 0 if keys is None else keys[row if len(keys) > 1 else 0, other]
        return real & (other <= start + place) if visible.causal else real

    return seen


def _kernel() -> Callable[..., Any]:
    # In a compiled model the kernel is compiled with it.
    return flex_attention if torch.compiler.is_compiling() else _compiled()


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)
