"""Random weights drawn for several layers at a time give what each layer's own attention gives."""

import pytest
import torch
from torch.testing import assert_close

from causalmm.counterfactual import random_weights
from causalmm.counterfactual.attention import language_attention
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.backends import random_step
from causalmm.counterfactual.backends.random_step import StepRandomWeights
from causalmm.counterfactual.methods import NORMALIZATIONS
from causalmm.decoding.plan import Intervention

SAMPLES, HEADS, SHARED, KEYS, SIZE = 3, 4, 2, 11, 8
LAYERS = (1, 2, 5, 6)
EDITED = tuple(layer in LAYERS for layer in range(8))
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}


def views():
    """No padding; some; with a mask; with a static cache's counter and keys that are not yet."""
    real = torch.arange(KEYS) >= torch.tensor([[0], [4], [9]])
    return {
        "whole": AttentionMask(query_start=KEYS - 1),
        "padded": AttentionMask(keys=real, query_start=KEYS - 1),
        "blind": AttentionMask(
            keys=real & (torch.arange(SAMPLES) > 0)[:, None], query_start=KEYS - 1
        ),
        "mask": AttentionMask(query_start=KEYS - 1, mask=real[:, None, None]),
        "counter": AttentionMask(query_start=torch.tensor(KEYS - 3)),
    }


def intervention(normalization="visible", draws=2):
    return Intervention(
        method="random", edited=EDITED, normalization=normalization, seed=5, draws=draws
    )


def tensors(draws, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    rows = SAMPLES * draws
    shapes = ((rows, HEADS, 1, SIZE), (rows, SHARED, KEYS, SIZE), (rows, SHARED, KEYS, SIZE))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("block", [1, 2 * SAMPLES * 2 * HEADS * KEYS, 2**18])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("view", ["whole", "padded", "blind", "mask", "counter"])
def test_equals_each_layers_own(view, normalization, draws, dtype, block, monkeypatch):
    """One layer at a time, two, and all; and in any order of asking."""
    monkeypatch.setattr(random_step, "block_entries", lambda device: block)
    visible, edit = views()[view], intervention(normalization, draws)
    query, key, value = tensors(draws, dtype)
    luck = StepRandomWeights(edit, visible)
    for layer in (*LAYERS, LAYERS[0]):
        expected = language_attention(
            "random", query, key, value, scale=0.3, visible=visible, layer=layer,
            normalization=normalization, seed=5, draws=tuple(range(draws)),
        )  # fmt: skip
        got = luck.attention(layer, query, value)
        assert got.dtype == dtype
        assert_close(got, expected, atol=DTYPES[dtype], rtol=DTYPES[dtype])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("view", ["whole", "padded", "blind", "mask", "counter"])
def test_on_a_gpu(view, normalization, dtype):
    visible, edit = views()[view], intervention(normalization)
    query, key, value = tensors(2, dtype)
    luck = StepRandomWeights(edit, visible.to(torch.device("cuda")))
    for layer in LAYERS:
        expected = language_attention(
            "random", query.double(), key.double(), value.double(), scale=0.3, visible=visible,
            layer=layer, normalization=normalization, seed=5, draws=(0, 1),
        )  # fmt: skip
        got = luck.attention(layer, query.cuda(), value.cuda()).cpu().double()
        assert (got - expected).norm() <= max(DTYPES[dtype], 1e-6) * expected.norm()


def test_what_it_leaves_to_others(monkeypatch):
    query, _, value = tensors(1)
    luck = StepRandomWeights(intervention(draws=1), views()["whole"])
    assert luck.serves(query, value)
    assert not luck.serves(query.expand(-1, -1, 2, -1), value)
    grown = value.clone().requires_grad_()
    assert not luck.serves(query, grown)
    with torch.no_grad():
        assert luck.serves(query, grown)
    monkeypatch.setattr(random_step, "BLOCK_ENTRIES", 1)
    assert not luck.serves(query, value)


def test_autocast_changes_nothing():
    query, _, value = tensors(1)
    luck = StepRandomWeights(intervention(draws=1), views()["whole"])
    expected = luck.attention(LAYERS[0], query, value)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(luck.attention(LAYERS[0], query, value), expected)


def test_draws_for_no_more_layers_than_fit_a_block(monkeypatch):
    entries = 2 * SAMPLES * HEADS * KEYS
    monkeypatch.setattr(random_step, "block_entries", lambda device: entries)
    asked = []

    def of_streams(streams, *places):
        asked.append(len(streams))
        return original(streams, *places)

    original = random_weights.of_streams
    monkeypatch.setattr(random_weights, "of_streams", of_streams)
    query, _, value = tensors(1)
    luck = StepRandomWeights(intervention(draws=1), views()["whole"])
    for layer in LAYERS:
        luck.attention(layer, query, value)
    assert asked == [2, 2]
