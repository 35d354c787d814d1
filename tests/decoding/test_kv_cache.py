"""A preallocated layer holds what transformers' own does, after whatever is done to it."""

import copy
import pickle

import pytest
import torch
from family_rows import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import model_pair, sample
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from causalmm import CausalMMConfig
from causalmm.decoding.kv_cache import CAPACITY_STEP, PreallocatedLayer

DEEDS = st.one_of(
    st.tuples(st.just("update"), st.sampled_from([1, 1, 2, CAPACITY_STEP, CAPACITY_STEP + 3])),
    st.tuples(st.just("crop"), st.integers(0, 3)),
    st.tuples(st.just("batch_repeat_interleave"), st.integers(1, 2)),
    st.tuples(st.just("batch_select_indices"), st.integers(0, 5)),
    st.tuples(st.just("reorder_cache"), st.integers(0, 5)),
    st.tuples(st.just("deepcopy"), st.just(0)),
    st.tuples(st.just("reset"), st.just(0)),
)

SETTINGS = {"do_sample": False, "max_new_tokens": 5}
SETTINGS |= {"return_dict_in_generate": True, "output_scores": True}


def states(rows, length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, 2, length, 3, generator=generator).unbind()


def act(layer, name, number, seed):
    rows = 2 if not layer.get_seq_length() else len(layer.keys)
    if name == "update":
        layer.update(*states(rows, number, seed))
    elif name == "crop":
        layer.crop(-min(number, max(layer.get_seq_length() - 1, 0)))
    elif name == "deepcopy":  # what is done to the copy does not reach the layer
        copy.deepcopy(layer).update(*states(rows, 1, seed))
    elif name == "reset":
        layer.reset()
    elif name == "batch_repeat_interleave":
        layer.batch_repeat_interleave(number)
    else:
        getattr(layer, name)(torch.tensor([number % rows, 0]))


@given(st.lists(DEEDS, max_size=12))
def test_holds_what_a_dynamic_layer_holds(deeds):
    ours, theirs = PreallocatedLayer(), DynamicLayer()
    for seed, (name, number) in enumerate(deeds):
        for layer in (ours, theirs):
            act(layer, name, number, seed)
        assert ours.get_seq_length() == theirs.get_seq_length()
        if theirs.get_seq_length():
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)


def test_steps_do_not_move_what_is_there():
    layer = PreallocatedLayer()
    layer.update(*states(3, 5, 0))
    first = layer.update(*states(3, 1, 0))
    places = set()
    for seed in range(CAPACITY_STEP):
        keys, values = layer.update(*states(3, 1, seed))
        places.add((keys.data_ptr(), values.data_ptr()))
    assert places == {(first[0].data_ptr(), first[1].data_ptr())}
    layer.update(*states(3, 1, 0))
    assert layer.keys.data_ptr() != first[0].data_ptr()


def filled():
    """A layer whose buffer is longer than what it holds."""
    layer = PreallocatedLayer()
    layer.update(*states(2, 5, 0))
    layer.update(*states(2, 1, 1))
    return layer


@pytest.mark.parametrize(
    "other",
    [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_do_not_share_the_buffer(other):
    layer = filled()
    twin = other(layer)
    layer.update(*states(2, 1, 2))
    twin.update(*states(2, 1, 3))
    assert torch.equal(layer.keys[:, :, -1:], states(2, 1, 2)[0])
    assert torch.equal(twin.keys[:, :, -1:], states(2, 1, 3)[0])


def test_what_was_handed_out_stays_as_it_is():
    layer = filled()
    seen = layer.keys
    before = seen.clone()
    layer.crop(-2)
    layer.update(*states(2, 2, 2))
    assert torch.equal(seen, before)


def test_gradients_flow_as_through_a_dynamic_layer():
    gradients = []
    for layer in (PreallocatedLayer(), DynamicLayer()):
        with torch.no_grad():
            layer.update(*states(2, 5, 0))
            layer.update(*states(2, 1, 1))
        parts = [states(2, 1, seed) for seed in (2, 3)]
        for part in parts:
            layer.update(*(each.requires_grad_() for each in part))
        layer.update(*states(2, 1, 4))
        (layer.keys.square().sum() + layer.values.cos().sum()).backward()
        gradients.append([each.grad for part in parts for each in part])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_goes_on_outside_of_inference_mode():
    with torch.inference_mode():
        layer = filled()
    keys, _ = layer.update(*states(2, 1, 2))
    assert torch.equal(keys[:, :, -1:], states(2, 1, 2)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_are_kept_in_one_and_nothing_else_is(family):
    """In a cache of the caller's too, with the same tokens, scores, keys and values."""
    model = model_pair(family, "sdpa")[0]
    inputs = sample(family, seed=1)
    config = CausalMMConfig(epsilon=0)
    got = model.generate(**inputs, **SETTINGS, causalmm=config)
    own = DynamicCache(config=model.config.get_text_config())
    expected = model.generate(**inputs, **SETTINGS, causalmm=config, past_key_values=own)
    plain = model.generate(**inputs, **SETTINGS)
    assert expected.past_key_values is own
    for other, kind in (
        (got, PreallocatedLayer),
        (expected, PreallocatedLayer),
        (plain, DynamicLayer),
    ):
        assert {type(layer) for layer in other.past_key_values.layers} == {kind}
    assert torch.equal(got.sequences, expected.sequences)
    for ours, theirs in zip(got.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(got.past_key_values.layers, own.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys)
        torch.testing.assert_close(ours.values, theirs.values)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_with_transformers_own(family):
    model = model_pair(family, "sdpa")[0]
    inputs = sample(family, seed=1)
    cache = Cache(layer_class_to_replicate=PreallocatedLayer)
    expected = model.generate(**inputs, **SETTINGS)
    got = model.generate(**inputs, **SETTINGS, past_key_values=cache)
    assert torch.equal(got.sequences, expected.sequences)
    assert {type(layer) for layer in cache.layers} == {PreallocatedLayer}
    for ours, theirs in zip(cache.layers, expected.past_key_values.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
