"""Every backend gives the dense definition, and the first that supports a call runs it.

flex_attention is its stand-in (tests/flex_stand_in.py); what a GPU makes of it is tested in
tests/counterfactual/test_flex.py.
"""

from dataclasses import replace
from types import SimpleNamespace

import flex_stand_in
import pytest
import torch
from attention_cases import (
    FORMULAS_AND_MASKS,
    expected_output,
    language_case,
    language_inputs,
    language_numbers,
    single,
    tensors,
    vision_randomness,
    with_image,
)  # fmt: skip
from dense_methods import FORMULAS, UNRELEASED, formula, settings
from torch.testing import assert_close

from causalmm.counterfactual import attention
from causalmm.counterfactual.attention import language_attention, vision_attention
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.backends import BACKENDS, flex, portable

NAMES = {flex: "flex", portable: "portable"}
EXACT = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(params=BACKENDS, ids=NAMES.get)
def backend(request, monkeypatch):
    """The only backend there is, in this test."""
    if request.param is flex:
        flex_stand_in.install(monkeypatch)
    monkeypatch.setattr(attention, "BACKENDS", (request.param,))
    return request.param


def skip_without(backend, tower, method, variant):
    if backend is flex and not flex.computes(formula(tower, method, variant)):
        pytest.skip("no kernel computes this formula")


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize(("method", "variant", "masks"), FORMULAS_AND_MASKS)
def test_language(backend, method, variant, masks, queries):
    skip_without(backend, "language", method, variant)
    draws = (0, 2)
    case = language_case(masks=masks, queries=queries, draws=draws, unfilled=2, seed=5, layer=1)
    inputs, visible, sees = language_inputs(case, 0)
    result = language_attention(
        method, *single(inputs), scale=0.7, visible=visible, **settings(variant),
        seed=5, draws=draws, layer=1,
    )  # fmt: skip
    expected = expected_output(
        "language", method, variant, inputs, 0.7, sees.repeat(2, 1, 1),
        language_numbers(case, visible), start=case["past"], image=visible.image,
    )  # fmt: skip
    assert result.dtype == torch.float32
    assert_close(result.double(), expected, **EXACT)


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize(("method", "variant"), FORMULAS["language"])
def test_a_static_cache_that_counts_on_the_device(backend, method, variant, queries):
    skip_without(backend, "language", method, variant)
    case = language_case(queries=queries)
    inputs, visible, sees = language_inputs(case, 0)
    counter = replace(visible, query_start=torch.tensor(case["past"]))
    result = language_attention(
        method, *single(inputs), scale=0.7, visible=counter, **settings(variant)
    )
    numbers = language_numbers(case, visible)
    expected = expected_output(
        "language", method, variant, inputs, 0.7, sees, numbers, start=case["past"],
        image=visible.image,
    )  # fmt: skip
    assert_close(result.double(), expected, **EXACT)


@pytest.mark.parametrize(("method", "normalization"), FORMULAS["vision"])
def test_vision(backend, method, normalization):
    skip_without(backend, "vision", method, normalization)
    images, heads, patches, draws = 2, 4, 10, (0, 2)
    inputs = tensors("normal", 0, images * len(draws), heads, 2, patches, patches, 8)
    result = vision_attention(
        method, *single(inputs), scale=0.3, normalization=normalization, seed=5, draws=draws,
        layer=3,
    )  # fmt: skip
    numbers, orders = vision_randomness(5, draws, 3, images, heads, patches)
    sees = torch.ones(images * len(draws), patches, patches, dtype=torch.bool)
    expected = expected_output("vision", method, normalization, inputs, 0.3, sees, numbers, orders)
    assert_close(result.double(), expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1.0, 300.0])
def test_finite_inputs_give_finite_outputs(backend, dtype, size):
    inputs = [part.to(dtype) * size for part in tensors("normal", 0, 2, 2, 2, 6, 6, 16)]
    keys = torch.arange(6) >= torch.tensor([[2], [6]])  # the last is all padding
    visible = with_image(AttentionMask(keys=keys), (torch.arange(6) % 3 > 0)[None], 6)
    for method, variant in UNRELEASED:
        result = language_attention(
            method, *inputs, scale=0.25, visible=visible, **settings(variant)
        )
        assert result.dtype == dtype
        assert result.isfinite().all(), method
        assert result[1].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 30])
def test_half_precision_rounds_no_more_than_attention_does(backend, queries, dtype):
    inputs = [part.to(dtype) for part in tensors("normal", 3, 2, 6, 2, queries, 90, 16)]
    exact = [part.float() for part in inputs]
    image = (torch.arange(90) % 50 > 20)[None]
    visible = with_image(AttentionMask(query_start=90 - queries), image, queries)
    for method, variant in UNRELEASED:
        given = {"scale": 0.25, "visible": visible, **settings(variant)}
        result = language_attention(method, *inputs, **given).float()
        expected = language_attention(method, *exact, **given)
        bound = 2**-8 * (expected.abs() + 2 * inputs[2].abs().max())
        assert ((result - expected).abs() <= bound).all(), method


def test_the_first_backend_that_supports_a_call_runs_it(monkeypatch):
    asked = []

    def fake(name, supports):
        def run(call):
            asked.append(name)
            return torch.full_like(call.query, 7.0)

        return SimpleNamespace(supports=lambda call: supports, run=run)

    backends = (fake("other", False), fake("first", True), fake("second", True))
    monkeypatch.setattr(attention, "BACKENDS", backends)
    inputs = tensors("normal", 0, 1, 2, 2, 4, 4, 3)
    result = vision_attention("uniform", *inputs, scale=1.0)
    assert asked == ["first"]
    assert result.eq(7).all()


def test_the_last_backend_supports_every_call(monkeypatch):
    monkeypatch.setattr(attention, "BACKENDS", (BACKENDS[-1],))
    inputs = tensors("normal", 0, 1, 2, 2, 4, 4, 3)
    for tower, attend in (("language", language_attention), ("vision", vision_attention)):
        image = torch.tensor([[0, 1, 1, 0]]).bool()
        given = {"visible": with_image(AttentionMask(), image, 4)} if tower == "language" else {}
        for method, variant in FORMULAS[tower]:
            result = attend(method, *inputs, scale=1.0, **settings(variant), **given)
            assert result.isfinite().all()
