"""A plan lays out its rows as documented and contrasts them by the formula."""

from dataclasses import replace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from causalmm import BranchTrace, CausalMMConfig
from causalmm.decoding.language_pass import LanguagePass
from causalmm.decoding.plan import Towers, build_plan
from causalmm.decoding.vision_pass import VisionPass

TOWERS = Towers(vision_layers=6, language_layers=8, language_heads=4)


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
    assert plan.language.layers == (2, 3, 4)
    scoped = build_plan(CausalMMConfig(language_scope="image"), TOWERS)
    assert scoped.language.layers == (2, 3, 4, 5, 6, 7)
    of_32 = build_plan(CausalMMConfig(), replace(TOWERS, language_layers=32))
    assert of_32.language.layers == (10, 11, 12)  # the window that the paper's ablation favours


@pytest.mark.parametrize(
    ("heads", "match"),
    [
        ("4", "head 4 is outside the 4 heads of a decoder layer, 0 to 3"),
        ({0: [1]}, "layer 0 is not edited, which are 2, 3, 4"),
        ("image:5", "'image:5': a decoder layer has 4 heads"),
    ],
)
def test_heads_that_the_model_does_not_have_are_refused(heads, match):
    with pytest.raises(ValueError, match=match):
        build_plan(CausalMMConfig(language_heads=heads), TOWERS)


def test_heads_stand_for_each_edited_layer():
    edit = build_plan(CausalMMConfig(language_heads={2: [3, 0], 4: [1]}), TOWERS).language
    assert edit.edited_heads[2] == (True, False, False, True)
    assert edit.edited_heads[4] == (False, True, False, False)
    assert not any(edit.edited_heads[3])


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
    assert step.unmasked is None
    assert torch.equal(step.factual, factual[:, -1])


def test_a_trace_has_the_logits_before_the_mask_too():
    torch.manual_seed(0)
    trace = BranchTrace()
    outputs = BaseModelOutputWithPast(last_hidden_state=torch.randn(6, 1, 2))
    logits = torch.randn(6, 1, 40)
    masked = build_plan(CausalMMConfig(mode="vision", epsilon=0.5), TOWERS, trace)
    plain = build_plan(CausalMMConfig(mode="vision", epsilon=0), TOWERS)
    adjusted = masked.contrast(logits, outputs)[0]
    wanted = plain.contrast(logits, outputs)[0]
    assert not torch.equal(adjusted, wanted)
    assert torch.equal(trace.steps[0].unmasked, wanted[:, -1])


def test_folded_features_split_into_their_branches():
    plan = build_plan(CausalMMConfig(mode="vision", draws=2), TOWERS)
    features = torch.randn(3 * 5, 2, 4)
    folded = VisionPass(plan).fold(features)
    assert folded.shape == (5, 2, 12)
    language = LanguagePass(plan)
    assert torch.equal(language.split_features(folded), features[:5])
    assert torch.equal(language.features[0], features[5:])
