"""One attention call, and the blocks of heads, queries and keys that it is worked off in.

Letters as in causalmm/counterfactual/attention.py. Held by tests/counterfactual/test_attention.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from causalmm.counterfactual import random_weights
from causalmm.counterfactual.attention_mask import AttentionMask

BLOCK_ENTRIES = 2**18
"""Weights that exist at a time on a CPU: 1 MB of them, about what its caches hold."""
CONVERTED_A_WEIGHT = 8
"""Entries of keys, and of values, that may exist in float32 for each of those weights: of one query
there are few weights, and a long cache need not be converted whole."""
LEAST_QUERIES, LEAST_KEYS = 16, 512
"""Of each, in a block, at least: matrix products of fewer are slow."""


class SoftmaxStats(NamedTuple):
    """Factual outputs o_i [B, H, Q, D] and largest weights m_i [B, H, Q, 1]."""

    output: Tensor
    peak: Tensor

    def block(self, queries: range) -> "SoftmaxStats":
        """Those of some of the queries."""
        return SoftmaxStats(*(part[:, :, queries.start : queries.stop] for part in self))

    def of_whole_map(self) -> "SoftmaxStats":
        """With M of each head, the largest weight of all its queries, as every m_i."""
        return self._replace(peak=self.peak.amax(dim=2, keepdim=True).expand_as(self.peak))


class RandomWeights(NamedTuple):
    """What r_ij are made of (causalmm/counterfactual/random_weights.py), once a call, and where.

    For each block anew, words and memory would take longer than the numbers.
    """

    queries: Tensor
    """Words of the queries, [B, H, Q]."""
    keys: Tensor
    """Words of the keys, [B or 1, K]."""
    space: Tensor | None = None
    """Memory for the numbers of a block: those of the one before are gone then."""

    def block(
        self, heads: slice = slice(None), queries: slice = slice(None), keys: slice = slice(None)
    ) -> "RandomWeights":
        """That of some of the heads, queries and keys."""
        return self._replace(queries=self.queries[:, heads, queries], keys=self.keys[:, keys])


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Some heads and queries of one attention call: what every formula is computed from."""

    query: Tensor  # [B, H, Q, D]
    key: Tensor  # [B, G, K, D]
    value: Tensor  # [B, G, K, D], 0 at padding
    scale: float
    visible: AttentionMask
    """What the queries of the samples see."""
    heads: range
    """Which of the layer's query heads these are."""
    keys_given: int
    """How many keys the call has, those included that no query of this block may see."""
    seed: int
    draws: tuple[int, ...]
    layer: int
    fused: bool
    """Whether the fused kernel computes what looks at scores."""
    factual: SoftmaxStats | None = None
    """Where the formula looks at them."""
    random: RandomWeights | None = None
    """The same."""

    @property
    def rows(self) -> AttentionMask:
        """What the queries of all rows see."""
        return self.visible.repeat(len(self.draws))

    @property
    def rows_a_head(self) -> int:
        """Rows of weights that one query adds to a block of one key-value head."""
        return self.query.shape[0] * (self.query.shape[1] // self.key.shape[1])

    @property
    def block_entries(self) -> int:
        """Weights that should exist at a time."""
        return block_entries(self.query.device)

    def queries_that_fit(self, width: int) -> int:
        """As many queries as fit a block where each takes `width` entries a row and head."""
        fitting = self.block_entries // (self.rows_a_head * width)
        return min(self.query.shape[2], max(LEAST_QUERIES, fitting))

    def keys_that_fit(self) -> int:
        """As many keys as fit a block of all heads and queries."""
        rows = self.key.shape[1] * self.rows_a_head * self.query.shape[2]
        converted = self.key[:, :, 0].numel() // CONVERTED_A_WEIGHT
        return max(LEAST_KEYS, self.block_entries // max(rows, converted))

    def heads_that_fit(self, queries: int, width: int) -> int:
        """As many key-value heads as fit a block of so many queries, each taking `width` entries a
        row and head; in blocks about as large as each other."""
        rows = self.rows_a_head * queries * width
        converted = self.key[:, 0].numel() // CONVERTED_A_WEIGHT
        heads = self.key.shape[1]
        blocks = -(-heads // max(1, self.block_entries // max(rows, converted)))
        return -(-heads // blocks)

    def head_blocks(self, at_a_time: int) -> Iterator["Attention"]:
        """The call, `at_a_time` key-value heads after another."""
        shared = self.key.shape[1]
        share = len(self.heads) // shared
        for start in range(0, shared, at_a_time):
            stop = min(start + at_a_time, shared)
            heads = slice(start * share, stop * share)
            yield replace(
                self,
                query=self.query[:, heads],
                key=self.key[:, start:stop],
                value=self.value[:, start:stop],
                heads=self.heads[heads],
                random=None if self.random is None else self.random.block(heads=heads),
            )

    def block(self, queries: range, keys: int | None = None) -> "Attention":
        """Some of the queries, and so many leading keys (None: up to the last they may see)."""
        if keys is None:
            keys = self.visible.key_limit(queries, self.key.shape[2])
        some, leading, weights = slice(queries.start, queries.stop), slice(keys), self.random
        return replace(
            self,
            query=self.query[:, :, some],
            key=self.key[:, :, leading],
            value=self.value[:, :, leading],
            visible=self.visible.block(queries, keys),
            factual=None if self.factual is None else self.factual.block(queries),
            random=None if weights is None else weights.block(queries=some, keys=leading),
        )

    def slice_keys(self, keys: range) -> "Attention":
        """The same where these are all the keys there are."""
        some = slice(keys.start, keys.stop)
        return replace(
            self,
            key=self.key[:, :, some],
            value=self.value[:, :, some],
            visible=self.visible.slice_keys(keys),
            random=None if self.random is None else self.random.block(keys=some),
        )

    def query_blocks(self, at_a_time: int) -> Iterator[range]:
        """Ranges of queries, `at_a_time` after another."""
        return ranges(self.query.shape[2], at_a_time)

    def without_padding(self) -> "Attention":
        """The same with padding's values 0."""
        if self.visible.keys is None:
            return self
        return replace(self, value=self.value * self.rows.keys[:, None, :, None])

    def scores(self) -> Tensor:
        """Products of queries and keys: [B, H, Q, K], -inf where hidden."""
        scores = grouped(precise(self.query) * self.scale, precise(self.key).mT)
        rows = self.rows
        queries, keys = scores.shape[2:]
        if rows.is_full(keys):
            return scores
        return scores.masked_fill_(~rows.to_dense(queries, keys, scores.device), -torch.inf)

    def seen(self) -> Tensor:
        """S_i: bool [B or 1, 1, Q, K]."""
        return self.rows.to_dense(self.query.shape[2], self.key.shape[2], self.value.device)

    def hide(self, weights: Tensor) -> Tensor:
        """Weights [B, H, Q, K] with 0 where hidden, in place."""
        rows, keys = self.rows, self.key.shape[2]
        if rows.is_full(keys):
            return weights
        # Times 0 or 1: on a CPU a filling by a mask takes eight times as long.
        if rows.keys is not None or rows.mask is not None or not isinstance(rows.query_start, int):
            return weights.mul_(self.seen().to(weights.dtype))
        # Every query sees what stands before the first.
        late = range(min(max(rows.query_start, 0), keys), keys)
        seen = rows.slice_keys(late).to_dense(self.query.shape[2], len(late), weights.device)
        weights[..., late.start :].mul_(seen.to(weights.dtype))
        return weights

    def with_random_weights(self, entries: int) -> "Attention":
        """The same with what the r_ij are made of, up to `entries` at a time."""
        weights = self.drawn(*self.origins())
        if not (torch.is_grad_enabled() and self.value.requires_grad):  # else weights must last
            space = torch.empty(2, entries, dtype=torch.int32, device=self.value.device)
            weights = weights._replace(space=space)
        return replace(self, random=weights)

    def random_numbers(self) -> Tensor:
        """r_ij ~ U(0, 1]: [B, H, Q, K], which last until those of the next block are made."""
        queries, keys, space = self.random
        numbers = random_weights.numbers(queries.unsqueeze(-1), keys[:, None, None, :], space)
        return numbers.to(precision(self.value.dtype))

    def origins(self) -> tuple[Tensor, Tensor]:
        """What the halves start from: the draws' streams [S] and the heads' numbers [H]."""
        device = self.value.device
        streams = random_weights.streams(self.seed, self.draws, self.layer, device)
        return streams, random_weights.numbered(self.heads, device)

    def drawn(self, streams: Tensor, heads: Tensor) -> RandomWeights:
        """What the r_ij are made of, given `origins`."""
        device, queries, keys = self.value.device, self.query.shape[2], self.key.shape[2]
        place = self.visible.query_positions(queries, keys, device)
        mine = random_weights.query_halves(streams, heads, place)
        if place.ndim == 1:  # no padding: all samples count positions alike
            mine = mine.unsqueeze(1)
        samples = self.query.shape[0] // len(self.draws)
        mine = mine.expand(-1, samples, -1, -1).flatten(0, 1)
        others = random_weights.key_halves(self.rows.key_positions(keys, device))
        return RandomWeights(mine, others.view(-1, keys))

    def per_query_head(self, part: Tensor) -> Tensor:
        """[B, G, Q or 1, D] -> [B, H, Q, D]."""
        share = len(self.heads) // part.shape[1]
        part = part.unsqueeze(2).expand(-1, -1, share, -1, -1).flatten(1, 2)  # no copy of 1
        return part.expand(-1, -1, self.query.shape[2], -1)


def block_entries(device: torch.device) -> int:
    """Weights that should exist at a time: few enough for a CPU's caches, elsewhere many."""
    return BLOCK_ENTRIES if device.type == "cpu" else 32 * BLOCK_ENTRIES


def grouped(left: Tensor, right: Tensor) -> Tensor:
    """Products of H heads with G shared ones: [B, H, q, X] @ [B, G, X, Y] -> [B, H, q, Y]."""
    heads, queries = left.shape[1:3]
    groups = right.shape[1]
    # The g query heads of a group become further rows, so that nothing is repeated.
    stacked = left.unflatten(1, (groups, heads // groups)).flatten(2, 3)
    return (stacked @ right).unflatten(2, (heads // groups, queries)).flatten(1, 2)


def ranges(count: int, at_a_time: int) -> Iterator[range]:
    for start in range(0, count, at_a_time):
        yield range(start, min(start + at_a_time, count))


def precision(dtype: torch.dtype) -> torch.dtype:
    """What formulas are computed in: float32, or float64 where that is given."""
    return torch.promote_types(dtype, torch.float32)


def precise(part: Tensor) -> Tensor:
    return part.to(precision(part.dtype))
