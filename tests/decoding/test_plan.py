"""A plan lays out its rows as documented and contrasts them by the formula."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from causalmm import BranchTrace, CausalMMConfig
from causalmm.decoding.language_pass import LanguagePass
from causalmm.decoding.plan import Towers, build_plan
from causalmm.decoding.vision_pass import VisionPass

TOWERS = Towers(vision_layers=6, language_layers=8)


@pytest.mark.parametrize(
    ("values", "branches"),
    [
        ({"mode": "vision"}, (1, 0)),
        ({"mode": "language"}, (0, 1)),
        ({"mode": "multimodal"}, (1, 1)),
        ({"mode": "joint"}, (1, 0)),
        ({"mode": "multimodal", "draws": 3}, (3, 3)),
        ({"mode": "joint", "draws": 3, "vision_method": "uniform"}, (3, 0)),
        ({"mode": "multimodal", "draws": 3, "language_method": "uniform"}, (3, 1)),
    ],
)
def test_branches(values, branches):
    plan = build_plan(CausalMMConfig(**values), TOWERS)
    assert (plan.image_branches, plan.language_branches) == branches
    assert plan.branches == 1 + sum(branches)


def test_nothing_to_do_is_no_plan_unless_somebody_watches():
    off = CausalMMConfig(gamma=0, epsilon=0)
    assert build_plan(off, TOWERS) is None
    assert build_plan(off, TOWERS, BranchTrace()).branches == 1


def test_default_layers():
    plan = build_plan(CausalMMConfig(), TOWERS)
    assert plan.vision.layers == tuple(range(6))
    assert plan.language.layers == (4, 5, 6, 7)


def test_contrast_reads_its_branches_in_row_order():
    torch.manual_seed(0)
    trace = BranchTrace()
    config = CausalMMConfig(gamma_vision=0.5, gamma_language=2.0, epsilon=0, draws=2)
    plan = build_plan(config, TOWERS, trace)
    factual, v1, v2, t1, t2 = (torch.randn(3, 4, 7) for _ in range(5))
    outputs = BaseModelOutputWithPast(last_hidden_state=torch.randn(15, 4, 2))
    adjusted, outputs = plan.contrast(torch.cat([factual, v1, v2, t1, t2]), outputs)
    vision = (v1.log_softmax(-1) + v2.log_softmax(-1)) / 2
    language = (t1.log_softmax(-1) + t2.log_softmax(-1)) / 2
    torch.testing.assert_close(adjusted, 3.5 * factual - 0.5 * vision - 2 * language)
    (step,) = trace.steps
    torch.testing.assert_close(step.vision, vision[:, -1])
    torch.testing.assert_close(step.language, language[:, -1])
    assert step.joint is None
    assert torch.equal(step.factual, factual[:, -1])


def test_folded_features_split_into_their_branches():
    plan = build_plan(CausalMMConfig(mode="vision", draws=2), TOWERS)
    features = torch.randn(3 * 5, 2, 4)
    folded = VisionPass(plan).fold(features)
    assert folded.shape == (5, 2, 12)
    language = LanguagePass(plan)
    assert torch.equal(language.split_features(folded), features[:5])
    assert torch.equal(language.features[0], features[5:])
