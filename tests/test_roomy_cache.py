"""A roomy cache holds what transformers' own does, after whatever is done to it."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, model_pair, sample
from transformers.cache_utils import DynamicLayer

from causalmm.roomy_cache import ROOM, RoomyLayer, roomy_cache

DEEDS = st.one_of(
    st.tuples(st.just("update"), st.sampled_from([1, 1, 2, ROOM, ROOM + 3])),
    st.tuples(st.just("crop"), st.integers(0, 3)),
    st.tuples(st.just("batch_repeat_interleave"), st.integers(1, 2)),
    st.tuples(st.just("batch_select_indices"), st.integers(0, 5)),
    st.tuples(st.just("reorder_cache"), st.integers(0, 5)),
    st.tuples(st.just("deepcopy"), st.just(0)),
    st.tuples(st.just("reset"), st.just(0)),
)


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
    ours, theirs = RoomyLayer(), DynamicLayer()
    for seed, (name, number) in enumerate(deeds):
        for layer in (ours, theirs):
            act(layer, name, number, seed)
        assert ours.get_seq_length() == theirs.get_seq_length()
        if theirs.get_seq_length():
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)


def test_steps_do_not_move_what_is_there():
    layer = RoomyLayer()
    layer.update(*states(3, 5, 0))
    first = layer.keys, layer.values
    places = set()
    for seed in range(ROOM):
        keys, values = layer.update(*states(3, 1, seed))
        places.add((keys.data_ptr(), values.data_ptr()))
    assert places == {(first[0].data_ptr(), first[1].data_ptr())}
    layer.update(*states(3, 1, 0))
    assert layer.keys.data_ptr() != first[0].data_ptr()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_with_transformers_own(family):
    model = model_pair(family, "sdpa")[0]
    inputs = sample(family, seed=1)
    cache = roomy_cache(model.config.get_text_config())
    assert {type(layer) for layer in cache.layers} == {RoomyLayer}
    settings = {"do_sample": False, "max_new_tokens": 5, "return_dict_in_generate": True}
    expected = model.generate(**inputs, **settings)
    got = model.generate(**inputs, **settings, past_key_values=cache)
    assert torch.equal(got.sequences, expected.sequences)
    for ours, theirs in zip(cache.layers, expected.past_key_values.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
