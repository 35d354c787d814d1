"""One attention call: its tensors, what each query may see, and the formula of its outputs.

B rows, H query heads, G KV heads (H = G * g), Q queries, K keys, D head size.
Tests: tests/counterfactual/test_attention.py.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.methods import Formula
from causalmm.counterfactual.random_weights import RandomHashes


class SoftmaxStats(NamedTuple):
    """Factual outputs o_i [B, H, Q, D], largest weights m_i and log-sum-exps [B, H, Q, 1]."""

    output: Tensor
    peak: Tensor
    lse: Tensor

    def block(self, queries: slice) -> "SoftmaxStats":
        """Those of some queries."""
        return SoftmaxStats(*(part[:, :, queries] for part in self))


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionCall:
    """An attention call, or some heads, queries and keys of one."""

    formula: Formula
    query: Tensor  # [B, H, Q, D]
    key: Tensor  # [B, G, K, D]
    value: Tensor  # [B, G, K, D], 0 at padding unless the formula takes random weights
    scale: float
    mask: AttentionMask
    """What the queries of the rows see."""
    heads: range
    """Which of the layer's query heads these are."""
    seed: int
    draws: tuple[int, ...]
    layer: int
    hashes: RandomHashes | None = None
    """Where the formula takes random weights."""
    stats: SoftmaxStats | None = None
    """Where the formula takes them."""
    outside: SoftmaxStats | None = None
    """With a formula of the part "inside": those of what is outside of it."""

    @property
    def rows_per_kv_head(self) -> int:
        """Rows of weights that one query has in the block of one KV head."""
        return self.query.shape[0] * (self.query.shape[1] // self.key.shape[1])

    def kv_head_block(self, kv_heads: range) -> "AttentionCall":
        """Some KV heads with their query heads."""
        share = self.query.shape[1] // self.key.shape[1]
        kv, heads = _slice(kv_heads), slice(kv_heads.start * share, kv_heads.stop * share)
        return replace(
            self,
            query=self.query[:, heads],
            key=self.key[:, kv],
            value=self.value[:, kv],
            heads=self.heads[heads],
            hashes=None if self.hashes is None else self.hashes.block(heads=heads),
        )

    def block(self, queries: range, keys: range | None = None) -> "AttentionCall":
        """Some queries and keys; None: the leading keys that these queries' formula looks at."""
        if keys is None:
            count = self.key.shape[2]
            every = self.formula.counts_every_key
            keys = range(count if every else self.mask.key_limit(queries, count))
        q, k, hashes = _slice(queries), _slice(keys), self.hashes
        return replace(
            self,
            query=self.query[:, :, q],
            key=self.key[:, :, k],
            value=self.value[:, :, k],
            mask=self.mask.block(queries, keys),
            hashes=None if hashes is None else hashes.block(queries=q, keys=k),
            stats=self.stats and self.stats.block(q),
            outside=self.outside and self.outside.block(q),
        )

    def of_part(self, part: str | None) -> "AttentionCall":
        """The same with queries that see one part only, see `AttentionMask`."""
        return replace(self, mask=replace(self.mask, part=part))

    def with_stats(self, stats: SoftmaxStats) -> "AttentionCall":
        """The same with what the formula takes: of a whole map, M of each head as every m_i."""
        if self.formula.whole_map:
            peak = stats.peak.amax(dim=2, keepdim=True).expand_as(stats.peak)
            stats = stats._replace(peak=peak)
        return replace(self, stats=stats)

    def scores(self) -> Tensor:
        """Products of queries and keys: [B, H, Q, K], -inf where hidden."""
        scores = grouped_query_product(precise(self.query) * self.scale, precise(self.key).mT)
        if self.mask.is_full(scores.shape[3]):
            return scores
        return scores.masked_fill_(~self.seen(), -torch.inf)

    def seen(self) -> Tensor:
        """S_i: bool [B or 1, 1, Q, K]."""
        return self.mask.to_dense(self.query.shape[2], self.key.shape[2], self.value.device)

    def hide(self, weights: Tensor) -> Tensor:
        """Weights [B, H, Q, K] with 0 where hidden, in place."""
        if self.mask.is_full(weights.shape[3]):
            return weights
        # Times 0 or 1: on a CPU masked_fill_ takes eight times as long.
        return weights.mul_(self.seen().to(weights.dtype))

    def random_numbers(self) -> Tensor:
        """r_ij ~ U(0, 1]: [B, H, Q, K]."""
        return self.hashes.numbers().to(precision(self.value.dtype))

    def per_query_head(self, part: Tensor) -> Tensor:
        """[B, G, Q or 1, D] -> [B, H, Q, D]."""
        share = self.query.shape[1] // part.shape[1]
        part = part.unsqueeze(2).expand(-1, -1, share, -1, -1).flatten(1, 2)  # no copy of 1
        return part.expand(-1, -1, self.query.shape[2], -1)


def grouped_query_product(left: Tensor, right: Tensor) -> Tensor:
    """Products of H query heads with G KV heads: [B, H, Q, X] @ [B, G, X, Y] -> [B, H, Q, Y]."""
    heads, queries = left.shape[1:3]
    kv_heads = right.shape[1]
    # The query heads of a KV head become further rows, so that nothing is repeated.
    stacked = left.unflatten(1, (kv_heads, heads // kv_heads)).flatten(2, 3)
    return (stacked @ right).unflatten(2, (heads // kv_heads, queries)).flatten(1, 2)


def precision(dtype: torch.dtype) -> torch.dtype:
    """What formulas are computed in: float32, or float64 where that is given."""
    return torch.promote_types(dtype, torch.float32)


def precise(part: Tensor) -> Tensor:
    """The tensor in the precision of the formulas."""
    return part.to(precision(part.dtype))


def _slice(some: range) -> slice:
    return slice(some.start, some.stop)
