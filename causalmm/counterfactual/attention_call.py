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

    def of_part(self, part: str) -> "AttentionCall":
        """The same with queries that see one part only, see `AttentionMask`; for "inside", with few
        keys beside the image tokens."""
        call = replace(self, mask=replace(self.mask, part=part))
        queries, keys = (range(tensor.shape[2]) for tensor in (self.query, self.key))
        if part == "inside":
            keys = call._image_span()
            call = call.block(queries, keys)
        return (
            call.without_part() if call.mask.only_part(queries, range(len(keys))) == part else call
        )

    def _image_span(self) -> range:
        """Keys among which are all image tokens, and all from the first query to the last unless
        every query sees the whole span: where causality decides, sums are running ones."""
        count, start = self.key.shape[2], self.mask.query_start
        span = self.mask.image_span(count)
        if self.mask.mask is not None or not self.mask.causal:
            return span
        if not isinstance(start, int):
            return range(count)
        return range(min(span.start, start), span.stop if start >= span.stop - 1 else count)

    def without_part(self) -> "AttentionCall":
        """The same where all that is seen is of the part."""
        return replace(self, mask=replace(self.mask, part=None))

    def with_stats(self, stats: SoftmaxStats) -> "AttentionCall":
        """The same with what the formula takes: of a whole map, M of each head as every m_i."""
        if self.formula.whole_map:
            peak = stats.peak.amax(dim=2, keepdim=True).expand_as(stats.peak)
            stats = stats._replace(peak=peak)
        return replace(self, stats=stats)

    def scores(self) -> Tensor:
        """Products of queries and keys: [B, H, Q, K], -inf where hidden."""
        scores = grouped_query_product(precise(self.query) * self.scale, precise(self.key).mT)
        first = self.mask.full_keys(scores.shape[3])
        if first < scores.shape[3]:
            scores[..., first:].masked_fill_(~self.seen(first), -torch.inf)
        return scores

    def seen(self, first: int = 0) -> Tensor:
        """S_i of the keys from number `first` on: bool [B or 1, 1, Q, K - first]."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        mask = self.mask.block(range(queries), range(first, keys)) if first else self.mask
        return mask.to_dense(queries, keys - first, self.value.device)

    def hide(self, weights: Tensor) -> Tensor:
        """Weights [B, H, Q, K] with 0 where hidden, in place."""
        first = self.mask.full_keys(weights.shape[3])
        if first < weights.shape[3]:
            # Times 0 or 1: on a CPU masked_fill_ takes eight times as long.
            weights[..., first:].mul_(self.seen(first).to(weights.dtype))
        return weights

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
