"""Closed forms equal the dense definition, whatever the mask, the layout and the cache.

The definition is that of tests/attention_cases.py. Letters as in
causalmm/counterfactual/attention.py. Where a row is nearly uniform, `reverse_and_normalize` and
`reversed` divide rounding errors by almost 0 in any formula; comparisons that can meet such rows
use float64 inputs.
"""

import math
from functools import partial
from unittest import mock

import pytest
import torch
from attention_cases import (
    FORMULAS_AND_MASKS,
    MASKS,
    as_mask,
    expected_output,
    language_case,
    language_inputs,
    language_numbers,
    single,
    tensors,
    vision_randomness,
    with_image,
)  # fmt: skip
from dense_methods import FORMULAS, RELEASED, UNRELEASED, formula, variants
from dense_methods import settings as variant_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from random_numbers import uniform
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from causalmm.counterfactual import blocks, formulas, released
from causalmm.counterfactual.attention import (
    edited_map,
    image_mass,
    language_attention,
    vision_attention,
)
from causalmm.counterfactual.attention_mask import AttentionMask, ImageTokens
from causalmm.counterfactual.methods import (
    LANGUAGE_METHODS,
    METHODS,
    NORMALIZATIONS,
)

CLOSED_FORMS = ("uniform", "reverse", "reverse_and_normalize")
VALUES = ("normal", "large", "ties", "constant", "tiny")


# Each combination of names gets its own share of examples: sampled, some would hardly be met.
EXAMPLES = settings(max_examples=20, deadline=None, derandomize=True)
DRAWS = st.sampled_from([(0,), (2,), (0, 1), (5, 3, 4)])
SEEDS = st.integers(-(2**70), 2**70)
BLOCK_ENTRIES = st.sampled_from([1, 40, 2**22])


def test_every_configurable_method_has_a_formula():
    for method in METHODS:
        for variant in variants(method):
            assert callable(getattr(formulas, formula(method.tower, method.name, variant).compute))
        if method.released is not None:
            assert callable(getattr(released, method.released_map))


@pytest.mark.parametrize(("method", "variant", "masks"), FORMULAS_AND_MASKS)
@EXAMPLES
@given(
    values=st.sampled_from(VALUES),
    samples=st.integers(1, 3),
    draws=DRAWS,
    kv_heads=st.integers(1, 2),
    share=st.integers(1, 3),
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
    method, masks, variant, draws, seed, layer, block_entries, data, **shapes
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
        **variant_settings(variant),
        seed=seed,
        draws=draws,
        layer=layer,
    )
    numbers = language_numbers(case, visible)
    sees = sees.repeat(len(draws), 1, 1)
    expected = expected_output(
        "language", method, variant, inputs, 0.7, sees, numbers, start=case["past"],
        image=visible.image,
    )  # fmt: skip
    assert_close(result, expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(("method", "normalization"), FORMULAS["vision"])
@EXAMPLES
@given(
    values=st.sampled_from(VALUES),
    images=st.integers(1, 3),
    draws=DRAWS,
    kv_heads=st.integers(1, 2),
    share=st.integers(1, 2),
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
    kv_heads,
    share,
    patches,
    seed,
    block_entries,
    data,
):
    heads, rows = kv_heads * share, len(draws) * images
    inputs = tensors(values, data, rows, heads, kv_heads, patches, patches, 3)
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
    numbers, orders = vision_randomness(seed, draws, 3, images, heads, patches)
    sees = torch.ones(rows, patches, patches, dtype=torch.bool)
    expected = expected_output("vision", method, normalization, inputs, 0.7, sees, numbers, orders)
    assert_close(result, expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(("method", "variant"), UNRELEASED)
def test_left_padding_changes_nothing(method, variant):
    lengths, longest = (3, 7, 5), 7
    query, key, value = tensors("normal", 0, 2 * 3, 4, 2, longest, longest, 3)
    draws, settings_ = (0, 1), {"scale": 0.7, "seed": 9, "layer": 2, **variant_settings(variant)}
    keys = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    image = torch.tensor([[0, 0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 1, 0, 0], [0] * 7]).bool()
    visible = with_image(AttentionMask(keys=keys), image, longest)
    batch = language_attention(method, query, key, value, visible=visible, draws=draws, **settings_)
    for row in range(6):
        start, draw = longest - lengths[row % 3], draws[row // 3]
        own = [part[row : row + 1, :, start:] for part in (query, key, value)]
        visible = with_image(AttentionMask(), image[row % 3, None, start:], longest)
        alone = language_attention(method, *own, visible=visible, draws=(draw,), **settings_)
        assert_close(batch[row : row + 1, :, start:], alone)
        assert batch[row, :, :start].eq(0).all()  # padding sees nothing


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize(("method", "variant"), UNRELEASED)
def test_prefill_equals_step_by_step(method, variant, padded):
    length, draws = 9, (0, 1)
    query, key, value = tensors("normal", 1, 4, 4, 2, length, length, 3)
    keys = torch.arange(length) >= torch.tensor([[0], [4]]) if padded else None
    settings_ = {"scale": 0.7, "seed": 9, "draws": draws, "layer": 2, **variant_settings(variant)}
    image = torch.tensor([[0, 1, 1, 0, 0, 0, 1, 0, 0], [0] * 4 + [1, 1, 1, 0, 0]]).bool()
    visible = with_image(AttentionMask(keys=keys), image, length)
    whole = language_attention(method, query, key, value, visible=visible, **settings_)
    for chunk in (1, 2, 4):
        for start in range(0, length, chunk):
            stop = min(start + chunk, length)
            part = language_attention(
                method,
                query[:, :, start:stop],
                key[:, :, :stop],
                value[:, :, :stop],
                visible=with_image(
                    AttentionMask(keys=None if keys is None else keys[:, :stop], query_start=start),
                    image[:, :stop],
                    stop - start,
                ),
                **settings_,
            )
            assert_close(part, whole[:, :, start:stop])


@pytest.mark.parametrize("masks", ["causal", "padded", "padded mask", "padded full"])
@pytest.mark.parametrize(("method", "variant"), FORMULAS["language"])
def test_a_block_of_one_query_equals_one_of_all(method, masks, variant):
    case = language_case(masks=masks)
    inputs, visible, _ = language_inputs(case, 0)
    settings_ = {"scale": 0.7, "visible": visible, **variant_settings(variant)}
    whole = language_attention(method, *inputs, **settings_)
    assert_close(in_blocks(1, language_attention, method, *inputs, **settings_), whole)


@pytest.mark.parametrize(("method", "variant"), FORMULAS["language"])
def test_hidden_keys_have_no_weight(method, variant):
    query, key, value = tensors("normal", 2, 2, 4, 2, 5, 7, 3)
    settings_ = {"scale": 0.7, **variant_settings(variant)}
    padding = torch.arange(7) >= torch.tensor([[0], [3]])
    image = torch.tensor([[0, 1, 0, 0, 1, 0, 1]]).bool()
    for visible in (AttentionMask(keys=padding, query_start=2), as_mask(padding, 2, 5)):
        visible = with_image(visible, image, 5)
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


@pytest.mark.parametrize(
    ("method", "variant"), [each for each in UNRELEASED if each[0] != "reverse"]
)
def test_weights_that_should_sum_to_1_do(method, variant):
    case = language_case(masks="padded")
    (query, key, value), visible, sees = language_inputs(case, 0)
    ones = torch.ones_like(value)
    result = language_attention(
        method, query, key, ones, scale=0.7, visible=visible, **variant_settings(variant)
    )
    expected = sees.any(dim=-1)[:, None, :, None].double().expand_as(result)
    assert_close(result, expected)


@pytest.mark.parametrize("method", ["reverse_and_normalize", "uniform"])
def test_a_uniform_row_stays_uniform(method):
    query, key, value = tensors("constant", 0, 1, 2, 2, 6, 6, 3)
    result = language_attention(method, query, key, value, scale=1.0, visible=AttentionMask())
    mean = value.cumsum(dim=2) / torch.arange(1, 7)[:, None]
    assert_close(result, mean)


@pytest.mark.parametrize("variant", [*NORMALIZATIONS, "image"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tower", ["language", "vision"])
def test_finite_inputs_give_finite_outputs(tower, dtype, variant):
    largest = torch.finfo(dtype).max
    keys = torch.arange(40) >= torch.tensor([[0], [5], [40]])  # the last sample is all padding
    for size in (0.0, 1e-30, 1.0, 300.0, largest):
        inputs = [
            (part.sign() * size if size == largest else part * size).to(dtype)
            for part in tensors("normal", 0, 3, 4, 4, 40, 40, 8)
        ]
        more = variant_settings(variant)
        run = {"language": language_attention, "vision": vision_attention}[tower]
        if tower == "language":
            image = (torch.arange(40) % 3 > 0)[None]
            more["visible"] = with_image(AttentionMask(keys=keys), image, 40)
        for method in [name for name, each in FORMULAS[tower] if each == variant]:
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
            some = visible.block(range(queries), range(start, stop))
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
    heads, shared, length, size = 4, 2, 2 * blocks.LEAST_KEYS + 300, 8
    queries = length if method == "reversed" else 700
    query, key, value = tensors("normal", 1, 1, heads, shared, queries, length, size)
    assert queries * length > 3 * blocks.BLOCK_ENTRIES
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
    released_formula = getattr(released, f"language_{method}")
    if method == "random":
        numbers = uniform(3, (0,), 0, 3, torch.arange(2, 8), torch.arange(8))
        edited = released_formula(weights, numbers.double())
    else:
        edited = released_formula(weights)
    assert_close(result, edited @ value)


@pytest.mark.parametrize("method", RELEASED["vision"])
def test_released_vision_equals_reference(method):
    query, key, value = tensors("normal", 6, 2, 3, 3, 9, 9, 4)
    weights = (query @ key.mT * 0.5).softmax(dim=-1)
    edited = released_vision_map(method, weights)
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
    ("tower", "method", "variant"),
    [("language", method, "visible") for method in CLOSED_FORMS]
    + [("language", method, "image") for method in (*CLOSED_FORMS, "blind")]
    + [("vision", "uniform", "visible"), ("vision", "reversed", "visible")],
)
def test_closed_forms_never_hold_the_map(tower, method, variant):
    length, heads = 2304, 2
    query, key, value = single(tensors("normal", 0, 1, heads, 1, length, length, 4))
    with LargestTensor() as largest, torch.no_grad():
        if tower == "language":
            # The padding mask takes the general path; a 4-D mask would itself be a map.
            real = torch.arange(length)[None] >= 3
            visible = with_image(AttentionMask(keys=real), real & (real.cumsum(1) < 2000), length)
            settings_ = {"scale": 0.5, "visible": visible, **variant_settings(variant)}
            language_attention(method, query, key, value, **settings_)
        else:
            vision_attention(method, query, key, value, scale=0.5)
    assert largest.entries <= blocks.BLOCK_ENTRIES < length * length


def test_uniform_needs_no_scores_at_all():
    query, key, value = single(tensors("normal", 0, 1, 2, 2, 512, 512, 4))
    with LargestTensor() as largest:
        language_attention("uniform", query, key, value, scale=0.5, visible=AttentionMask())
    assert largest.entries <= query.numel()


@pytest.mark.parametrize(("method", "variant"), UNRELEASED)
def test_a_decoding_step_costs_no_more_than_its_keys(method, variant):
    length, heads, size = 5000, 2, 4
    query, key, value = single(tensors("normal", 0, 1, heads, heads, 1, length, size))
    with LargestTensor() as largest:
        image = torch.arange(length)[None] < 600
        visible = with_image(AttentionMask(query_start=length - 1), image, 1)
        settings_ = {"scale": 0.5, "visible": visible, **variant_settings(variant)}
        language_attention(method, query, key, value, **settings_)
    assert largest.entries <= heads * length * size


# Scope "image".


@pytest.mark.parametrize("method", LANGUAGE_METHODS)
def test_without_image_keys_scope_image_is_factual(method):
    inputs, visible, sees = language_inputs(language_case(masks="padded"), 0)
    visible = with_image(visible, torch.zeros(1, sees.shape[2], dtype=torch.bool), 5)
    result = language_attention(method, *inputs, scale=0.7, visible=visible, scope="image")
    query, key, value = inputs
    key, value = (part.repeat_interleave(2, dim=1) for part in (key, value))
    weights = (0.7 * query @ key.mT).masked_fill(~sees[:, None], -math.inf).softmax(-1)
    assert_close(result, weights.nan_to_num(0.0) @ value)


@pytest.mark.parametrize("masks", ["causal", "padded", "packed mask"])
@pytest.mark.parametrize("method", LANGUAGE_METHODS)
def test_image_tokens_stay_factual_and_keep_their_share_of_the_attention(method, masks):
    case = language_case(masks=masks, queries=8, past=0)
    (query, key, value), visible, sees = language_inputs(case, 3)
    image = torch.tensor([[1, 0, 1, 1, 0, 1, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0]]).bool()
    visible = with_image(visible, image, 8)
    ones = image[:, None, :, None].repeat(1, 2, 1, 4).double()  # values: 1 at image tokens
    settings_ = {"scale": 0.7, "visible": visible, "scope": "image"}
    kept = language_attention(method, query, key, ones, **settings_)[..., 0]
    every_key = key.repeat_interleave(2, dim=1)
    weights = (0.7 * query @ every_key.mT).masked_fill(~sees[:, None], -math.inf).softmax(-1)
    weights = weights.nan_to_num(0.0)
    mass = (weights * image[:, None, None]).sum(-1)
    text = ~image[:, None].expand_as(mass)
    if method == "blind":
        assert kept[text].eq(0).all()
    elif method != "reverse":  # whose weights are not normalised
        assert_close(kept, mass)
    assert_close(image_mass(query, key, scale=0.7, visible=visible), mass * text)
    result = language_attention(method, query, key, value, **settings_)
    factual = weights @ value.repeat_interleave(2, dim=1)
    tokens = image[:, None, :, None].expand_as(result)
    assert_close(result[tokens], factual[tokens])


def pictures(kind, length):
    """Image tokens of two samples: bool [2 or 1, length]."""
    place = torch.arange(length)
    if kind == "one":
        return ((place >= 5) & (place < 581))[None]
    if kind == "none and all but the last":
        return torch.stack([place < 0, place < length - 1])
    if kind == "several":  # of other places in each sample
        first = (place % 200 > 40) & (place < 600)
        return torch.stack([first, first.roll(17)])
    return (place % 20 > 3)[None]  # more than blocks follow


@pytest.mark.parametrize("readable", [True, False], ids=["read", "not read"])
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("kind", ["one", "none and all but the last", "several", "many"])
@pytest.mark.parametrize("method", [name for name, each in FORMULAS["language"] if each == "image"])
def test_pictures_of_many_blocks_equal_the_definition(method, kind, padded, readable):
    """Blocks end where pictures do; elsewhere, and on other devices, masks say what is seen."""
    length, heads, past = 640, 2, 30
    inputs = tensors("normal", 8, 2, heads, 1, length - past, length, 4)
    keys = torch.arange(length) >= torch.tensor([[0], [9]]) if padded else None
    visible = AttentionMask(keys=keys, query_start=past)
    visible = with_image(visible, pictures(kind, length), length - past)
    with mock.patch.object(ImageTokens, "readable", readable):
        result = language_attention(method, *inputs, scale=0.7, visible=visible, scope="image")
    place = torch.arange(length)
    sees = visible.to_dense(length - past, length)[:, 0].expand(2, -1, -1)
    positions = place.expand(2, -1) if keys is None else keys.cumsum(1) - 1
    numbers = torch.cat(
        [uniform(0, (0,), 0, heads, each[past:], each) for each in positions.unbind()]
    )
    expected = expected_output(
        "language", method, "image", inputs, 0.7, sees, numbers, start=past, image=visible.image
    )
    assert_close(result, expected, atol=1e-7, rtol=1e-7)


def test_blind_is_exact_where_nearly_all_attention_is_on_the_image():
    """(o - o_I) / (1 - A) by its letters is 0/0 there."""
    key = torch.tensor([[0.0], [1.0], [0.0]]).view(1, 1, 3, 1)
    value = torch.tensor([2.0, 50.0, 6.0]).view(1, 1, 3, 1)
    query = torch.full((1, 1, 1, 1), 200.0)
    image = torch.tensor([[False, True, False]])
    visible = with_image(AttentionMask(query_start=2), image, 1)
    result = language_attention(
        "blind", query, key, value, scale=1.0, visible=visible, scope="image"
    )
    assert_close(result, torch.full_like(result, 4.0))


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
    language = partial(language_attention, query=inputs[0], key=inputs[1], value=inputs[2])
    language = partial(language, scale=1.0, visible=AttentionMask())
    with pytest.raises(ValueError, match="'text'.*all, image"):
        language("uniform", scope="text")
    with pytest.raises(ValueError, match="blind.*scope image only"):
        language("blind")
    with pytest.raises(ValueError, match="'released'.*edits all keys"):
        language("uniform", scope="image", normalization="released")
    with pytest.raises(ValueError, match="expected visible.image"):
        language("uniform", scope="image")


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


def released_vision_map(method, weights, seed=3, layer=2):
    heads, patches = weights.shape[1:3]
    numbers, orders = vision_randomness(seed, (0,), layer, 1, heads, patches)
    released_formula = getattr(released, f"vision_{method}")
    given = {"random": (numbers.double(),), "shuffle": (orders,)}.get(method, ())
    return released_formula(weights, *given)


def in_blocks(entries, function, *args, **kwargs):
    with mock.patch.multiple(blocks, BLOCK_ENTRIES=entries, LEAST_QUERIES=1, LEAST_KEYS=2):
        return function(*args, **kwargs)
