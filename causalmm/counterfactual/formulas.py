"""Formulas of counterfactual outputs, without building the attention map: functions of a call.

Letters as in causalmm/counterfactual/attention.py; which method has which formula stands in
causalmm/counterfactual/methods.py. Tests: tests/counterfactual/test_attention.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from causalmm.counterfactual.attention_call import (
    AttentionCall,
    grouped_query_product,
    precise,
    precision,
)
from causalmm.counterfactual.random_weights import permutation

FLAT = 64
"""n*m - 1 within this many rounding errors of 0 means a uniform row, whose reverse is 0/0."""

SUMMED_KEYS = 512
"""Keys that are summed at a time on a CPU."""


class Sums(NamedTuple):
    """u_i [B, H, Q, D] and n_i, which broadcasts to [B, H, Q, 1]."""

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """u_i / n_i, and 0 where nothing is seen."""
        return self.total / self.count.clamp_min(1)


def visible_sums(call: AttentionCall) -> Sums:
    """u_i and n_i: sums over the keys before the first query, and running ones after.

    Of the part "inside", what image tokens themselves see is not left out: they are not edited.
    """
    mask, value, start = call.mask, call.value, call.mask.query_start
    queries, keys = call.query.shape[2], call.key.shape[2]
    dtype, counted = precision(value.dtype), isinstance(start, int) and start + queries <= keys
    every_key = not mask.causal or (isinstance(start, int) and start >= keys - 1)
    if (
        mask.mask is not None
        or mask.part == "outside"
        or (queries == 1 and not counted and not every_key)
    ):
        seen = call.seen().to(dtype)
        return Sums(call.per_query_head(seen @ value.to(dtype)), seen.sum(dim=-1, keepdim=True))

    def sums(part: Tensor) -> Tensor:
        if every_key:
            return _sum(part, dtype)
        if counted:
            before = _sum(part[:, :, :start], dtype)
            return before + part[:, :, start : start + queries].cumsum(dim=2, dtype=dtype)
        return part.cumsum(dim=2, dtype=dtype).index_select(2, mask.index(queries, value.device))

    real = mask.counted_keys()
    real = value.new_ones(1, keys) if real is None else real
    if mask.part == "inside":
        value = value * real[:, None, :, None]
    return Sums(call.per_query_head(sums(value)), sums(real[:, None, :, None].to(dtype)))


def _sum(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over the keys, [B, G, K, D] -> [B, G, 1, D]. A CPU copies what it sums in another dtype:
    there in blocks."""
    some = [part]
    if part.device.type == "cpu" and not torch.compiler.is_compiling():
        some = part.split(SUMMED_KEYS, dim=2)
    return sum(each.sum(dim=2, keepdim=True, dtype=dtype) for each in some)


def factual(call: AttentionCall) -> Tensor:
    """The softmax attention itself: o_i. Outside of the image keys, that is (o - o_I) / (1 - A)."""
    return call.stats.output


def beside_the_rest(call: AttentionCall, inside: Tensor) -> Tensor:
    """Outputs under scope "image": those of the image keys, edited, beside the factual rest.

    With A the factual weight of the image keys I, x_i the softmax output over I alone and y_i over
    the other keys, o_i = A x_i + (1 - A) y_i. An edit within I replaces x_i by `inside`. So
    o - o_I = (1 - A) y needs no difference of nearly equal numbers. Where no image key is seen,
    and for image tokens, whose pairs are all outside, A = 0.
    """
    outside, lse = call.outside, call.stats.lse
    mass, rest = (lse - outside.lse).sigmoid(), (outside.lse - lse).sigmoid()
    edited = torch.where(mass > 0, mass * inside, 0.0)
    return edited + torch.where(rest > 0, rest * outside.output, 0.0)


def uniform(call: AttentionCall) -> Tensor:
    """Every visible key counts the same: u_i / n_i."""
    return visible_sums(call).mean


def uniform_over_all_keys(call: AttentionCall) -> Tensor:
    """Released: every visible key counts 1/K, K being the number of all keys."""
    return visible_sums(call).total / call.key.shape[2]


def reverse(call: AttentionCall) -> Tensor:
    """Weights m_i - a_ij, not normalised: m_i u_i - o_i."""
    output, peak, _ = call.stats
    return (peak * visible_sums(call).total).sub_(output)


def reverse_and_normalize(call: AttentionCall) -> Tensor:
    """Weights (m_i - a_ij) / (n_i m_i - 1), which sum to 1.

    With e = n m - 1 and w_j = (m - a_j) / e, w_j - 1/n = -(a_j - 1/n) / e; and sum_j 1/n v_j is the
    mean. So the result is mean - (output - mean) / e, where m u and o, large and nearly equal in
    flat rows, need not be subtracted. A flat row is 0/0: the mean. A row that sees nothing is NaN.
    """
    output, peak, _ = call.stats
    sums = visible_sums(call)
    mean, excess = sums.mean, sums.count * peak - 1
    flat = excess <= FLAT * torch.finfo(output.dtype).eps
    return mean - (output - mean).div_(excess.masked_fill(flat, torch.inf))


def random(call: AttentionCall) -> Tensor:
    """Weights r_ij over their sum on visible keys."""
    weights = call.hide(call.random_numbers())
    return _weighted(weights, weights.sum(dim=-1, keepdim=True), call.value)


def random_over_all_keys(call: AttentionCall) -> Tensor:
    """Released: weights r_ij over their sum on all K keys, then masked."""
    weights = call.random_numbers()
    total = weights.sum(dim=-1, keepdim=True)
    return _weighted(call.hide(weights), total, call.value)


def random_doubled(call: AttentionCall) -> Tensor:
    """Released: weights 2 r_ij, with no row sum."""
    return _product(call.random_numbers().mul_(2), call.value)


def shuffle(call: AttentionCall) -> Tensor:
    """The N x N weights of one head in another order, which positions decide: the same for all
    images of a draw."""
    positions = call.mask.key_positions(call.key.shape[2], call.key.device)
    positions = positions.view(-1, call.key.shape[2])  # [1 or rows, N]
    positions = positions[: len(call.key) // len(call.draws)]  # [1 or n, N], of any draw
    outputs = []
    share = len(call.heads) // call.key.shape[1]
    for index, head in enumerate(call.heads):
        key, value = (precise(part[:, index // share]) for part in (call.key, call.value))
        weights = (precise(call.query[:, index]) * call.scale @ key.mT).softmax(dim=-1)
        orders = [permutation(call.seed, draw, call.layer, head, positions) for draw in call.draws]
        entries = weights.flatten(1).unflatten(0, (len(orders), -1))  # [S, n, N * N]
        order = torch.stack(orders).expand_as(entries)
        outputs.append(entries.gather(-1, order).view_as(weights) @ value)
    return torch.stack(outputs, dim=1)


def _weighted(weights: Tensor, total: Tensor, value: Tensor) -> Tensor:
    """sum_j w_ij / total_i v_j, and 0 where that is 0 / 0. Changes the weights."""
    return _product(weights.div_(total.clamp_min(torch.finfo(total.dtype).tiny)), value)


def _product(weights: Tensor, value: Tensor) -> Tensor:
    """sum_j w_ij v_j. A GPU multiplies in the precision of the values, as in its own attention."""
    value = precise(value) if value.device.type == "cpu" else value
    return grouped_query_product(weights.to(value.dtype), value)
