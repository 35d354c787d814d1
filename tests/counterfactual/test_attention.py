"""Closed forms equal the dense definition, whatever the mask, the layout and the cache.

`expected_output` is the definition: the table of methods on whole maps, in float64. Letters as in
causalmm/counterfactual/attention.py. Where a row is nearly uniform, `reverse_and_normalize` and
`reversed` divide rounding errors by almost 0 in any formula; comparisons that can meet such rows
use float64 inputs.
"""

import math
from functools import partial
from unittest import mock

import dense_methods
import pytest
import torch
from dense_methods import FORMULAS, RELEASED
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from causalmm.counterfactual import attention_call, formulas, random_weights, released
from causalmm.counterfactual.attention import edited_map, language_attention, vision_attention
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.backends import amx
from causalmm.counterfactual.methods import (
    LANGUAGE_METHODS,
    METHODS,
    NORMALIZATIONS,
    find,
)
from causalmm.counterfactual.softmax_stats import one_query_attention

CLOSED_FORMS = ("uniform", "reverse", "reverse_and_normalize")
MASKS = (
    "causal", "padded", "holes", "mask", "shared mask", "padded mask", "packed mask", "full",
    "padded full",
)  # fmt: skip
# Random weights need one position for each key, which arbitrary masks do not give.
FORMULAS_AND_MASKS = [
    (method, normalization, masks)
    for method, normalization in FORMULAS["language"]
    for masks in MASKS
    if masks not in ("mask", "shared mask") or not find("language", method).visible.random_weights
]
VALUES = ("normal", "large", "ties", "constant", "tiny")


# Each combination of names gets its own share of examples: sampled, some would hardly be met.
EXAMPLES = settings(max_examples=20, deadline=None, derandomize=True)
DRAWS = st.sampled_from([(0,), (2,), (0, 1), (5, 3, 4)])
SEEDS = st.integers(-(2**70), 2**70)
BLOCK_ENTRIES = st.sampled_from([1, 40, 2**22])


def test_every_configurable_method_has_a_formula():
    for method in METHODS:
        for normalization in method.normalizations:
            assert callable(getattr(formulas, method.formula(normalization).compute))
        if method.released is not None:
            assert callable(getattr(released, method.released_map))


@pytest.mark.parametrize(("method", "normalization", "masks"), FORMULAS_AND_MASKS)
@EXAMPLES
@given(
    values=st.sampled_from(VALUES),
    samples=st.integers(1, 3),
    draws=DRAWS,
    shared_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    queries=st.integers(1, 5),
    past=st.integers(0, 4),
    unfilled=st.integers(0, 2),
    size=st.integers(1, 4),
    seed=SEEDS,
    layer=st.integers(0, 40),
    block_entries=BLOCK_ENTRIES,
    data=st.integers(0, 2**31),
)
def test_language_equals_the_definition(
    method, masks, normalization, draws, seed, layer, block_entries, data, **shapes
):
    case = language_case(masks=masks, draws=draws, seed=seed, layer=layer, **shapes)
    inputs, visible, sees = language_inputs(case, data)
    result = in_blocks(
        block_entries,
        language_attention,
        method,
        *inputs,
        scale=0.7,
        visible=visible,
        normalization=normalization,
        seed=seed,
        draws=draws,
        layer=layer,
    )
    luck = language_luck(case, visible)
    sees = sees.repeat(len(draws), 1, 1)
    expected = expected_output(
        "language", method, normalization, inputs, 0.7, sees, luck, start=case["past"]
    )
    assert_close(result, expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(("method", "normalization"), FORMULAS["vision"])
@EXAMPLES
@given(
    values=st.sampled_from(VALUES),
    images=st.integers(1, 3),
    draws=DRAWS,
    shared_heads=st.integers(1, 2),
    group=st.integers(1, 2),
    patches=st.integers(1, 6),
    seed=SEEDS,
    block_entries=BLOCK_ENTRIES,
    data=st.integers(0, 2**31),
)
def test_vision_equals_the_definition(
    method,
    normalization,
    values,
    images,
    draws,
    shared_heads,
    group,
    patches,
    seed,
    block_entries,
    data,
):
    heads, rows = shared_heads * group, len(draws) * images
    inputs = tensors(values, data, rows, heads, shared_heads, patches, patches, 3)
    result = in_blocks(
        block_entries,
        vision_attention,
        method,
        *inputs,
        scale=0.7,
        normalization=normalization,
        seed=seed,
        draws=draws,
        layer=3,
    )
    place = torch.arange(patches)
    luck = random_weights.uniform(seed, draws, 3, heads, place, place).repeat_interleave(
        images, dim=0
    )
    orders = [
        [random_weights.permutation(seed, s, 3, h, patches) for h in range(heads)] for s in draws
    ]
    orders = torch.stack([torch.stack(order) for order in orders]).repeat_interleave(images, dim=0)
    sees = torch.ones(rows, patches, patches, dtype=torch.bool)
    expected = expected_output("vision", method, normalization, inputs, 0.7, sees, luck, orders)
    assert_close(result, expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(("method", "normalization", "masks"), FORMULAS_AND_MASKS)
def test_language_equals_the_definition_in_float32(method, masks, normalization):
    case = language_case(masks=masks)
    inputs, visible, sees = language_inputs(case, 0)
    result = language_attention(
        method, *single(inputs), scale=0.7, visible=visible, normalization=normalization
    )
    luck = language_luck(case, visible)
    expected = expected_output(
        "language", method, normalization, inputs, 0.7, sees, luck, start=case["past"]
    )
    assert result.dtype == torch.float32
    assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("method", "normalization"), FORMULAS["vision"])
def test_vision_in_float32_equals_float64(method, normalization):
    inputs = tensors("normal", 0, 2, 3, 3, 50, 50, 8)
    result = vision_attention(method, *single(inputs), scale=0.3, normalization=normalization)
    exact = vision_attention(method, *inputs, scale=0.3, normalization=normalization)
    assert_close(result.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", LANGUAGE_METHODS)
def test_left_padding_changes_nothing(method):
    lengths, longest = (3, 7, 5), 7
    query, key, value = tensors("normal", 0, 2 * 3, 4, 2, longest, longest, 3)
    draws, settings_ = (0, 1), {"scale": 0.7, "seed": 9, "layer": 2}
    keys = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    batch = language_attention(
        method, query, key, value, visible=AttentionMask(keys=keys), draws=draws, **settings_
    )
    for row in range(6):
        start, draw = longest - lengths[row % 3], draws[row // 3]
        own = [part[row : row + 1, :, start:] for part in (query, key, value)]
        alone = language_attention(
            method, *own, visible=AttentionMask(), draws=(draw,), **settings_
        )
        assert_close(batch[row : row + 1, :, start:], alone)
        assert batch[row, :, :start].eq(0).all()  # padding sees nothing


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("method", LANGUAGE_METHODS)
def test_prefill_equals_step_by_step(method, padded):
    length, draws = 9, (0, 1)
    query, key, value = tensors("normal", 1, 4, 4, 2, length, length, 3)
    keys = torch.arange(length) >= torch.tensor([[0], [4]]) if padded else None
    settings_ = {"scale": 0.7, "seed": 9, "draws": draws, "layer": 2}
    whole = language_attention(
        method, query, key, value, visible=AttentionMask(keys=keys), **settings_
    )
    for chunk in (1, 2, 4):
        for start in range(0, length, chunk):
            stop = min(start + chunk, length)
            part = language_attention(
                method,
                query[:, :, start:stop],
                key[:, :, :stop],
                value[:, :, :stop],
                visible=AttentionMask(
                    keys=None if keys is None else keys[:, :stop], query_start=start
                ),
                **settings_,
            )
            assert_close(part, whole[:, :, start:stop])


@pytest.mark.parametrize("masks", ["causal", "padded", "padded mask", "padded full"])
@pytest.mark.parametrize(("method", "normalization"), FORMULAS["language"])
def test_a_block_of_one_query_equals_one_of_all(method, masks, normalization):
    case = language_case(masks=masks)
    inputs, visible, _ = language_inputs(case, 0)
    settings_ = {"scale": 0.7, "visible": visible, "normalization": normalization}
    whole = language_attention(method, *inputs, **settings_)
    assert_close(in_blocks(1, language_attention, method, *inputs, **settings_), whole)


@pytest.mark.parametrize(("method", "normalization"), FORMULAS["language"])
def test_hidden_keys_have_no_weight(method, normalization):
    query, key, value = tensors("normal", 2, 2, 4, 2, 5, 7, 3)
    settings_ = {"scale": 0.7, "normalization": normalization}
    padding = torch.arange(7) >= torch.tensor([[0], [3]])
    for visible in (AttentionMask(keys=padding, query_start=2), as_mask(padding, 2, 5)):
        before = language_attention(method, query, key, value, visible=visible, **settings_)
        # Query 0 sees keys 0-2 of sample 0 and none of sample 1; query 2 sees up to key 4.
        changed = value.clone()
        changed[:, :, 5:] += 1e6
        changed[1, :, :3] += 1e6
        after = language_attention(method, query, key, changed, visible=visible, **settings_)
        assert torch.equal(after[:, :, :3], before[:, :, :3])
        changed_key = key.clone()
        changed_key[:, :, 5:] += 10
        changed_key[1, :, :3] -= 10
        after = language_attention(method, query, changed_key, value, visible=visible, **settings_)
        assert_close(after[:, :, :3], before[:, :, :3])
        assert after[1, :, 0].eq(0).all()


@pytest.mark.parametrize("method", ["uniform", "reverse_and_normalize", "random"])
def test_weights_that_should_sum_to_1_do(method):
    case = language_case(masks="padded")
    (query, key, value), visible, sees = language_inputs(case, 0)
    ones = torch.ones_like(value)
    result = language_attention(method, query, key, ones, scale=0.7, visible=visible)
    expected = sees.any(dim=-1)[:, None, :, None].double().expand_as(result)
    assert_close(result, expected)


@pytest.mark.parametrize("method", ["reverse_and_normalize", "uniform"])
def test_a_uniform_row_stays_uniform(method):
    query, key, value = tensors("constant", 0, 1, 2, 2, 6, 6, 3)
    result = language_attention(method, query, key, value, scale=1.0, visible=AttentionMask())
    mean = value.cumsum(dim=2) / torch.arange(1, 7)[:, None]
    assert_close(result, mean)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tower", ["language", "vision"])
def test_finite_inputs_give_finite_outputs(tower, dtype, normalization):
    largest = torch.finfo(dtype).max
    keys = torch.arange(40) >= torch.tensor([[0], [5], [40]])  # the last sample is all padding
    for size in (0.0, 1e-30, 1.0, 300.0, largest):
        inputs = [
            (part.sign() * size if size == largest else part * size).to(dtype)
            for part in tensors("normal", 0, 3, 4, 4, 40, 40, 8)
        ]
        more = {"normalization": normalization}
        run = {"language": language_attention, "vision": vision_attention}[tower]
        if tower == "language":
            more["visible"] = AttentionMask(keys=keys)
        for method in [name for name, each in FORMULAS[tower] if each == normalization]:
            result = run(method, *inputs, scale=8**-0.5, **more)
            assert result.dtype == dtype
            assert result.shape == inputs[0].shape
            assert result.isfinite().all(), (method, size)


@pytest.mark.parametrize(("method", "normalization"), FORMULAS["vision"])
def test_images_and_draws_do_not_mix(method, normalization):
    inputs = tensors("normal", 3, 2 * 3, 2, 2, 6, 6, 3)
    settings_ = {"scale": 0.7, "normalization": normalization, "seed": 4, "layer": 1}
    batch = vision_attention(method, *inputs, draws=(0, 7), **settings_)
    for row in range(6):
        own = [part[row : row + 1] for part in inputs]
        alone = vision_attention(method, *own, draws=((0, 7)[row // 3],), **settings_)
        assert_close(batch[row : row + 1], alone)


@pytest.mark.parametrize(
    "method", [each.name for each in METHODS if each.tower == "vision" and each.stochastic]
)
@pytest.mark.parametrize("change", [{"seed": 1}, {"draws": (1,)}, {"layer": 1}])
def test_chance_depends_on_seed_draw_and_layer(method, change):
    inputs = tensors("normal", 0, 1, 2, 2, 6, 6, 3)
    first = vision_attention(method, *inputs, scale=0.7)
    assert torch.equal(first, vision_attention(method, *inputs, scale=0.7))
    assert not torch.allclose(first, vision_attention(method, *inputs, scale=0.7, **change))


def test_random_weights_differ_between_query_heads_that_share_keys():
    query, key, value = tensors("normal", 0, 1, 4, 1, 6, 6, 3)
    result = language_attention("random", query, key, value, scale=0.7, visible=AttentionMask())
    assert len({tuple(head.flatten().tolist()) for head in result[0, :, 1:]}) == 4


@pytest.mark.parametrize("masks", MASKS)
@EXAMPLES
@given(
    samples=st.integers(1, 3),
    queries=st.integers(1, 5),
    past=st.integers(0, 4),
    unfilled=st.integers(0, 2),
    data=st.integers(0, 2**31),
)
def test_what_is_visible_among_some_keys_is_that_part_of_the_map(masks, data, **shapes):
    _, visible, sees = language_inputs(language_case(masks=masks, **shapes), data)
    queries, keys = sees.shape[1:]
    assert sees.all() or not visible.is_full(keys)
    for start in range(keys):
        for stop in range(start + 1, keys + 1):
            some = visible.slice_keys(range(start, stop))
            part = sees[:, :, start:stop]
            assert (
                some.to_dense(queries, stop - start).expand(len(sees), 1, -1, -1)[:, 0].equal(part)
            )
            assert part.all() or not some.is_full(stop - start)
            for first in range(queries):
                # The reach loses no key that is seen.
                reach = some.key_limit(range(first, first + 1), stop - start)
                assert not part[:, first, reach:].any()


@pytest.mark.parametrize("method", ["reverse", "reverse_and_normalize", "reversed"])
def test_many_blocks_equal_the_whole_map(method):
    heads, shared, length, size = 4, 2, 2 * attention_call.LEAST_KEYS + 300, 8
    queries = length if method == "reversed" else 700
    query, key, value = tensors("normal", 1, 1, heads, shared, queries, length, size)
    assert queries * length > 3 * attention_call.BLOCK_ENTRIES
    every_key, every_value = (part.repeat_interleave(heads // shared, 1) for part in (key, value))
    scores = 0.5 * query @ every_key.mT
    if method == "reversed":
        edit = released.vision_reversed
        result = vision_attention(method, query, key, value, scale=0.5, normalization="released")
    else:
        edit = getattr(released, f"language_{method}")
        past = length - queries
        scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu(past + 1), -torch.inf)
        visible = AttentionMask(query_start=past)
        result = language_attention(method, query, key, value, scale=0.5, visible=visible)
    assert_close(result, edit(scores.softmax(dim=-1)) @ every_value)


@pytest.mark.parametrize("masks", MASKS)
@EXAMPLES
@given(
    values=st.sampled_from(VALUES),
    samples=st.integers(1, 3),
    groups=st.integers(1, 3),
    shared_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    past=st.integers(0, 4),
    unfilled=st.integers(0, 2),
    data=st.integers(0, 2**31),
)
def test_a_step_of_all_rows_equals_sdpa(masks, groups, data, **shapes):
    case = language_case(masks=masks, draws=range(groups), queries=1, **shapes)
    (query, key, value), visible, sees = language_inputs(case, data)
    rows = visible.rows(len(query))
    result = one_query_attention(query, key, value, scale=0.7, visible=rows)
    sees = sees.repeat(groups, 1, 1).unsqueeze(1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=sees, scale=0.7, enable_gqa=True
    )
    # SDPA, too, gives 0 where nothing is seen.
    assert_close(result, expected)
    low = one_query_attention(
        *(part.bfloat16() for part in (query, key, value)), scale=0.7, visible=rows
    )
    assert low.dtype == torch.bfloat16
    assert low.isfinite().all()


# On CPUs with tiles of bfloat16, where the fused kernel serves: against float32, held above.


@pytest.fixture
def with_tiles(monkeypatch):
    """As on such a CPU; the kernel is there on others, too."""
    served = []
    softmax_stats = amx.softmax_stats

    def watched(call):
        served.append(call)
        return softmax_stats(call)

    monkeypatch.setattr(amx, "available", lambda: True)
    monkeypatch.setattr(amx, "softmax_stats", watched)
    return served


@pytest.mark.parametrize("method", ["reverse", "reverse_and_normalize"])
@pytest.mark.parametrize(
    ("heads", "shared_heads", "queries", "past"),
    [
        (2, 2, 200, 0),
        (6, 2, 150, 0),
        (4, 1, 70, 30),
        (1, 1, 16, 0),
        (1, 1, 513, 100),
        (4, 2, 1, 90),
    ],
)
@pytest.mark.parametrize("size", [0.0, 0.3, 1.0, 30.0])
def test_tiles_round_no_more_than_attention_does(
    with_tiles, method, heads, shared_heads, queries, past, size
):
    inputs = tensors("normal", 3, 2, heads, shared_heads, queries, queries + past, 16)
    query, key, value = (part.bfloat16() for part in inputs)
    query = query * size  # from flat rows to one key that weighs nearly 1
    settings_ = {"scale": 0.25, "visible": AttentionMask(query_start=past)}
    result = language_attention(method, query, key, value, **settings_)
    assert with_tiles
    precise = [part.float() for part in (query, key, value)]
    expected = language_attention(method, *precise, **settings_)
    largest = 2 * value.abs().max()  # an output that is subtracted is no larger
    error = (result.float() - expected).abs()
    assert (error <= 2**-8 * (expected.abs() + largest)).all()


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
def test_tiles_of_vision_round_no_more_than_attention_does(with_tiles, size):
    query, key, value = (part.bfloat16() for part in tensors("normal", 3, 2, 3, 3, 90, 90, 16))
    query = query * size
    result = vision_attention("reversed", query, key, value, scale=0.25)
    assert with_tiles
    expected = vision_attention(
        "reversed", *(part.float() for part in (query, key, value)), scale=0.25
    )
    error = (result.float() - expected).abs()
    assert (error <= 2**-8 * (expected.abs() + value.abs().max())).all()


@pytest.mark.parametrize(("queries", "past"), [(90, 0), (40, 50), (1, 89)])
def test_tiles_round_random_weights_no_more_than_attention_does(with_tiles, queries, past):
    inputs = tensors("normal", 3, 2, 6, 2, queries, queries + past, 16)
    inputs = [part.bfloat16() for part in inputs]
    precise = [part.float() for part in inputs]
    visible = AttentionMask(query_start=past)
    language = partial(language_attention, visible=visible)
    for attend in (language, partial(language, normalization="released"), vision_attention):
        result = attend("random", *inputs, scale=0.25)
        expected = attend("random", *precise, scale=0.25)
        error = (result.float() - expected).abs()
        assert (error <= 2**-8 * (expected.abs() + inputs[2].abs().max())).all()


@pytest.mark.parametrize(
    ("visible", "queries"),
    [
        (AttentionMask(keys=torch.ones(2, 40, dtype=torch.bool)), 40),  # padding
        (AttentionMask(mask=torch.ones(2, 1, 40, 40, dtype=torch.bool)), 40),
        (AttentionMask(query_start=24), 16),  # most queries would stand there for nothing
        (AttentionMask(query_start=torch.tensor(0)), 40),
    ],
)
def test_tiles_leave_to_scores_what_the_kernel_cannot_say(with_tiles, visible, queries):
    inputs = [part.bfloat16() for part in tensors("normal", 0, 2, 2, 2, queries, 40, 8)]
    language_attention("reverse", *inputs, scale=0.3, visible=visible)
    assert not with_tiles


# Against the released formulas: the whole map, on the same chance.


@pytest.mark.parametrize("method", RELEASED["language"])
def test_released_language_equals_reference(method):
    query, key, value = tensors("normal", 5, 2, 3, 3, 6, 8, 4)
    visible = AttentionMask(query_start=2)
    result = language_attention(
        method, query, key, value, scale=0.5, visible=visible, normalization="released", seed=3
    )
    causal = torch.ones(6, 8, dtype=torch.bool).tril(2)
    weights = (query @ key.mT * 0.5).masked_fill(~causal, -math.inf).softmax(dim=-1)
    formula = getattr(released, f"language_{method}")
    if method == "random":
        luck = random_weights.uniform(3, (0,), 0, 3, torch.arange(2, 8), torch.arange(8))
        edited = formula(weights, luck.double())
    else:
        edited = formula(weights)
    assert_close(result, edited @ value)


@pytest.mark.parametrize("method", RELEASED["vision"])
def test_released_vision_equals_reference(method):
    query, key, value = tensors("normal", 6, 2, 3, 3, 9, 9, 4)
    weights = (query @ key.mT * 0.5).softmax(dim=-1)
    edited = reference_vision_map(method, weights)
    settings_ = {"normalization": "released", "seed": 3, "layer": 2}
    result = vision_attention(method, query, key, value, scale=0.5, **settings_)
    assert_close(result, edited @ value)
    assert_close(edited_map(method, weights, **settings_), edited)


@pytest.mark.parametrize(("method", "normalization"), FORMULAS["vision"])
def test_edited_map_is_what_vision_attention_applies(method, normalization):
    query, key, value = tensors("large", 7, 4, 3, 3, 9, 9, 4)  # large scores: weights that are 0
    weights = (query @ key.mT).softmax(dim=-1)
    settings_ = {"normalization": normalization, "seed": 3, "draws": (0, 1), "layer": 2}
    edited = edited_map(method, weights, **settings_)
    assert edited.shape == weights.shape
    assert edited.isfinite().all()
    output = vision_attention(method, query, key, value, scale=1.0, **settings_)
    assert_close(edited @ value, output)
    in_float32 = edited_map(method, weights.float(), **settings_)
    assert_close(in_float32.double(), edited, atol=1e-5, rtol=1e-5)


def test_edited_map_of_a_map_with_zeros():
    one_hot = torch.eye(4).expand(1, 2, 4, 4)
    expected = (1 - one_hot) / 3
    assert_close(edited_map("reversed", one_hot), expected)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("tower", ["language", "vision"])
def test_random_weights_of_many_blocks_leave_each_other_alone(tower, normalization):
    """Blocks are made in the same memory, unless their weights must last for gradients."""
    length, heads, shared = 23, 6, 3
    inputs = single(tensors("normal", 3, 2, heads, shared, length, length, 4))
    attend = partial(
        language_attention if tower == "language" else vision_attention,
        "random",
        **{"visible": AttentionMask()} if tower == "language" else {},
        scale=0.5,
        normalization=normalization,
    )
    query, key, value = (part.requires_grad_() for part in inputs)
    doubled = [part.detach().double().requires_grad_() for part in inputs]
    whole = attend(*doubled)
    kept = in_blocks(2 * 2 * 5 * length, attend, query, key, value)
    with torch.no_grad():
        assert_close(in_blocks(2 * 2 * 5 * length, attend, query, key, value), kept)
    assert_close(kept.double(), whole, atol=1e-5, rtol=1e-5)
    (grown,) = torch.autograd.grad(kept.square().sum(), value)
    (expected,) = torch.autograd.grad(whole.square().sum(), doubled[2])
    assert_close(grown.double(), expected, atol=1e-4, rtol=1e-4)


# Cost.


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, torch.Tensor):
                self.entries = max(self.entries, part.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize(
    ("tower", "method"),
    [("language", method) for method in CLOSED_FORMS]
    + [("vision", "uniform"), ("vision", "reversed")],
)
def test_closed_forms_never_hold_the_map(tower, method):
    length, heads = 2304, 2
    query, key, value = single(tensors("normal", 0, 1, heads, 1, length, length, 4))
    with LargestTensor() as largest, torch.no_grad():
        if tower == "language":
            # The padding mask takes the general path; a 4-D mask would itself be a map.
            visible = AttentionMask(keys=torch.arange(length)[None] >= 3)
            language_attention(method, query, key, value, scale=0.5, visible=visible)
        else:
            vision_attention(method, query, key, value, scale=0.5)
    assert largest.entries <= attention_call.BLOCK_ENTRIES < length * length


def test_uniform_needs_no_scores_at_all():
    query, key, value = single(tensors("normal", 0, 1, 2, 2, 512, 512, 4))
    with LargestTensor() as largest:
        language_attention("uniform", query, key, value, scale=0.5, visible=AttentionMask())
    assert largest.entries <= query.numel()


@pytest.mark.parametrize("method", LANGUAGE_METHODS)
def test_a_decoding_step_costs_no_more_than_its_keys(method):
    length, heads, size = 5000, 2, 4
    query, key, value = single(tensors("normal", 0, 1, heads, heads, 1, length, size))
    with LargestTensor() as largest:
        visible = AttentionMask(query_start=length - 1)
        language_attention(method, query, key, value, scale=0.5, visible=visible)
    assert largest.entries <= heads * length * size


# Mistakes.


def test_unknown_names_are_refused():
    inputs = tensors("normal", 0, 1, 1, 1, 2, 2, 2)
    with pytest.raises(
        ValueError, match="'shuffle'.*uniform, reverse, reverse_and_normalize, rand"
    ):
        language_attention("shuffle", *inputs, scale=1.0, visible=AttentionMask())
    with pytest.raises(ValueError, match="'reverse'.*uniform, reversed, random, shuffle"):
        vision_attention("reverse", *inputs, scale=1.0)
    with pytest.raises(ValueError, match="'paper'.*visible, released"):
        vision_attention("uniform", *inputs, scale=1.0, normalization="paper")


@pytest.mark.parametrize(
    ("visible", "draws"),
    [
        (AttentionMask(), (0, 1)),
        (AttentionMask(), ()),
        (AttentionMask(keys=torch.ones(2, 3, dtype=torch.bool)), (0,)),
        (AttentionMask(keys=torch.ones(3, 4, dtype=torch.bool)), (0,)),
        (AttentionMask(mask=torch.ones(3, 1, 3, 4, dtype=torch.bool)), (0,)),
        (AttentionMask(mask=torch.ones(2, 1, 3, 3, dtype=torch.bool)), (0, 1, 2)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(visible, draws):
    inputs = tensors("normal", 0, 3, 2, 2, 3, 3, 2)
    with pytest.raises(ValueError, match="expected"):
        language_attention("uniform", *inputs, scale=1.0, visible=visible, draws=draws)


def test_autocast_does_not_lower_the_precision():
    inputs = single(tensors("normal", 0, 1, 2, 2, 6, 6, 3))
    exact = language_attention("reverse", *inputs, scale=0.7, visible=AttentionMask())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = language_attention("reverse", *inputs, scale=0.7, visible=AttentionMask())
    assert torch.equal(result, exact)


# The definition, written for reading: one row at a time.


def expected_output(tower, method, normalization, inputs, scale, sees, luck, orders=None, start=0):
    """[B, H, Q, D] on whole maps. `sees` [B, Q, K], `luck` [B, H, Q, K], `orders` [B, H, N * N];
    `start`: which key is the first query's own."""
    query, key, value = (part.double() for part in inputs)
    share = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(share, dim=1) for part in (key, value))
    seen = sees[:, None].expand(-1, query.shape[1], -1, -1)
    scores = (scale * query @ key.mT).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)  # a row that sees nothing
    given = dense_methods.Map(weights, seen, lambda: luck.double(), lambda: orders, start)
    return dense_methods.edited(tower, method, normalization, given) @ value


# Inputs.


def tensors(values, data, rows, heads, shared_heads, queries, keys, size):
    """Query, key and value in float64, one of the VALUES kinds."""
    chance = torch.Generator().manual_seed(data)
    query, key, value = (
        torch.randn(shape, generator=chance, dtype=torch.float64)
        for shape in [
            (rows, heads, queries, size),
            (rows, shared_heads, keys, size),
            (rows, shared_heads, keys, size),
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
        "shared_heads": 2,
        "group": 2,
        "queries": 5,
        "past": 2,
        "unfilled": 0,  # keys after the last query, as a static cache has
        "size": 4,
        "seed": 0,
        "layer": 0,
    }
    return case | changes


def language_inputs(case, data):
    """(query, key, value), the AttentionMask, and the mask itself [n, Q, K]."""
    samples, queries, past = case["samples"], case["queries"], case["past"]
    length, kind = past + queries + case["unfilled"], case["masks"]
    heads = case["shared_heads"] * case["group"]
    rows = samples * len(case["draws"])
    inputs = tensors(
        case["values"], data, rows, heads, case["shared_heads"], queries, length, case["size"]
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


def language_luck(case, visible):
    """r_ij of every row, place by place."""
    samples, queries, past = case["samples"], case["queries"], case["past"]
    length = past + queries + case["unfilled"]
    heads = case["shared_heads"] * case["group"]
    luck = torch.zeros(len(case["draws"]), samples, heads, queries, length)
    for sample in range(samples):
        place = torch.tensor([position(visible, sample, key, past) for key in range(length)])
        luck[:, sample] = random_weights.uniform(
            case["seed"],
            case["draws"],
            case["layer"],
            heads,
            place[past : past + queries],
            place,
        )
    return luck.flatten(0, 1)


def position(visible, sample, key, past):
    """How many keys come before this one, counted by whoever sees it."""
    if visible.mask is None:
        keys = [True] * (key + 1) if visible.keys is None else visible.keys[sample].tolist()
        return sum(keys[: key + 1]) - 1
    sees = visible.mask[sample % len(visible.mask), 0].tolist()
    seers = [row for row in sees if row[key]] or [sees[min(max(key - past, 0), len(sees) - 1)]]
    return sum(seers[0][: key + 1]) - 1


def test_random_weights_refuse_a_key_of_several_positions():
    query, key, value = tensors("normal", 0, 1, 2, 1, 6, 6, 3)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    near = causal.triu(-2)
    settings_ = {"scale": 1.0, "visible": AttentionMask(mask=near[None, None])}
    language_attention("uniform", query, key, value, **settings_)
    with pytest.raises(ValueError, match="a sliding window"):
        language_attention("random", query, key, value, **settings_)
    packed = causal.clone()
    packed[3:, :3] = False
    settings_["visible"] = AttentionMask(mask=packed[None, None])
    assert language_attention("random", query, key, value, **settings_).isfinite().all()


def reference_vision_map(method, weights, seed=3, layer=2):
    heads, patches = weights.shape[1:3]
    if method == "random":
        place = torch.arange(patches)
        luck = random_weights.uniform(seed, (0,), layer, heads, place, place).double()
        return released.vision_random(weights, luck)
    if method == "shuffle":
        orders = [
            random_weights.permutation(seed, 0, layer, head, patches) for head in range(heads)
        ]
        return released.vision_shuffle(weights, torch.stack(orders))
    return getattr(released, f"vision_{method}")(weights)


def single(inputs):
    return [part.float() for part in inputs]


def in_blocks(entries, function, *args, **kwargs):
    with mock.patch.multiple(attention_call, BLOCK_ENTRIES=entries, LEAST_QUERIES=1, LEAST_KEYS=2):
        return function(*args, **kwargs)
