"""Attention calls with every mask, and their outputs by definition, on whole maps in float64.

The definition is the table of tests/dense_methods.py. Letters as in
causalmm/counterfactual/attention.py.
"""

from dataclasses import replace

import dense_methods
import torch
from dense_methods import FORMULAS
from random_numbers import uniform

from causalmm.counterfactual import random_weights
from causalmm.counterfactual.attention_mask import AttentionMask, ImageTokens
from causalmm.counterfactual.methods import find

MASKS = (
    "causal", "padded", "holes", "mask", "shared mask", "padded mask", "packed mask", "full",
    "padded full",
)  # fmt: skip
# Random weights need one position for each key, which arbitrary masks do not give.
FORMULAS_AND_MASKS = [
    (method, variant, masks)
    for method, variant in FORMULAS["language"]
    for masks in MASKS
    if masks not in ("mask", "shared mask") or not find("language", method).stochastic
]


def expected_output(
    tower, method, variant, inputs, scale, sees, numbers, orders=None, start=0, image=None
):
    """[B, H, Q, D] on whole maps. `sees` [B, Q, K], `numbers` [B, H, Q, K], `orders`
    [B, H, N * N]; `start`: which key is the first query's own; `image`: the samples' tokens."""
    query, key, value = (part.double() for part in inputs)
    share = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(share, dim=1) for part in (key, value))
    seen = sees[:, None].expand(-1, query.shape[1], -1, -1)
    scores = (scale * query @ key.mT).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)  # a row that sees nothing
    if image is not None:
        pairs = image.pairs().expand(-1, query.shape[1], -1, -1)
        image = pairs.repeat(len(query) // len(pairs), 1, 1, 1)
    given = dense_methods.Map(weights, seen, lambda: numbers.double(), lambda: orders, start, image)
    return dense_methods.edited(tower, method, variant, given) @ value


def vision_randomness(seed, draws, layer, images, heads, patches):
    """r_ij [B, H, N, N] and permutations [B, H, N * N] of the rows of so many images a draw."""
    place = torch.arange(patches)
    numbers = uniform(seed, draws, layer, heads, place, place)
    orders = torch.stack(
        [
            random_weights.permutation(seed, draw, layer, head, torch.arange(patches))
            for draw in draws
            for head in range(heads)
        ]
    ).view(len(draws), heads, -1)
    return numbers.repeat_interleave(images, dim=0), orders.repeat_interleave(images, dim=0)


# Inputs.


def tensors(values, data, rows, heads, kv_heads, queries, keys, size):
    """Query, key and value in float64, one of the VALUES kinds."""
    chance = torch.Generator().manual_seed(data)
    query, key, value = (
        torch.randn(shape, generator=chance, dtype=torch.float64)
        for shape in [
            (rows, heads, queries, size),
            (rows, kv_heads, keys, size),
            (rows, kv_heads, keys, size),
        ]
    )
    if values == "large":  # weights that round to 0 or 1
        query = query * 100
    if values == "tiny":  # nearly uniform rows
        query = query * 1e-3
    if values == "ties":
        query, key = query.round(), key.round()
    if values == "constant":
        key = key[:, :, :1].expand_as(key).contiguous()
    return query, key, value


def language_case(**changes):
    case = {
        "masks": "causal",
        "values": "normal",
        "samples": 2,
        "draws": (0,),
        "kv_heads": 2,
        "share": 2,
        "queries": 5,
        "past": 2,
        "unfilled": 0,  # keys after the last query, as a static cache has
        "size": 4,
        "seed": 0,
        "layer": 0,
    }
    return case | changes


def language_inputs(case, data):
    """(query, key, value), the AttentionMask with its image tokens, and the mask [n, Q, K]."""
    inputs, visible, sees = _language_inputs(case, data)
    samples, queries, keys = sees.shape
    chance = torch.Generator().manual_seed(data + 2)
    # All kinds of rows: pictures here and there, everywhere or nowhere.
    share = torch.rand(samples, 1, generator=chance) * 1.4 - 0.2
    image = torch.rand(samples, keys, generator=chance) < share
    return inputs, with_image(visible, image, queries), sees


def with_image(visible, image, queries):
    """A mask that says which keys are image tokens, bool [n or 1, K]."""
    start = int(visible.query_start)
    tokens = ImageTokens(keys=image, queries=image[:, start : start + queries])
    return replace(visible, image=tokens)


def _language_inputs(case, data):
    samples, queries, past = case["samples"], case["queries"], case["past"]
    length, kind = past + queries + case["unfilled"], case["masks"]
    heads = case["kv_heads"] * case["share"]
    rows = samples * len(case["draws"])
    inputs = tensors(
        case["values"], data, rows, heads, case["kv_heads"], queries, length, case["size"]
    )
    chance = torch.Generator().manual_seed(data + 1)
    lead = torch.randint(0, past + queries, (samples, 1), generator=chance)
    real = torch.arange(length) >= lead
    if kind in ("holes", "packed mask"):
        # Padding between a shared beginning and each sample's own end.
        real = torch.rand(samples, length, generator=chance) < 0.7
    if kind in ("mask", "shared mask"):
        mask_rows = 1 if kind == "shared mask" else samples
        mask = torch.rand(mask_rows, 1, queries, length, generator=chance) < 0.6
        return (
            inputs,
            AttentionMask(mask=mask, query_start=past),
            mask[:, 0].expand(samples, -1, -1),
        )
    sees = torch.ones(samples, queries, length, dtype=torch.bool)
    for sample in range(samples):
        for i in range(queries):
            for j in range(length):
                late = "full" not in kind and j > past + i
                padding = kind not in ("causal", "full") and not real[sample, j]
                # Two sequences in a row, which meet somewhere among the queries.
                border = past + queries // 2 + sample % 2
                apart = kind == "packed mask" and (j < border) != (past + i < border)
                sees[sample, i, j] = not late and not padding and not apart
    if kind in ("padded mask", "packed mask"):
        return inputs, AttentionMask(query_start=past, mask=sees[:, None]), sees
    keys = real if kind in ("padded", "holes", "padded full") else None
    return inputs, AttentionMask(keys=keys, causal="full" not in kind, query_start=past), sees


def as_mask(keys, past, queries):
    """The same causal, padded visibility as a 4-D mask."""
    causal = torch.ones(queries, keys.shape[1], dtype=torch.bool).tril(past)
    return AttentionMask(query_start=past, mask=(keys[:, None] & causal)[:, None])


def language_numbers(case, visible):
    """r_ij of every row, place by place."""
    samples, queries, past = case["samples"], case["queries"], case["past"]
    length = past + queries + case["unfilled"]
    heads = case["kv_heads"] * case["share"]
    numbers = torch.zeros(len(case["draws"]), samples, heads, queries, length)
    for sample in range(samples):
        place = torch.tensor([position(visible, sample, key, past) for key in range(length)])
        numbers[:, sample] = uniform(
            case["seed"],
            case["draws"],
            case["layer"],
            heads,
            place[past : past + queries],
            place,
        )
    return numbers.flatten(0, 1)


def position(visible, sample, key, past):
    """How many keys come before this one, counted by whoever sees it."""
    if visible.mask is None:
        keys = [True] * (key + 1) if visible.keys is None else visible.keys[sample].tolist()
        return sum(keys[: key + 1]) - 1
    sees = visible.mask[sample % len(visible.mask), 0].tolist()
    seers = [row for row in sees if row[key]] or [sees[min(max(key - past, 0), len(sees) - 1)]]
    return sum(seers[0][: key + 1]) - 1


def single(inputs):
    return [part.float() for part in inputs]
