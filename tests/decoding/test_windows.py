"""Vision layers that attend within windows: the parts of a picture, each with its own random
weights, whatever else is in the batch."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from dense_branches import attach
from equivalence import check
from family_rows import FAMILIES, row_of
from tiny_models import model_pair, sample
from torch.nn.functional import scaled_dot_product_attention

from causalmm import CausalMMConfig
from causalmm.counterfactual.attention import vision_attention
from causalmm.counterfactual.methods import VISION_METHODS
from causalmm.decoding.plan import Towers, build_plan
from causalmm.decoding.vision_pass import PackedInputs, VisionPass

WINDOWED = [
    family
    for family in FAMILIES
    if hasattr(row_of(family).config().vision_config, "fullatt_block_indexes")
]
DRAWS, HEADS, SIZE = 2, 2, 4
PICTURES = [[4, 4, 2], [6], [4, 2, 4, 1]]
"""The lengths of the windows of pictures."""


@pytest.fixture(params=WINDOWED)
def family(request):
    return request.param


def vision_pass(method):
    settings = {"vision_method": method, "vision_layers": "all", "draws": DRAWS, "seed": 4}
    if method in ("uniform", "reversed"):
        settings["draws"] = 1
    towers = Towers(vision_layers=1, language_layers=1, language_heads=1)
    return VisionPass.start(build_plan(CausalMMConfig(mode="vision", **settings), towers))


def attend(branches, pictures, states):
    """Packed attention of a layer with these windows: query, key and value [1, H, P, D] of one
    branch go in, [branches, P, H x D] come out."""
    patches = states[0].shape[2]
    ends = torch.tensor([0, *map(sum, pictures)]).cumsum(0)
    windows = torch.tensor([0, *(length for each in pictures for length in each)]).cumsum(0)
    inputs = PackedInputs(torch.zeros(patches, 1), ends, ())
    branches.join_packed_rows(0, inputs)
    windows, _ = branches.join_windows(0, windows, torch.arange(patches))

    def interface(_module, query, key, value, attention_mask, *, scaling, **_):
        output = scaled_dot_product_attention(query, key, value, scale=scaling)
        return output.transpose(1, 2), None

    module = SimpleNamespace(scaling=0.7, layer_idx=0)
    joined = (part.repeat(1, 1, branches.branches, 1) for part in states)
    output = branches.packed_attention(interface, module, *joined, windows)
    return output.unflatten(0, (branches.branches, patches))


def states_of(patches, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, HEADS, patches, SIZE, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("method", VISION_METHODS)
def test_windows_of_one_length_in_one_call_are_those_one_by_one(method):
    states = states_of(sum(map(sum, PICTURES)))
    branches = vision_pass(method)
    found = attend(branches, PICTURES, states)
    start = 0
    for picture in PICTURES:
        inside = 0
        for length in picture:
            query, key, value = (part[:, :, start : start + length] for part in states)
            weights = (query @ key.mT * 0.7).softmax(-1)
            expected = [(weights @ value)[0].transpose(0, 1).flatten(1)]
            positions = torch.arange(inside, inside + length).unsqueeze(0)
            for draw in range(branches.branches - 1):
                settings = {"scale": 0.7, "seed": 4, "draws": (draw,), "positions": positions}
                edited = vision_attention(method, query, key, value, **settings)
                expected.append(edited[0].transpose(0, 1).flatten(1))
            window = found[:, start : start + length]
            torch.testing.assert_close(window, torch.stack(expected), atol=1e-5, rtol=1e-5)
            start, inside = start + length, inside + length


@pytest.mark.parametrize("method", ["random", "shuffle"])
def test_windows_differ_and_pictures_do_not(method):
    """Of equal windows in equal pictures, whose weights alone can differ."""
    window = [part.repeat(1, 1, 4, 1) for part in states_of(6)]
    found = attend(vision_pass(method), [[6, 6], [6, 6]], window).unflatten(1, (2, 2, 6))
    factual, edited = found[0], found[1:]
    torch.testing.assert_close(factual[0, 0], factual[0, 1])
    assert torch.equal(edited[:, 0], edited[:, 1])
    assert (edited[:, 0, 0] - edited[:, 0, 1]).abs().amax() > 0.05


@pytest.mark.parametrize(
    "grids",
    [((4, 4),), ((2, 2), (4, 8)), ((10, 6), (2, 12))],
    ids=["one window", "less than a window, and two", "no multiples of a window"],
)
def test_pictures_of_any_sides_equal_separate_runs(family, grids):
    ours, upstream = model_pair(family, "sdpa")
    config = CausalMMConfig(vision_layers="all", epsilon=0, seed=2)
    check((ours, upstream, attach(upstream, family)), [sample(family, 5, grids=grids)], config)


def test_a_tower_of_windows_only(family):
    row = row_of(family)

    def config(**changes):
        changed = row.config(**changes)
        changed.vision_config.fullatt_block_indexes = []
        return changed

    ours, upstream = model_pair(replace(row, config=config), "sdpa")
    with pytest.raises(ValueError, match="'full': no layer of this tower has full attention"):
        ours.causalmm_plan(CausalMMConfig())
    host = attach(upstream, family)
    check((ours, upstream, host), [sample(family, 5)], CausalMMConfig(vision_layers="all"))
