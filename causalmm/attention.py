"""Counterfactual attention outputs, without building the attention map.

B rows: S draws of n samples, laid out [draw 0: all samples | draw 1: all samples | ...]. H query
heads, G key-value heads (H = G * g), Q queries, K keys, D head size; vision encoder: Q = K = N.
For query i: a_ij factual softmax weights, S_i the n_i keys it may see, o_i = sum_j a_ij v_j,
m_i = max_j a_ij, u_i = sum of v_j over S_i, M = the largest a_ij of one head's whole map.
A call is worked off in blocks of heads, queries and keys, so that what exists at a time is bounded
and stays in a CPU's cache.
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

BLOCK_ENTRIES = 2**18
"""Weights that exist at a time on a CPU: 1 MB of them, about what its caches hold."""
LEAST_QUERIES, LEAST_KEYS = 16, 512
"""Of each, in a block, at least: matrix products of fewer are slow."""

FLAT = 64
"""n*m - 1 within this many rounding errors of 0 means a uniform row, whose reverse is 0/0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Some heads and queries of one attention call: what every formula is computed from."""

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
    factual: "Statistics | None" = None
    """Where the formula looks at them."""

    @property
    def rows(self) -> Visible:
        """What the queries of all rows see."""
        return self.visible.repeat(len(self.draws))

    def head_blocks(self, at_a_time: int) -> Iterator["Attention"]:
        """The call, `at_a_time` key-value heads after another."""
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
            factual=None if self.factual is None else self.factual.block(queries),
        )

    def among(self, keys: range) -> "Attention":
        """The same where these are all the keys there are."""
        return replace(
            self,
            key=self.key[:, :, keys.start : keys.stop],
            value=self.value[:, :, keys.start : keys.stop],
            visible=self.visible.among(keys),
        )

    def query_blocks(self, at_a_time: int) -> Iterator[range]:
        """Ranges of queries, `at_a_time` after another."""
        return _ranges(self.query.shape[2], at_a_time)

    def without_padding(self) -> "Attention":
        """The same with padding's values 0."""
        if self.visible.keys is None:
            return self
        return replace(self, value=self.value * self.rows.keys[:, None, :, None])

    def scores(self) -> Tensor:
        """Products of queries and keys: [B, H, Q, K], -inf where hidden."""
        scores = _grouped(_precise(self.query) * self.scale, _precise(self.key).mT)
        rows = self.rows
        queries, keys = scores.shape[2:]
        if rows.everything(keys):
            return scores
        return scores.masked_fill_(~rows.map(queries, keys, scores.device), -torch.inf)

    def seen(self) -> Tensor:
        """S_i: bool [B or 1, 1, Q, K]."""
        return self.rows.map(self.query.shape[2], self.key.shape[2], self.value.device)

    def luck(self) -> Tensor:
        """r_ij ~ U(0, 1): [B, H, Q, K]."""
        states, keys = self.luck_words()
        numbers = hashing.numbers(states.unsqueeze(-1), keys[:, None, None, :])
        return numbers.to(_precision(self.value.dtype))

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

    def block(self, queries: range) -> "Statistics":
        """Those of some of the queries."""
        return Statistics(*(part[:, :, queries.start : queries.stop] for part in self))

    def of_whole_map(self) -> "Statistics":
        """With M of each head, the largest weight of all its queries, as every m_i."""
        return self._replace(peak=self.peak.amax(dim=2, keepdim=True).expand_as(self.peak))


class Sums(NamedTuple):
    """u_i [B, H, Q, D] and n_i, which broadcasts to [B, H, Q, 1]."""

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """u_i / n_i, and 0 where nothing is seen."""
        return self.total / self.count.clamp_min(1)


def statistics(call: Attention) -> Statistics:
    """o_i and m_i, in one pass over the scores.

    What is largest in a row weighs exp(0) / total, so m_i = 1 / total. Where a query sees nothing,
    m_i is infinite and o_i NaN.
    """
    if call.fused:
        return Statistics(
            *fused.statistics(call.query, call.key, call.value, call.scale, call.rows)
        )
    shared, queries, keys = call.key.shape[1], call.query.shape[2], call.key.shape[2]
    rows = shared * _rows_a_head(call)
    keys_at_a_time = max(LEAST_KEYS, _block_entries(call) // (rows * queries))
    queries_at_a_time = _queries_at_a_time(call, shared * min(keys_at_a_time, keys))
    if keys_at_a_time >= keys and queries_at_a_time >= queries:
        sums = _exponential_sums(call)
    else:
        sums = _exponential_sums_in_blocks(call, queries_at_a_time, keys_at_a_time)
    peak = sums.total.reciprocal_()
    return Statistics(sums.output.mul_(peak), peak)


class ExponentialSums(NamedTuple):
    """For scores s_ij: c_i = max_j s_ij [B, H, Q, 1], sum_j exp(s_ij - c_i) [B, H, Q, 1] and
    sum_j exp(s_ij - c_i) v_j [B, H, Q, D]. Where nothing is seen, c_i is finite and the sums 0."""

    largest: Tensor
    total: Tensor
    output: Tensor


def _exponential_sums(call: Attention) -> ExponentialSums:
    weights = call.scores()
    # Finite, as -inf - -inf would be NaN.
    largest = weights.amax(dim=-1, keepdim=True).clamp_min_(torch.finfo(weights.dtype).min)
    weights = weights.sub_(largest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    return ExponentialSums(largest, total, _grouped(weights, _precise(call.value)))


def _exponential_sums_in_blocks(
    call: Attention, queries_at_a_time: int, keys_at_a_time: int
) -> ExponentialSums:
    """One block of keys after another, rescaling where a larger score comes: the online softmax
    (Milakov & Gimelshein, 2018, arXiv 1805.02867). So no more keys than a block's are held in the
    precision of the formulas at a time."""
    dtype = _precision(call.query.dtype)
    output = call.query.new_zeros(*call.query.shape[:3], call.value.shape[3], dtype=dtype)
    total = output.new_zeros(*output.shape[:3], 1)
    sums = ExponentialSums(torch.full_like(total, torch.finfo(dtype).min), total, output)
    for some_keys in _ranges(call.key.shape[2], keys_at_a_time):
        among = call.among(some_keys)
        among = replace(among, key=_precise(among.key), value=_precise(among.value))
        for queries in call.query_blocks(queries_at_a_time):
            part = among.block(queries)
            if not part.key.shape[2]:
                continue
            here = slice(queries.start, queries.stop)
            largest, total, output = (old[:, :, here] for old in sums)
            new = _exponential_sums(part)
            top = torch.maximum(largest, new.largest)
            old_share, new_share = (largest - top).exp_(), (new.largest - top).exp_()
            largest.copy_(top)
            total.mul_(old_share).add_(new.total.mul_(new_share))
            output.mul_(old_share).add_(new.output.mul_(new_share))
    return sums


def visible_sums(call: Attention) -> Sums:
    """u_i and n_i: sums over the keys before the block, and running ones in it."""
    visible, value = call.rows, call.value
    queries, keys = call.query.shape[2], call.key.shape[2]
    dtype = _precision(value.dtype)
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
    output, peak = call.factual
    return peak * visible_sums(call).total - output


def reverse_and_normalize(call: Attention) -> Tensor:
    """Weights (m_i - a_ij) / (n_i m_i - 1), which sum to 1."""
    output, peak = call.factual
    sums = visible_sums(call)
    return _away_from(output, sums.mean, sums.count * peak - 1)


def random(call: Attention) -> Tensor:
    """Weights r_ij over their sum on visible keys."""
    if call.fused:
        return fused.random(call.query, call.key, call.value, call.rows, *call.luck_words())
    weights = call.luck()
    if not call.rows.everything(call.key.shape[2]):
        weights.mul_(call.seen())
    return _weighted(weights, weights.sum(dim=-1, keepdim=True), call.value)


def random_over_all_keys(call: Attention) -> Tensor:
    """Released: weights r_ij over their sum on all K keys, then masked."""
    weights = call.luck()
    total = weights.sum(dim=-1, keepdim=True)
    return _weighted(weights * call.seen(), total, call.value)


def random_doubled(call: Attention) -> Tensor:
    """Released: weights 2 r_ij, with no row sum."""
    return _grouped(2 * call.luck(), _precise(call.value))


def shuffle(call: Attention) -> Tensor:
    """The N x N weights of one head in another order, the same for all images of a draw."""
    outputs = []
    group = len(call.heads) // call.key.shape[1]
    for index, head in enumerate(call.heads):
        key, value = (_precise(part[:, index // group]) for part in (call.key, call.value))
        weights = (_precise(call.query[:, index]) * call.scale @ key.mT).softmax(dim=-1)
        outputs.append(_permute(weights, call, head) @ value)
    return torch.stack(outputs, dim=1)


class Formula(NamedTuple):
    """How a method's output is computed, and what it needs at a time."""

    compute: Callable[[Attention], Tensor]
    factual: bool = False
    """Whether it looks at the factual output and largest weights."""
    pairs: bool = False
    """Whether it makes something for every pair of a query and a key itself."""
    whole_map: bool = False
    """Whether it needs all queries of a head at once; with `factual`, M as every m_i."""
    every_key: bool = False
    """Whether it looks at keys too that no query may see."""
    fused: bool = False
    """Whether it can use the fused kernel."""


class Method(NamedTuple):
    """A method's formula under either normalization."""

    visible: Formula
    released: Formula


_UNIFORM = Formula(uniform, fused=True)
_REVERSE = Formula(reverse, factual=True, fused=True)
_REVERSE_AND_NORMALIZE = Formula(reverse_and_normalize, factual=True, fused=True)
_RANDOM = Formula(random, pairs=True, fused=True)
_SHUFFLE = Formula(shuffle, pairs=True, whole_map=True)
LANGUAGE: dict[str, Method] = {
    "uniform": Method(_UNIFORM, Formula(uniform_over_all_keys, fused=True)),
    "reverse": Method(_REVERSE, _REVERSE),
    "reverse_and_normalize": Method(_REVERSE_AND_NORMALIZE, _REVERSE_AND_NORMALIZE),
    "random": Method(_RANDOM, Formula(random_over_all_keys, pairs=True, every_key=True)),
}
VISION: dict[str, Method] = {
    "uniform": Method(_UNIFORM, _UNIFORM),
    # Weights (M - a_ij) / (N M - 1); as released, M - a_ij.
    "reversed": Method(
        _REVERSE_AND_NORMALIZE._replace(whole_map=True), _REVERSE._replace(whole_map=True)
    ),
    "random": Method(_RANDOM, Formula(random_doubled, pairs=True)),
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


def one_query_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, visible: Visible
) -> Tensor:
    """Factual attention of one query a row, [B, H, 1, D] in the query's dtype, without gradients.

    Query [B, H, 1, D], key and value [B, G, K, D]; `visible` describes the rows. On a CPU PyTorch's
    own kernel, made for many queries, takes several times as long; and it rounds the weights, which
    are float32 here, to the query's precision. A row that sees no key gets 0.
    """
    everything = visible.everything(key.shape[2])
    # One place for keys and then values: fresh memory costs more than the products.
    precise = key.new_empty(key.shape, dtype=_precision(key.dtype))
    # Autocast would quietly run the matrix products in half precision.
    with torch.autocast(query.device.type, enabled=False):
        scores = _grouped(_precise(query) * scale, precise.copy_(key).mT)
        if not everything:
            scores.masked_fill_(~visible.map(1, key.shape[2], key.device), -torch.inf)
        output = _grouped(scores.softmax(dim=-1), precise.copy_(value))
    return (output if everything else output.nan_to_num_(0.0)).to(query.dtype)


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
    blocks = _block_sizes(call, formula)
    output = query.new_empty(*query.shape[:3], value.shape[3])
    # Autocast would quietly run the matrix products in half precision.
    with torch.autocast(query.device.type, enabled=False):
        for heads in call.head_blocks(blocks.shared_heads):
            ready = heads.without_padding()
            mine = output[:, heads.heads.start : heads.heads.stop]
            for outer in ready.query_blocks(blocks.outer):
                part = ready.block(outer, key.shape[2] if formula.every_key else None)
                _fill(mine[:, :, outer.start : outer.stop], formula, part, blocks.inner)
    # NaN is a query that sees nothing, or sums beyond float32; methods whose weights do not sum
    # to 1 can leave the range of float16.
    return output.nan_to_num_(0.0)


def _fill(output: Tensor, formula: Formula, call: Attention, queries_at_a_time: int) -> None:
    # A function of its own, so that the statistics are gone before the next call's are made.
    if formula.factual:
        found = statistics(call)
        call = replace(call, factual=found.of_whole_map() if formula.whole_map else found)
    for queries in call.query_blocks(queries_at_a_time):
        part = call.block(queries, call.key.shape[2] if formula.every_key else None)
        output[:, :, queries.start : queries.stop] = formula.compute(part)


class BlockSizes(NamedTuple):
    """How much of a call is taken at a time."""

    shared_heads: int
    outer: int
    """Queries that share their statistics' blocks."""
    inner: int
    """Queries whose outputs are computed together."""


def _block_sizes(call: Attention, formula: Formula) -> BlockSizes:
    shared, queries, keys = call.key.shape[1], call.query.shape[2], call.key.shape[2]
    if call.fused:
        if not formula.whole_map:
            return BlockSizes(shared, fused.QUERIES, fused.QUERIES)
        return BlockSizes(max(1, shared * fused.QUERIES // queries), queries, fused.QUERIES)
    if formula.whole_map and formula.pairs:
        return BlockSizes(1, queries, queries)
    # A formula without pairs holds about four tensors like its output at a time.
    width = keys if formula.pairs or call.visible.mask is not None else 4 * call.value.shape[3]
    widest = max(width, keys) if formula.factual else width
    heads = max(1, _block_entries(call) // (_rows_a_head(call) * queries * widest))
    return BlockSizes(heads, queries, _queries_at_a_time(call, heads * width))


def _queries_at_a_time(call: Attention, width: int) -> int:
    """As many queries as fit a block where each takes `width` entries a row and head."""
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


def _weighted(weights: Tensor, total: Tensor, value: Tensor) -> Tensor:
    """sum_j w_ij v_j / total_i, and 0 where that is 0 / 0."""
    return _grouped(weights, _precise(value)) / total.clamp_min(torch.finfo(total.dtype).tiny)


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


def _ranges(count: int, at_a_time: int) -> Iterator[range]:
    for start in range(0, count, at_a_time):
        yield range(start, min(start + at_a_time, count))


def _precision(dtype: torch.dtype) -> torch.dtype:
    """What formulas are computed in: float32, or float64 where that is given."""
    return torch.promote_types(dtype, torch.float32)


def _precise(part: Tensor) -> Tensor:
    return part.to(_precision(part.dtype))
