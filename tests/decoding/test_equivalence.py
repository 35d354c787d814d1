"""One batched forward equals separate runs of an independent implementation, at every token.

`dense_branches` decodes each branch alone on an unpatched upstream model, with the design's table
written out on full attention maps and a cache of its own. Here its logits are contrasted by the
formula and compared with what our model's single batched pass says, step by step.
"""

import pytest
import torch
from dense_branches import attach
from dense_methods import FORMULAS
from equivalence import check
from tiny_models import model_pair, sample

from causalmm import CausalMMConfig


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def models(request, family):
    ours, upstream = model_pair(family, request.param)
    return ours, upstream, attach(upstream)


@pytest.mark.parametrize(("method", "normalization"), FORMULAS["vision"])
def test_every_vision_method(models, family, method, normalization):
    config = CausalMMConfig(
        mode="vision", vision_method=method, normalization=normalization, epsilon=0.05
    )
    check(models, [sample(family, seed=2)], config)


@pytest.mark.parametrize(("method", "normalization"), FORMULAS["language"])
def test_every_language_method(models, family, method, normalization):
    config = CausalMMConfig(
        mode="language", language_method=method, normalization=normalization, epsilon=0.05
    )
    check(models, [sample(family, seed=3)], config)


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


def test_sampled_tokens_are_contrasted_at_every_step_too(models, family):
    torch.manual_seed(0)
    config = CausalMMConfig(epsilon=0)
    check(models, [sample(family, seed=7)], config, do_sample=True, temperature=1.3, top_k=20)
