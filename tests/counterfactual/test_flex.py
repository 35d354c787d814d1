"""The real flex_attention: which calls it takes, in a compiled model on a CPU, and on a GPU.

What is asked of it is held against the definition, with a dense stand-in, in
tests/counterfactual/test_backends.py.
"""

import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch
from attention_cases import with_image
from dense_methods import FORMULAS, UNRELEASED, formula
from dense_methods import settings as variant_settings
from flex_stand_in import dense_kernel
from torch._inductor.exc import InductorError
from torch.nn.attention.flex_attention import flex_attention
from torch.testing import assert_close

from causalmm.counterfactual.attention import language_attention
from causalmm.counterfactual.attention_call import AttentionCall
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.backends import flex

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}


def tensors(rows, heads, kv_heads, queries, keys, device="cpu", dtype=torch.float32, size=16):
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (rows, heads, queries, size),
        (rows, kv_heads, keys, size),
        (rows, kv_heads, keys, size),
    )
    return [torch.randn(shape, generator=generator).mul(2).to(device, dtype) for shape in shapes]


def views(queries, keys):
    """Causal, padded, with a mask, and with a counter that lies on the device."""
    past = keys - queries
    real = torch.arange(keys) >= torch.tensor([[0], [past + 2]])
    causal = torch.ones(queries, keys, dtype=torch.bool).tril(past)
    return {
        "causal": AttentionMask(query_start=past),
        "padded": AttentionMask(keys=real, query_start=past),
        "mask": AttentionMask(query_start=past, mask=(real[:, None] & causal)[:, None]),
        "counter": AttentionMask(query_start=torch.tensor(past)),
    }


def a_call(method="random", variant="visible", *, tower="language", queries=8, size=64):
    query, key, value = tensors(2, 4, 2, queries, 11, size=size)
    return AttentionCall(
        formula=formula(tower, method, variant), query=query, key=key, value=value,
        scale=1.0, mask=AttentionMask(), heads=range(4), seed=0, draws=(0,), layer=0,
    )  # fmt: skip


def test_a_cpu_is_never_supported():
    assert not any(flex.supports(a_call(*each)) for each in FORMULAS["language"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_supported_on_a_gpu():
    def supported(call):
        parts = (call.query, call.key, call.value)
        query, key, value = (part.cuda() for part in parts)
        return flex.supports(replace(call, query=query, key=key, value=value))

    assert all(supported(a_call(*each)) for each in UNRELEASED)
    assert supported(a_call("reverse", queries=1))
    assert not supported(a_call("random", queries=1))
    assert not supported(a_call("random", "released"))
    assert not supported(a_call("shuffle", tower="vision"))
    assert not supported(a_call(size=80))


KEYS = 48
"""A multiple of 16: where a CPU has AVX2 alone, the kernel of torch 2.13 leaves the scores of the
last keys unset if their number is 8 more than that, whatever it is asked for."""


@cache
def compiles_attention(bits):
    """Whether plain attention, compiled for this CPU with vectors of so many bits (None: as many as
    it has), is what it is by its definition. For some CPUs there is no kernel."""
    inputs = tensors(2, 4, 2, 1, KEYS)
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, fullgraph=True, options={"cpp.simdlen": bits})
    try:
        with torch.no_grad():
            found = compiled(*inputs, enable_gqa=True)
    except InductorError:
        return False
    expected = dense_kernel(*inputs, score_mod=None, enable_gqa=True)
    return torch.allclose(found, expected, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.parametrize(("masked", "bits"), [(False, None), (True, None), (True, 256)])
def test_a_compiled_model_takes_the_kernel_in(masked, bits, monkeypatch):
    """Its compiler, not only its tracer: what a kernel looks up must be there before it."""
    if not compiles_attention(bits):
        pytest.skip("PyTorch compiles even plain attention for this CPU wrongly, or not at all")
    real = (torch.arange(KEYS) >= torch.tensor([[0], [3]])) & (torch.arange(KEYS) < 30)
    query, key, value = tensors(2, 4, 2, 1, KEYS)

    def attend(counter):
        mask = real[:, None, None] if masked else None
        # A static cache counts on the device, and so its counter is computed in the model.
        keys = None if masked else real
        visible = AttentionMask(keys=keys, query_start=counter + 1, mask=mask)
        return language_attention("random", query, key, value, scale=0.25, visible=visible)

    expected = attend(torch.tensor(28))
    monkeypatch.setattr(flex, "supports", lambda call: True)
    # A CPU's kernel cannot be fused with what comes after it.
    options = {"epilogue_fusion": False, "max_fusion_size": 1, "cpp.simdlen": bits}
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, options=options)
    with torch.no_grad():
        assert_close(compiled(torch.tensor(28)), expected, **TOLERANCE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", ["causal", "padded"])
@pytest.mark.parametrize(("method", "variant"), UNRELEASED)
@pytest.mark.parametrize(("queries", "keys"), [(1100, 1200), (200, 200), (1, 40)])
def test_language_on_a_gpu(method, variant, view, dtype, queries, keys):
    image = (torch.arange(keys) >= 7) & (torch.arange(keys) < 0.7 * keys)
    visible = with_image(views(queries, keys)[view], image[None], queries)
    inputs = tensors(2, 4, 2, queries, keys, dtype=dtype, size=64)
    settings = {"scale": 0.125, "seed": 5, **variant_settings(variant)}
    expected = language_attention(
        method, *(part.double() for part in inputs), visible=visible, **settings
    )
    device = torch.device("cuda")
    result = language_attention(
        method, *(part.to(device) for part in inputs), visible=visible.to(device), **settings
    )
    error = (result.cpu().double() - expected).norm() / expected.norm()
    assert error < (2e-2 if dtype == torch.bfloat16 else 2e-3)
