"""Counterfactual attention outputs, without building the attention map.

B rows: S draws of n samples, laid out [draw 0: all samples | draw 1: all samples | ...]. H query
heads, G key-value heads (H = G * g), Q queries, K keys, D head size; vision encoder: Q = K = N.
For query i: a_ij factual softmax weights, S_i the n_i keys it may see, o_i = sum_j a_ij v_j,
m_i = max_j a_ij, u_i = sum of v_j over S_i, M = the largest a_ij of one head's whole map.
A call is worked off in blocks of heads and queries, so that what exists at a time is bounded and
stays in a CPU's cache.
Promises, held in tests/test_attention.py: hidden keys get weight 0; a query that sees no key gets
0; finite inputs give finite outputs; memory grows linearly with K (shuffle: one map at a time).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from causalmm import fused, hashing
from causalmm.config import NORMALIZATIONS
from causalmm.visible import Visible

BLOCK_ENTRIES = 2**19
"""Weights that exist at a time on a CPU: 2 MB of them, about what its caches hold."""
LEAST_QUERIES = 16
"""Queries in a block at least: matrix products of fewer are slow."""

FLAT = 64
"""n*m - 1 within this many rounding errors of 0 means a uniform row, whose reverse is 0/0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Some heads and queries of one attention call: what every formula is computed from.

    float32 (or float64) and the query scaled, except where nothing looks at scores or the fused
    kernel does: that takes the model's own.
    """

    query: Tensor  # [B, H, Q, D]
    key: Tensor  # [B, G, K, D]
    value: Tensor  # [B, G, K, D], 0 at padding
    scale: float
    visible: Visible
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

    @property
    def rows(self) -> Visible:
        """What the queries of all rows see."""
        return self.visible.repeat(len(self.draws))

    def head_blocks(self, at_a_time: int) -> Iterator["Attention"]:
        """The call, `at_a_time` key-value heads after another, in the precision of the formulas."""
        shared = self.key.shape[1]
        share = len(self.heads) // shared
        for start in range(0, shared, at_a_time):
            stop = min(start + at_a_time, shared)
            yield replace(
                self,
                query=self.query[:, start * share : stop * share],
                key=self.key[:, start:stop],
                value=self.value[:, start:stop],
                heads=self.heads[start * share : stop * share],
            )

    def block(self, queries: range, keys: int | None = None) -> "Attention":
        """Some of the queries, and the leading keys (None: all that these queries may see)."""
        if keys is None:
            keys = self.visible.reach(queries, self.key.shape[2])
        return replace(
            self,
            query=self.query[:, :, queries.start : queries.stop],
            key=self.key[:, :, :keys],
            value=self.value[:, :, :keys],
            visible=self.visible.block(queries, keys),
        )

    def query_blocks(self, at_a_time: int) -> Iterator[range]:
        """Ranges of queries, `at_a_time` after another."""
        count = self.query.shape[2]
        for start in range(0, count, at_a_time):
            yield range(start, min(start + at_a_time, count))

    def ready(self, scores: bool) -> "Attention":
        """The same with padding's values 0 and, where scores are wanted, in their precision."""
        query, key, value = self.query, self.key, self.value
        if scores and not self.fused:
            dtype = torch.promote_types(query.dtype, torch.float32)
            query, key, value = query.to(dtype) * self.scale, key.to(dtype), value.to(dtype)
        if self.visible.keys is not None:
            value = value * self.rows.keys[:, None, :, None]
        return replace(self, query=query, key=key, value=value)

    def scores(self) -> Tensor:
        """Products of queries and keys: [B, H, Q, K], -inf where hidden."""
        scores = _grouped(self.query, self.key.mT)
        rows = self.rows
        queries, keys = scores.shape[2:]
        if rows.everything:
            return scores
        if rows.mask is None and rows.keys is None and rows.query_start == keys - queries:
            # Only the last square holds hidden keys, and every query sees itself.
            square = scores[..., keys - queries :]
            square.masked_fill_(_above_diagonal(queries, scores.device), -torch.inf)
            return scores
        return scores.masked_fill_(~rows.map(queries, keys, scores.device), -torch.inf)

    def seen(self) -> Tensor:
        """S_i: bool [B or 1, 1, Q, K]."""
        return self.rows.map(self.query.shape[2], self.key.shape[2], self.value.device)

    def luck(self) -> Tensor:
        """r_ij ~ U(0, 1): [B, H, Q, K]."""
        states, keys = self.luck_words()
        return hashing.number(states.unsqueeze(-1) ^ keys[:, None, None, :]).to(self.value.dtype)

    def luck_words(self) -> tuple[Tensor, Tensor]:
        """The halves of r_ij: of the queries int64 [B, H, Q], of the keys [B or 1, K]."""
        device, queries, keys = self.value.device, self.query.shape[2], self.key.shape[2]
        place = self.visible.query_positions(queries, keys, device)
        states = hashing.query_states(self.seed, self.draws, self.layer, self.heads, place)
        if place.ndim == 1:  # no padding: all samples count positions alike
            states = states.unsqueeze(1)
        samples = self.query.shape[0] // len(self.draws)
        states = states.expand(-1, samples, -1, -1).flatten(0, 1)
        words = hashing.key_words(self.rows.key_positions(keys, device))
        return states, words.view(-1, keys)

    def per_query_head(self, part: Tensor) -> Tensor:
        """[B, G, Q or 1, D] -> [B, H, Q, D]."""
        part = part.repeat_interleave(len(self.heads) // part.shape[1], dim=1)
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
    """o_i and m_i, in one pass over the scores."""
    if call.fused:
        return Statistics(
            *fused.statistics(call.query, call.key, call.value, call.scale, call.rows)
        )
    value = call.value
    output = value.new_empty(*call.query.shape[:3], value.shape[3])
    peak = value.new_empty(*call.query.shape[:3], 1)
    # Blocks of a whole map hold all queries; more than fit are taken one part after another.
    for queries in call.query_blocks(_queries_at_a_time(call, call.key.shape[2])):
        part = call.block(queries)
        here = slice(queries.start, queries.stop)
        # A softmax in the scores' own place. What is largest is exp(0) / total, so m_i = 1 / total;
        # NaN where a query sees nothing.
        weights = part.scores()
        weights = weights.sub_(weights.amax(dim=-1, keepdim=True)).exp_()
        peak[:, :, here] = weights.sum(dim=-1, keepdim=True).reciprocal_()
        output[:, :, here] = _grouped(weights, part.value).mul_(peak[:, :, here])
    return Statistics(output, peak)


def visible_sums(call: Attention) -> Sums:
    """u_i and n_i: sums over the keys before the block, and running ones in it."""
    visible, value = call.rows, call.value
    queries, keys = call.query.shape[2], call.key.shape[2]
    dtype = torch.promote_types(value.dtype, torch.float32)
    trailing = isinstance(visible.query_start, int) and visible.query_start + queries == keys
    if visible.mask is not None or (visible.causal and queries == 1 and not trailing):
        seen = call.seen().to(dtype)
        return Sums(call.per_query_head(seen @ value.to(dtype)), seen.sum(dim=-1, keepdim=True))
    count = value.new_ones(1, 1, keys, 1, dtype=dtype)
    if visible.keys is not None:
        count = visible.keys[:, None, :, None].to(dtype)
    if not visible.causal:
        total, count = (part.sum(dim=2, keepdim=True, dtype=dtype) for part in (value, count))
    elif trailing:
        total, count = (_running_sum(part, queries, dtype) for part in (value, count))
    else:
        seen = visible.index(queries, value.device)
        total, count = (
            part.cumsum(dim=2, dtype=dtype).index_select(2, seen) for part in (value, count)
        )
    return Sums(call.per_query_head(total), count)


def _running_sum(part: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """Sums up to each of the last `queries` places along axis 2."""
    before, own = part.split([part.shape[2] - queries, queries], dim=2)
    return before.sum(dim=2, keepdim=True, dtype=dtype) + own.cumsum(dim=2, dtype=dtype)


def uniform(call: Attention) -> Tensor:
    """Every visible key counts the same: u_i / n_i."""
    return visible_sums(call).mean


def uniform_over_all_keys(call: Attention) -> Tensor:
    """Released: every visible key counts 1/K, K being the number of all keys handed in."""
    return visible_sums(call).total / call.keys_given


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
    if call.fused:
        return fused.random(call.query, call.key, call.value, call.rows, *call.luck_words())
    return _grouped(_share_out(call.luck() * call.seen()), call.value)


def random_over_all_keys(call: Attention) -> Tensor:
    """Released: weights r_ij over their sum on all K keys, then masked."""
    return _grouped(_share_out(call.luck()) * call.seen(), call.value)


def random_doubled(call: Attention) -> Tensor:
    """Released: weights 2 r_ij, with no row sum."""
    return _grouped(2 * call.luck(), call.value)


def shuffle(call: Attention) -> Tensor:
    """The N x N weights of one head in another order, the same for all images of a draw."""
    outputs = []
    group = len(call.heads) // call.key.shape[1]
    for index, head in enumerate(call.heads):
        key, value = (part[:, index // group] for part in (call.key, call.value))  # [B, N, D]
        weights = (call.query[:, index] @ key.mT).softmax(dim=-1)
        outputs.append(_permute(weights, call, head) @ value)
    return torch.stack(outputs, dim=1)


class Formula(NamedTuple):
    """How a method's output is computed, and what it needs at a time."""

    compute: Callable[[Attention], Tensor]
    scores: bool = True
    """Whether it looks at every pair of a query and a key."""
    whole_map: bool = False
    """Whether it needs all queries of a head at once."""
    every_key: bool = False
    """Whether it looks at keys too that no query may see."""
    fused: bool = False
    """Whether it can use the fused kernel."""


class Method(NamedTuple):
    """A method's formula under either normalization."""

    visible: Formula
    released: Formula


_UNIFORM = Formula(uniform, scores=False, fused=True)
_REVERSE = Formula(reverse, fused=True)
_REVERSE_AND_NORMALIZE = Formula(reverse_and_normalize, fused=True)
_RANDOM = Formula(random, fused=True)
_SHUFFLE = Formula(shuffle, whole_map=True)
LANGUAGE: dict[str, Method] = {
    "uniform": Method(_UNIFORM, Formula(uniform_over_all_keys, scores=False, fused=True)),
    "reverse": Method(_REVERSE, _REVERSE),
    "reverse_and_normalize": Method(_REVERSE_AND_NORMALIZE, _REVERSE_AND_NORMALIZE),
    "random": Method(_RANDOM, Formula(random_over_all_keys, every_key=True)),
}
VISION: dict[str, Method] = {
    "uniform": Method(_UNIFORM, _UNIFORM),
    "reversed": Method(
        Formula(reversed_map, whole_map=True, fused=True),
        Formula(reversed_map_unscaled, whole_map=True, fused=True),
    ),
    "random": Method(_RANDOM, Formula(random_doubled)),
    "shuffle": Method(_SHUFFLE, _SHUFFLE),
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
    # -inf times the identity's zeros would be NaN; this, too, is a weight of exactly 0.
    logarithm = logarithm.clamp_min(-1e4)
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
    formula: Formula,
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
    call = Attention(
        query=query,
        key=key,
        value=value,
        scale=scale,
        visible=visible,
        heads=range(query.shape[1]),
        keys_given=key.shape[2],
        seed=seed,
        draws=tuple(draws),
        layer=layer,
        fused=formula.fused and fused.serves(query),
    )
    shared_heads, queries = _block_size(call, formula)
    output = query.new_empty(*query.shape[:3], value.shape[3])
    # Autocast would quietly run the matrix products in half precision.
    with torch.autocast(query.device.type, enabled=False):
        for heads in call.head_blocks(shared_heads):
            ready = heads.ready(formula.scores)
            mine = output[:, heads.heads.start : heads.heads.stop]
            for block in ready.query_blocks(queries):
                part = ready.block(block, key.shape[2] if formula.every_key else None)
                mine[:, :, block.start : block.stop] = formula.compute(part)
    # NaN is a query that sees nothing, or sums beyond float32; methods whose weights do not sum
    # to 1 can leave the range of float16.
    return output.nan_to_num_(0.0)


def _block_size(call: Attention, formula: Formula) -> tuple[int, int]:
    """Key-value heads and queries that are taken at a time."""
    queries, keys = call.query.shape[2], call.key.shape[2]
    width = keys if formula.scores else call.value.shape[3]
    if not formula.whole_map:
        queries = _queries_at_a_time(call, width)
    if call.fused:
        return call.key.shape[1], queries
    return max(1, _block_entries(call) // (_rows_a_head(call) * queries * width)), queries


def _queries_at_a_time(call: Attention, width: int) -> int:
    """As many queries as fit a block where each takes `width` entries a row and head."""
    if call.fused:
        return fused.QUERIES
    fitting = _block_entries(call) // (_rows_a_head(call) * width)
    return min(call.query.shape[2], max(LEAST_QUERIES, fitting))


def _rows_a_head(call: Attention) -> int:
    """Rows of weights that one query adds to a block of one key-value head."""
    return call.query.shape[0] * (call.query.shape[1] // call.key.shape[1])


def _block_entries(call: Attention) -> int:
    # Elsewhere than on a CPU a block should be large rather than cached.
    return BLOCK_ENTRIES if call.query.device.type == "cpu" else 32 * BLOCK_ENTRIES


def _formula(methods: dict[str, Method], method: str, normalization: str) -> Formula:
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


def _above_diagonal(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)


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
