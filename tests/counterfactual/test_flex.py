"""What is asked of the fused kernel gives what the blocks give, and so the definition.

flex_attention returns largest scores on a GPU only. Elsewhere a dense stand-in, written from its
documentation, takes its place; what a GPU makes of it is tested where there is one.
"""

import shutil
from functools import cache

import pytest
import torch
from dense_methods import FORMULAS
from torch._inductor.exc import InductorError
from torch.nn.attention.flex_attention import AuxOutput, flex_attention
from torch.testing import assert_close

from causalmm.counterfactual.attention import language_attention, vision_attention
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.backends import flex
from causalmm.counterfactual.methods import LANGUAGE_METHODS

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}


def dense_kernel(query, key, value, *, score_mod, return_aux=None, scale=None, enable_gqa=False):
    """What the documentation of flex_attention says, on the whole map."""
    assert enable_gqa
    share = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(share, dim=1).float() for part in (key, value))
    scores = query.float() @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if score_mod is not None:
        rows, heads, queries, keys = (torch.arange(size) for size in scores.shape)
        places = (rows[:, None, None, None], heads[:, None, None], queries[:, None], keys)
        scores = score_mod(scores, *places)
    output = scores.softmax(dim=-1).nan_to_num(0.0) @ value
    if return_aux is None:
        return output.to(query.dtype)
    return output.to(query.dtype), AuxOutput(
        lse=scores.logsumexp(dim=-1) if return_aux.lse else None,
        max_scores=scores.amax(dim=-1) if return_aux.max_scores else None,
    )


@pytest.fixture
def stand_in(monkeypatch):
    """The stand-in in the place of the blocks, a few queries at a time."""
    monkeypatch.setattr(flex, "serves", lambda query: True)
    monkeypatch.setattr(flex, "QUERIES", 3)
    monkeypatch.setattr(flex, "ALONE", 4)
    monkeypatch.setattr(flex, "flex_attention", dense_kernel)
    monkeypatch.setattr(flex, "_compiled", lambda function: function)


def tensors(rows, heads, shared, queries, keys, device="cpu", dtype=torch.float32, size=16):
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, heads, queries, size), (rows, shared, keys, size), (rows, shared, keys, size))
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


@pytest.mark.parametrize("view", ["causal", "padded", "mask", "counter"])
@pytest.mark.parametrize(("method", "normalization"), FORMULAS["language"])
@pytest.mark.parametrize("queries", [1, 8])
def test_language(method, view, normalization, queries, request):
    visible = views(queries, 11)[view]
    inputs = tensors(4, 4, 2, queries, 11)
    settings = {
        "scale": 0.25, "visible": visible, "normalization": normalization, "seed": 5,
        "draws": (0, 2), "layer": 1,
    }  # fmt: skip
    expected = language_attention(method, *inputs, **settings)
    request.getfixturevalue("stand_in")
    assert_close(language_attention(method, *inputs, **settings), expected, **TOLERANCE)


@pytest.mark.parametrize(("method", "normalization"), FORMULAS["vision"])
def test_vision(method, normalization, request):
    inputs = tensors(4, 2, 2, 10, 10)
    settings = {"scale": 0.25, "normalization": normalization, "seed": 5, "draws": (0, 2)}
    expected = vision_attention(method, *inputs, **settings)
    request.getfixturevalue("stand_in")
    assert_close(vision_attention(method, *inputs, **settings), expected, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1.0, 300.0])
def test_finite_inputs_give_finite_outputs(dtype, size, stand_in):
    inputs = [part * size for part in tensors(2, 2, 2, 6, 6, dtype=dtype)]
    visible = AttentionMask(
        keys=torch.arange(6) >= torch.tensor([[2], [6]])
    )  # the last is all padding
    for method in LANGUAGE_METHODS:
        result = language_attention(method, *inputs, scale=0.25, visible=visible)
        assert result.dtype == dtype
        assert result.isfinite().all(), method
        assert result[1].eq(0).all()


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
    monkeypatch.setattr(flex, "serves", lambda query: True)
    # A CPU's kernel cannot be fused with what comes after it.
    options = {"epilogue_fusion": False, "max_fusion_size": 1, "cpp.simdlen": bits}
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, options=options)
    with torch.no_grad():
        assert_close(compiled(torch.tensor(28)), expected, **TOLERANCE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", ["causal", "padded"])
@pytest.mark.parametrize("method", LANGUAGE_METHODS)
@pytest.mark.parametrize(("queries", "keys"), [(1100, 1200), (200, 200), (1, 40)])
def test_language_on_a_gpu(method, view, dtype, queries, keys):
    visible = views(queries, keys)[view]
    inputs = tensors(2, 4, 2, queries, keys, dtype=dtype, size=64)
    settings = {"scale": 0.125, "seed": 5}
    expected = language_attention(
        method, *(part.double() for part in inputs), visible=visible, **settings
    )
    device = torch.device("cuda")
    result = language_attention(
        method, *(part.to(device) for part in inputs), visible=visible.to(device), **settings
    )
    error = (result.cpu().double() - expected).norm() / expected.norm()
    assert error < (2e-2 if dtype == torch.bfloat16 else 2e-3)
