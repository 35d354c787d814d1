"""Counterfactual attention outputs, without building the attention map.

B rows: S draws of n samples, laid out [draw 0: all samples | draw 1: all samples | ...]. H query
heads, G key-value heads (H = G * g), Q queries, K keys, D head size; vision encoder: Q = K = N.
For query i: a_ij factual softmax weights, S_i the n_i keys it may see, o_i = sum_j a_ij v_j,
m_i = max_j a_ij, u_i = sum of v_j over S_i, M = the largest a_ij of one head's whole map.
Promises, held in tests/test_attention.py: hidden keys get weight 0; a query that sees no key gets
0; finite inputs give finite outputs; memory grows linearly with K (shuffle: one map at a time).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from causalmm import hashing
from causalmm.config import NORMALIZATIONS

TILE_ENTRIES = 2**22
"""Weights that exist at a time: a tile holds as many queries as fit, at least one."""

FLAT = 64
"""n*m - 1 within this many rounding errors of 0 means a uniform row, whose reverse is 0/0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Visible:
    """Which keys each query of each sample may see, without a Q x K map of it."""

    keys: Tensor | None = None
    """Real keys, bool [n or 1, K]: False is padding. None: all are real."""
    causal: bool = True
    """Whether query i sees key j only if j <= query_start + i."""
    query_start: int | Tensor = 0
    """Index among the K keys of the first query; the queries follow one another. A tensor, of no
    dimensions, where a static cache counts on the device."""
    mask: Tensor | None = None
    """Bool [n or 1, 1, Q, K], True = sees: decides instead of the above; `keys` still says which
    are real."""

    @property
    def everything(self) -> bool:
        """Whether every query sees every key."""
        return not self.causal and self.keys is None and self.mask is None

    def tile(self, queries: range, key_count: int, device: torch.device | None = None) -> Tensor:
        """What these queries see: bool [n or 1, 1, q, K]."""
        if self.mask is not None:
            return self.mask[:, :, queries.start : queries.stop]
        if self.causal:
            seen = self.index(queries, device).unsqueeze(-1) >= torch.arange(
                key_count, device=device
            )
        else:
            seen = torch.ones(len(queries), key_count, dtype=torch.bool, device=device)
        return seen[None, None] if self.keys is None else seen & self.keys[:, None, None, :]

    def key_positions(self, key_count: int, device: torch.device | None = None) -> Tensor:
        """How many real keys come before each, so padding anywhere changes nothing: [K] or [n, K].

        Padding itself has some position or other: nothing sees it.
        """
        if self.keys is None:
            return torch.arange(key_count, device=device)
        return self.keys.cumsum(dim=-1) - 1

    def query_positions(
        self, queries: range, key_count: int, device: torch.device | None = None
    ) -> Tensor:
        """The same for these queries: [q] or [n, q]."""
        return self.key_positions(key_count, device)[..., self.index(queries, device)]

    def repeat(self, draws: int) -> "Visible":
        """The same for the rows of `draws` draws."""
        if draws == 1:
            return self
        keys, mask = (
            part if part is None or len(part) == 1 else part.repeat(draws, *[1] * (part.ndim - 1))
            for part in (self.keys, self.mask)
        )
        return Visible(keys=keys, causal=self.causal, query_start=self.query_start, mask=mask)

    def to(self, device: torch.device) -> "Visible":
        """The same on another device, for a layer that lives there."""
        keys, start, mask = (
            part.to(device) if isinstance(part, Tensor) else part
            for part in (self.keys, self.query_start, self.mask)
        )
        return Visible(keys=keys, causal=self.causal, query_start=start, mask=mask)

    def index(self, queries: range, device: torch.device | None = None) -> Tensor:
        """Where these queries stand among the keys: [q]."""
        return self.query_start + torch.arange(queries.start, queries.stop, device=device)


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """One attention call: what every formula is computed from. All float32 (or float64)."""

    query: Tensor  # [B, H, Q, D], scaled
    key: Tensor  # [B, G, K, D]
    value: Tensor  # [B, G, K, D]
    samples: Visible
    rows: Visible  # `samples` repeated for the draws
    seed: int
    draws: tuple[int, ...]
    layer: int

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def key_count(self) -> int:
        return self.key.shape[2]

    def tiles(self) -> Iterator[range]:
        """Ranges of queries, as many at a time as TILE_ENTRIES allows."""
        rows, heads, count, _ = self.query.shape
        step = max(1, TILE_ENTRIES // (rows * heads * self.key_count))
        for start in range(0, count, step):
            yield range(start, min(start + step, count))

    def seen(self, queries: range) -> Tensor:
        """S_i of these queries: bool [B or 1, 1, q, K]."""
        return self.rows.tile(queries, self.key_count, self.value.device)

    def weights(self, queries: range) -> Tensor:
        """a_ij of these queries: [B, H, q, K], exactly 0 where hidden."""
        scores = _grouped(self.query[:, :, queries.start : queries.stop], self.key.mT)
        if self.rows.everything:
            return scores.softmax(dim=-1)
        hidden = ~self.seen(queries)
        # A query that sees nothing is NaN after the softmax; all of it is hidden, so it becomes 0.
        return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1).masked_fill(hidden, 0.0)

    def luck(self, queries: range) -> Tensor:
        """r_ij ~ U(0, 1) of these queries: [B, H, q, K]."""
        device = self.value.device
        numbers = hashing.uniform(
            self.seed,
            self.draws,
            self.layer,
            self.heads,
            self.samples.query_positions(queries, self.key_count, device),
            self.samples.key_positions(self.key_count, device),
        )
        if numbers.ndim == 4:  # no padding: all samples count positions alike
            numbers = numbers.unsqueeze(1)
        samples = self.query.shape[0] // len(self.draws)
        return numbers.expand(-1, samples, -1, -1, -1).flatten(0, 1).to(self.value.dtype)

    def per_query_head(self, part: Tensor) -> Tensor:
        """[B, G, Q or 1, D] -> [B, H, Q, D]."""
        part = part.repeat_interleave(self.heads // part.shape[1], dim=1)
        return part.expand(-1, -1, self.query.shape[2], -1)


class Statistics(NamedTuple):
    """Factual outputs o_i [B, H, Q, D] and largest weights m_i [B, H, Q, 1]."""

    output: Tensor
    peak: Tensor


class Sums(NamedTuple):
    """u_i [B, H, Q, D] and n_i, which broadcasts to [B, H, Q, 1]."""

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """u_i / n_i, and 0 where nothing is seen."""
        return self.total / self.count.clamp_min(1)


def statistics(call: Attention) -> Statistics:
    """o_i and m_i, in one pass over tiles of queries."""
    outputs, peaks = [], []
    for queries in call.tiles():
        weights = call.weights(queries)
        outputs.append(_grouped(weights, call.value))
        peaks.append(weights.amax(dim=-1, keepdim=True))
    return Statistics(torch.cat(outputs, dim=2), torch.cat(peaks, dim=2))


def visible_sums(call: Attention) -> Sums:
    """u_i and n_i: running sums over the keys, or over those of a single query."""
    visible, value = call.rows, call.value
    queries = call.query.shape[2]
    if visible.mask is not None or (visible.causal and queries == 1):
        return _masked_sums(call)
    count = value.new_ones(1, 1, call.key_count, 1)
    if visible.keys is not None:
        count = visible.keys[:, None, :, None].to(value.dtype)
        value = value * count
    if visible.causal:
        seen = visible.index(range(queries), value.device)
        total, count = (part.cumsum(dim=2).index_select(2, seen) for part in (value, count))
    else:
        total, count = (part.sum(dim=2, keepdim=True) for part in (value, count))
    return Sums(call.per_query_head(total), count)


def _masked_sums(call: Attention) -> Sums:
    totals, counts = [], []
    for queries in call.tiles():
        seen = call.seen(queries).to(call.value.dtype)
        totals.append(seen @ call.value)
        counts.append(seen.sum(dim=-1, keepdim=True))
    return Sums(call.per_query_head(torch.cat(totals, dim=2)), torch.cat(counts, dim=2))


def uniform(call: Attention) -> Tensor:
    """Every visible key counts the same: u_i / n_i."""
    return visible_sums(call).mean


def uniform_over_all_keys(call: Attention) -> Tensor:
    """Released: every visible key counts 1/K, K being the number of all keys handed in."""
    return visible_sums(call).total / call.key_count


def reverse(call: Attention) -> Tensor:
    """Weights m_i - a_ij, not normalised: m_i u_i - o_i."""
    output, peak = statistics(call)
    return peak * visible_sums(call).total - output


def reverse_and_normalize(call: Attention) -> Tensor:
    """Weights (m_i - a_ij) / (n_i m_i - 1), which sum to 1."""
    output, peak = statistics(call)
    sums = visible_sums(call)
    return _away_from(output, sums.mean, sums.count * peak - 1)


def reversed_map(call: Attention) -> Tensor:
    """Weights (M - a_ij) / (N M - 1): `reverse_and_normalize` by the largest weight of the map."""
    output, peak = statistics(call)
    sums = visible_sums(call)
    return _away_from(output, sums.mean, sums.count * peak.amax(dim=2, keepdim=True) - 1)


def reversed_map_unscaled(call: Attention) -> Tensor:
    """Released: weights M - a_ij, M u - o_i."""
    output, peak = statistics(call)
    return peak.amax(dim=2, keepdim=True) * visible_sums(call).total - output


def random(call: Attention) -> Tensor:
    """Weights r_ij over their sum on visible keys."""
    return _in_tiles(call, lambda queries: _share_out(call.luck(queries) * call.seen(queries)))


def random_over_all_keys(call: Attention) -> Tensor:
    """Released: weights r_ij over their sum on all K keys, then masked."""
    return _in_tiles(call, lambda queries: _share_out(call.luck(queries)) * call.seen(queries))


def random_doubled(call: Attention) -> Tensor:
    """Released: weights 2 r_ij, with no row sum."""
    return _in_tiles(call, lambda queries: 2 * call.luck(queries))


def shuffle(call: Attention) -> Tensor:
    """The N x N weights of one head in another order, the same for all images of a draw."""
    outputs = []
    group = call.heads // call.key.shape[1]
    for head in range(call.heads):
        key, value = (part[:, head // group] for part in (call.key, call.value))  # [B, N, D]
        weights = (call.query[:, head] @ key.mT).softmax(dim=-1)
        outputs.append(_permute(weights, call, head) @ value)
    return torch.stack(outputs, dim=1)


class Method(NamedTuple):
    """A method's formula under either normalization."""

    visible: Callable[[Attention], Tensor]
    released: Callable[[Attention], Tensor]


LANGUAGE: dict[str, Method] = {
    "uniform": Method(uniform, uniform_over_all_keys),
    "reverse": Method(reverse, reverse),
    "reverse_and_normalize": Method(reverse_and_normalize, reverse_and_normalize),
    "random": Method(random, random_over_all_keys),
}
VISION: dict[str, Method] = {
    "uniform": Method(uniform, uniform),
    "reversed": Method(reversed_map, reversed_map_unscaled),
    "random": Method(random, random_doubled),
    "shuffle": Method(shuffle, shuffle),
}


def language_attention(
    method: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    visible: Visible,
    normalization: str = "visible",
    seed: int = 0,
    draws: Sequence[int] = (0,),
    layer: int = 0,
) -> Tensor:
    """Counterfactual self-attention of the decoder: [B, H, Q, D] in the query's dtype.

    Query [B, H, Q, D], key and value [B, G, K, D], position embeddings applied. The rows hold one
    group of samples a draw; `visible` describes the samples. Raises ValueError for an unknown
    method or normalization and for shapes that do not fit.
    """
    formula = _formula(LANGUAGE, method, normalization)
    return _run(formula, query, key, value, scale, visible, seed, draws, layer)


def vision_attention(
    method: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    normalization: str = "visible",
    seed: int = 0,
    draws: Sequence[int] = (0,),
    layer: int = 0,
) -> Tensor:
    """Counterfactual attention of the vision encoder, where all N patches see each other.

    As `language_attention`; a sample is an image.
    """
    formula = _formula(VISION, method, normalization)
    return _run(formula, query, key, value, scale, Visible(causal=False), seed, draws, layer)


def edited_map(
    method: str,
    weights: Tensor,
    normalization: str = "visible",
    seed: int = 0,
    draws: Sequence[int] = (0,),
    layer: int = 0,
) -> Tensor:
    """The counterfactual map itself, [B, H, N, N], of softmax maps: for the vision site "features".

    A map is the attention output for the identity as values, and it is its own softmax of its
    logarithm: so the formulas of `vision_attention` give it.
    """
    rows, _, patches, _ = weights.shape
    logarithm = weights.to(torch.promote_types(weights.dtype, torch.float32)).log()
    identity = torch.eye(patches, dtype=logarithm.dtype, device=weights.device)
    identity = identity.expand(rows, 1, patches, patches)  # one head, shared by all
    edited = vision_attention(
        method,
        logarithm,
        identity,
        identity,
        scale=1.0,
        normalization=normalization,
        seed=seed,
        draws=draws,
        layer=layer,
    )
    return edited.to(weights.dtype)


def _run(
    formula: Callable[[Attention], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    visible: Visible,
    seed: int,
    draws: Sequence[int],
    layer: int,
) -> Tensor:
    _check_shapes(query, key, value, visible, draws)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    # Far outside what any model computes, but no score and no sum over the keys can overflow then.
    largest = torch.finfo(dtype).max
    score_limit = (largest / (4 * key.shape[3])) ** 0.5
    value_limit = largest / (4 * key.shape[2])
    # Autocast would quietly run the matrix products in half precision.
    with torch.autocast(query.device.type, enabled=False):
        call = Attention(
            query=(query.to(dtype) * scale).clamp(-score_limit, score_limit),
            key=key.to(dtype).clamp(-score_limit, score_limit),
            value=value.to(dtype).clamp(-value_limit, value_limit),
            samples=visible,
            rows=visible.repeat(len(draws)),
            seed=seed,
            draws=tuple(draws),
            layer=layer,
        )
        output = formula(call)
    # Methods whose weights do not sum to 1 can leave the range of float16.
    limit = torch.finfo(query.dtype).max
    return output.clamp(-limit, limit).to(query.dtype)


def _formula(
    methods: dict[str, Method], method: str, normalization: str
) -> Callable[[Attention], Tensor]:
    if method not in methods:
        raise ValueError(f"method={method!r}: expected one of {', '.join(methods)}")
    if normalization not in NORMALIZATIONS:
        allowed = ", ".join(NORMALIZATIONS)
        raise ValueError(f"normalization={normalization!r}: expected one of {allowed}")
    return getattr(methods[method], normalization)


def _check_shapes(
    query: Tensor, key: Tensor, value: Tensor, visible: Visible, draws: Sequence[int]
) -> None:
    rows, heads, queries, _ = query.shape
    if not draws or rows % len(draws):
        raise ValueError(f"draws={tuple(draws)}: expected their number to divide the {rows} rows")
    if key.shape[:3] != value.shape[:3] or key.shape[0] != rows or heads % key.shape[1]:
        raise ValueError(
            f"key {tuple(key.shape)} and value {tuple(value.shape)} do not fit query "
            f"{tuple(query.shape)}: expected {rows} rows, one length, heads that divide {heads}"
        )
    allowed = (1, rows // len(draws))
    keys, mask, length = visible.keys, visible.mask, key.shape[2]
    if keys is not None and (len(keys) not in allowed or keys.shape[1] != length):
        raise ValueError(
            f"visible.keys {tuple(keys.shape)}: expected {[allowed[1], length]} for {length} keys "
            f"and {rows} rows in {len(draws)} draws"
        )
    if mask is not None and (len(mask) not in allowed or mask.shape[2:] != (queries, length)):
        raise ValueError(
            f"visible.mask {tuple(mask.shape)}: expected {[allowed[1], 1, queries, length]} for "
            f"{rows} rows in {len(draws)} draws"
        )


def _grouped(left: Tensor, right: Tensor) -> Tensor:
    """Products of H heads with G shared ones: [B, H, q, X] @ [B, G, X, Y] -> [B, H, q, Y]."""
    heads, queries = left.shape[1:3]
    groups = right.shape[1]
    # The g query heads of a group become further rows, so that nothing is repeated.
    stacked = left.unflatten(1, (groups, heads // groups)).flatten(2, 3)
    return (stacked @ right).unflatten(2, (heads // groups, queries)).flatten(1, 2)


def _in_tiles(call: Attention, weights: Callable[[range], Tensor]) -> Tensor:
    return torch.cat([_grouped(weights(tile), call.value) for tile in call.tiles()], dim=2)


def _share_out(weights: Tensor) -> Tensor:
    total = weights.sum(dim=-1, keepdim=True)
    return weights / total.clamp_min(torch.finfo(weights.dtype).tiny)


def _away_from(output: Tensor, mean: Tensor, excess: Tensor) -> Tensor:
    """sum_j (c - a_j) / (n c - 1) v_j for a largest weight c, given excess = n c - 1.

    With w_j = (c - a_j) / (n c - 1), w_j - 1/n = -(a_j - 1/n) / (n c - 1); and sum_j 1/n v_j is the
    mean. So the result is mean - (output - mean) / excess, where c u and o, large and nearly equal
    in flat rows, need not be subtracted. A flat row is 0/0, and a row that sees nothing has excess
    -1: both are the mean.
    """
    flat = excess <= FLAT * torch.finfo(output.dtype).eps
    return torch.where(flat, mean, mean - (output - mean) / excess.masked_fill(flat, 1.0))


def _permute(weights: Tensor, call: Attention, head: int) -> Tensor:
    """Maps [B, N, N] of one head, the entries of each dealt out again by its draw's permutation."""
    patches, device = weights.shape[-1], weights.device
    orders = [
        hashing.permutation(call.seed, draw, call.layer, head, patches, device)
        for draw in call.draws
    ]
    entries = weights.flatten(1).unflatten(0, (len(orders), -1))  # [S, n, N * N]
    order = torch.stack(orders).unsqueeze(1).expand_as(entries)
    return entries.gather(-1, order).view_as(weights)
