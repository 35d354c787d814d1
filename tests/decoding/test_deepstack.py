"""Features that are added to image tokens after the first decoder layers (DeepStack).

The tiny Qwen3-VL reads its vision layers 0 and 2 (of 3) so, after decoder layers 0 and 1 (of 4).
"""

import pytest
import torch
from dense_branches import attach
from equivalence import check
from tiny_models import model_pair, sample
from tiny_qwen3_vl import qwen3vl_video_sample

from causalmm import CausalMMConfig

FAMILY = "qwen3_vl"


def models(**changes):
    ours, upstream = model_pair(FAMILY, "sdpa", **changes)
    return ours, upstream, attach(upstream, FAMILY)


@pytest.fixture(scope="module")
def dense():
    return models()


@pytest.mark.parametrize("first", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", ["language", "multimodal", "joint"])
def test_where_language_rows_join(dense, mode, first):
    """Below the layers that add features, between them and above them."""
    samples = [sample(FAMILY, 1, before=4), sample(FAMILY, 2)]
    config = CausalMMConfig(
        mode=mode, language_layers=[first], vision_layers=[1], draws=2, epsilon=0
    )
    check(dense, samples, config)


@pytest.mark.parametrize("layers", [[0], [1], [2]])
@pytest.mark.parametrize("taps", [[0, 2], [0], [2, 1]])
def test_where_vision_rows_join(taps, layers):
    """Features of layers below the edited one are the factual ones in every branch."""
    config = CausalMMConfig(mode="multimodal", vision_layers=layers, draws=2, epsilon=0)
    check(models(taps=taps), [sample(FAMILY, 3)], config)


@pytest.mark.parametrize("method", ["random", "noise"])
def test_an_image_and_a_video_in_one_prompt(dense, method):
    config = CausalMMConfig(mode="multimodal", vision_method=method, epsilon=0)
    check(dense, [qwen3vl_video_sample(1)], config)


def test_each_branch_has_features_of_its_own(dense):
    """Of the first tap, below the edited layer, the same; of the second, others."""
    ours, upstream, _ = dense
    plan = ours.causalmm_plan(CausalMMConfig(mode="vision", vision_layers=[1]))
    inputs = {name: sample(FAMILY, 4)[name] for name in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        found = ours.model.get_image_features(**inputs, causalmm=plan)
        plain = upstream.model.get_image_features(**inputs)
    for tap, same in ((0, True), (1, False)):
        factual, edited = found.deepstack_features[tap][0].chunk(2, dim=-1)
        torch.testing.assert_close(factual, plain.deepstack_features[tap][0])
        assert torch.equal(factual, edited) == same
