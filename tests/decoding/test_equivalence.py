"""One batched forward equals separate runs of an independent implementation, at every token.

`dense_branches` decodes each branch alone on an unpatched upstream model, with the design's table
written out on full attention maps and a cache of its own. Here its logits are contrasted by the
formula and compared with what our model's single batched pass says, step by step.
"""

import pytest
import torch
from dense_branches import attach
from dense_methods import FORMULAS, config_settings
from equivalence import check
from family_rows import fast_first, row_of
from tiny_models import model_pair, sample

from causalmm import CausalMMConfig


@pytest.fixture(scope="module", params=fast_first(1, ["sdpa", "eager"]))
def models(request, family):
    ours, upstream = model_pair(family, request.param)
    return ours, upstream, attach(upstream, family)


@pytest.mark.parametrize(("method", "normalization"), FORMULAS["vision"])
def test_every_vision_method(models, family, method, normalization):
    config = CausalMMConfig(
        mode="vision",
        vision_method=method,
        normalization=normalization,
        vision_layers="all",
        epsilon=0.05,
    )
    check(models, [sample(family, seed=2)], config)


@pytest.mark.parametrize(("method", "variant"), FORMULAS["language"])
def test_every_language_method(models, family, method, variant):
    config = CausalMMConfig(
        mode="language",
        language_method=method,
        language_layers="half:",
        epsilon=0.05,
        **config_settings(variant),
    )
    check(models, [sample(family, seed=3)], config)


@pytest.mark.parametrize("heads", ["1,3", {1: [0], 3: [2, 3]}, "image:1", "image:3"])
@pytest.mark.parametrize(("method", "variant"), [("random", "visible"), ("blind", "image")])
def test_some_heads_are_edited(models, family, method, variant, heads):
    config = CausalMMConfig(
        mode="language",
        language_method=method,
        language_layers="1:",
        language_heads=heads,
        draws=2 if method == "random" else 1,
        epsilon=0.05,
        **config_settings(variant),
    )
    check(models, [sample(family, seed=5)], config)


@pytest.mark.parametrize("mode", ["multimodal", "joint"])
@pytest.mark.parametrize("heads", ["all", "image:2"])
def test_scope_image_in_padded_batches_beside_the_vision_branch(models, family, mode, heads):
    config = CausalMMConfig(
        mode=mode,
        language_method="uniform",
        language_scope="image",
        language_heads=heads,
        language_layers="all",
    )
    two = sample(family, seed=6, **row_of(family).two_images)
    check(models, [sample(family, seed=2), sample(family, seed=3, before=4)], config)
    check(models, [two], config)


def test_separate_strengths_layers_and_draws(models, family):
    config = CausalMMConfig(
        gamma_vision=0.5,
        gamma_language=1.5,
        vision_layers="1:2",
        language_layers=[1, 3],
        draws=2,
        epsilon=0.02,
        seed=11,
    )
    check(models, [sample(family, seed=4)], config)


VIDEO_CONFIGS = (
    {"mode": "multimodal"},
    {"mode": "joint", "language_scope": "image", "language_method": "uniform"},
    {"mode": "language", "language_scope": "image", "language_method": "blind"},
    {"mode": "language", "language_method": "reverse", "language_heads": "image:2"},
    {"mode": "vision", "vision_method": "noise"},
)


@pytest.mark.parametrize("settings", VIDEO_CONFIGS, ids=lambda each: "-".join(each.values()))
def test_an_image_and_a_video(models, family, settings):
    row = row_of(family)
    assert (row.video is not None) == ("video" in row.family.media)
    if row.video is None:
        pytest.skip("reads no videos")
    samples = [row.video(seed=8), row.video(seed=9, before=4)]
    check(models, samples, CausalMMConfig(epsilon=0, **settings))


def test_sampled_tokens_are_contrasted_at_every_step_too(models, family):
    torch.manual_seed(0)
    config = CausalMMConfig(epsilon=0)
    check(models, [sample(family, seed=7)], config, do_sample=True, temperature=1.3, top_k=20)
