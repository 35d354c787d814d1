"""Formulas of counterfactual outputs, without building the attention map: functions of a call.

Letters as in causalmm/counterfactual/attention.py; which method has which formula stands in
causalmm/counterfactual/methods.py. Held by tests/counterfactual/test_attention.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from causalmm.counterfactual import random_weights
from causalmm.counterfactual.attention_call import Attention, grouped, precise, precision
from causalmm.counterfactual.backends import amx, flex

FLAT = 64
"""n*m - 1 within this many rounding errors of 0 means a uniform row, whose reverse is 0/0."""
SPAN = 32
"""Places whose running sums are one matrix product, on a CPU."""


class Sums(NamedTuple):
    """u_i [B, H, Q, D] and n_i, which broadcasts to [B, H, Q, 1]."""

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """u_i / n_i, and 0 where nothing is seen."""
        return self.total / self.count.clamp_min(1)


def visible_sums(call: Attention) -> Sums:
    """u_i and n_i: sums over the keys before the block, and running ones in it."""
    visible, value = call.rows, call.value
    queries, keys = call.query.shape[2], call.key.shape[2]
    dtype = precision(value.dtype)
    trailing = isinstance(visible.query_start, int) and visible.query_start + queries == keys
    if visible.mask is not None or (visible.causal and queries == 1 and not trailing):
        seen = call.seen().to(dtype)
        return Sums(call.per_query_head(seen @ value.to(dtype)), seen.sum(dim=-1, keepdim=True))

    def added_up(part: Tensor) -> Tensor:
        if not visible.causal:
            return part.sum(dim=2, keepdim=True, dtype=dtype)
        if trailing:
            return _running_sum(part, queries, dtype)
        last = visible.index(queries, value.device)
        return part.cumsum(dim=2, dtype=dtype).index_select(2, last)

    if visible.keys is None:
        count = visible.count(queries, keys, value.device).to(dtype).view(1, 1, -1, 1)
    else:
        count = added_up(visible.keys[:, None, :, None].to(dtype))
    return Sums(call.per_query_head(added_up(value)), count)


def _running_sum(part: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """Sums up to each of the last `queries` places along axis 2."""
    before, own = part.split([part.shape[2] - queries, queries], dim=2)
    before = before.sum(dim=2, keepdim=True, dtype=dtype)
    if part.device.type != "cpu" or queries < 2 * SPAN:
        return before + own.cumsum(dim=2, dtype=dtype)
    # Across rows of memory a CPU's cumsum takes twice as long.
    spans = pad(own.to(dtype), (0, 0, 0, -queries % SPAN)).unflatten(2, (-1, SPAN))
    within = spans.new_ones(SPAN, SPAN).tril() @ spans
    ends = within[..., -1:, :]
    earlier = ends.cumsum(dim=2) - ends
    return (within + (earlier + before.unsqueeze(3))).flatten(2, 3)[:, :, :queries]


def uniform(call: Attention) -> Tensor:
    """Every visible key counts the same: u_i / n_i."""
    return visible_sums(call).mean


def uniform_over_all_keys(call: Attention) -> Tensor:
    """Released: every visible key counts 1/K, K being the number of all keys handed in."""
    return visible_sums(call).total / call.keys_given


def reverse(call: Attention) -> Tensor:
    """Weights m_i - a_ij, not normalised: m_i u_i - o_i."""
    output, peak = call.factual
    return (peak * visible_sums(call).total).sub_(output)


def reverse_and_normalize(call: Attention) -> Tensor:
    """Weights (m_i - a_ij) / (n_i m_i - 1), which sum to 1."""
    output, peak = call.factual
    sums = visible_sums(call)
    return _away_from(output, sums.mean, sums.count * peak - 1)


def random(call: Attention) -> Tensor:
    """Weights r_ij over their sum on visible keys."""
    if call.fused:
        return flex.random(call)
    weights = call.hide(call.random_numbers())
    return weighted(weights, weights.sum(dim=-1, keepdim=True), call.value)


def random_over_all_keys(call: Attention) -> Tensor:
    """Released: weights r_ij over their sum on all K keys, then masked."""
    weights = call.random_numbers()
    total = weights.sum(dim=-1, keepdim=True)
    return weighted(call.hide(weights), total, call.value)


def random_doubled(call: Attention) -> Tensor:
    """Released: weights 2 r_ij, with no row sum."""
    return _product(call.random_numbers().mul_(2), call.value)


def shuffle(call: Attention) -> Tensor:
    """The N x N weights of one head in another order, the same for all images of a draw."""
    outputs = []
    group = len(call.heads) // call.key.shape[1]
    for index, head in enumerate(call.heads):
        key, value = (precise(part[:, index // group]) for part in (call.key, call.value))
        weights = (precise(call.query[:, index]) * call.scale @ key.mT).softmax(dim=-1)
        outputs.append(_permute(weights, call, head) @ value)
    return torch.stack(outputs, dim=1)


def weighted(weights: Tensor, total: Tensor, value: Tensor) -> Tensor:
    """sum_j w_ij v_j / total_i, and 0 where that is 0 / 0."""
    return _product(weights, value) / total.clamp_min(torch.finfo(total.dtype).tiny)


def _product(weights: Tensor, value: Tensor) -> Tensor:
    """sum_j w_ij v_j. In tiles the weights are rounded, as SDPA rounds its own."""
    if amx.supports(value):
        return grouped(weights.to(value.dtype), value).float()
    return grouped(weights, precise(value))


def _away_from(output: Tensor, mean: Tensor, excess: Tensor) -> Tensor:
    """sum_j (c - a_j) / (n c - 1) v_j for a largest weight c, given excess = n c - 1.

    With w_j = (c - a_j) / (n c - 1), w_j - 1/n = -(a_j - 1/n) / (n c - 1); and sum_j 1/n v_j is the
    mean. So the result is mean - (output - mean) / excess, where c u and o, large and nearly equal
    in flat rows, need not be subtracted. A flat row is 0/0: the mean. A row that sees nothing is
    NaN.
    """
    flat = excess <= FLAT * torch.finfo(output.dtype).eps
    return mean - (output - mean).div_(excess.masked_fill(flat, torch.inf))


def _permute(weights: Tensor, call: Attention, head: int) -> Tensor:
    """Maps [B, N, N] of one head, the entries of each dealt out again by its draw's permutation."""
    patches, device = weights.shape[-1], weights.device
    orders = [
        random_weights.permutation(call.seed, draw, call.layer, head, patches, device)
        for draw in call.draws
    ]
    entries = weights.flatten(1).unflatten(0, (len(orders), -1))  # [S, n, N * N]
    order = torch.stack(orders).unsqueeze(1).expand_as(entries)
    return entries.gather(-1, order).view_as(weights)
