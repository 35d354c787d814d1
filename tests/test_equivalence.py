"""One batched forward equals separate runs of an independent implementation, at every token.

`dense_branches` decodes each branch alone on an unpatched upstream model, with the design's table
written out on full attention maps and a cache of its own. Here its logits are contrasted by the
formula and compared with what our model's single batched pass says, step by step.
"""

import pytest
import torch
from dense_branches import Falsified, attach, branch_logits
from dense_methods import FORMULAS
from tiny_models import FAMILIES, model_pair, pad_together, sample

from causalmm import BranchTrace, CausalMMConfig
from causalmm.layers import resolve_layers

STEPS = 9
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def models(request, family):
    ours, upstream = model_pair(family, request.param)
    return ours, upstream, attach(upstream, family)


def decode(model, inputs, config, **settings):
    """Our answer [B, T] and the trace of every branch's logits, [B, T, vocab] each."""
    trace = BranchTrace()
    length = inputs["input_ids"].shape[1]
    settings = {"max_new_tokens": STEPS, "do_sample": False} | settings
    tokens = model.generate(**inputs, causalmm=config, causalmm_trace=trace, **settings)
    return tokens[:, length:], stack(trace)


def stack(trace):
    names = trace.steps[0]._fields
    return {
        name: torch.stack([getattr(step, name) for step in trace.steps], dim=1)
        for name in names
        if getattr(trace.steps[0], name) is not None
    }


def expected(models, inputs, answer, config, towers):
    """Factual, branch and adjusted logits of one sample by the independent implementation."""
    _, upstream, host = models
    vision_layers = resolve_layers("vision", config.vision_layers, towers.vision_layers)
    language_layers = resolve_layers("language", config.language_layers, towers.language_layers)
    vision = {"vision": config.vision_method, "vision_layers": vision_layers}
    language = {"language": config.language_method, "language_layers": language_layers}
    edits = {
        "vision": {"vision": vision},
        "language": {"language": language},
        "multimodal": {"vision": vision, "language": language},
        "joint": {"joint": vision | language},
    }[config.mode]
    strengths = {
        "vision": config.vision_strength,
        "language": config.language_strength,
        "joint": config.gamma,
    }
    said = {"factual": branch_logits(upstream, host, inputs, answer, None)}
    adjusted = said["factual"].clone()
    for branch, edit in edits.items():
        draws = [
            branch_logits(
                upstream,
                host,
                inputs,
                answer,
                Falsified(**edit, normalization=config.normalization, seed=config.seed, draw=draw),
            )
            for draw in range(config.draws)
        ]
        if config.draws == 1:
            said[branch] = draws[0]
        else:
            said[branch] = torch.stack([draw.log_softmax(-1) for draw in draws]).mean(0)
        adjusted += strengths[branch] * (said["factual"] - said[branch])
    if config.epsilon:
        probabilities = said["factual"].softmax(-1)
        kept = probabilities >= config.epsilon * probabilities.amax(-1, keepdim=True)
        step = adjusted.amax(-1, keepdim=True) - adjusted.amin(-1, keepdim=True) + 1024
        adjusted = torch.where(kept, adjusted, adjusted - step)
    return said | {"adjusted": adjusted}


def check(models, samples, config, **settings):
    """Compare a (padded) batch with its members run alone by the independent implementation."""
    model = models[0]
    inputs = samples[0] if len(samples) == 1 else pad_together(samples)
    answers, said = decode(model, inputs, config, **settings)
    assert answers.shape[1] >= 8
    for row, alone in enumerate(samples):
        wanted = expected(models, alone, answers[row], config, model.causalmm_towers())
        for name, logits in wanted.items():
            torch.testing.assert_close(
                said[name][row], logits, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
            )
    for name in said.keys() - {"factual", "adjusted"}:
        # The branch differs at every token, not at the first one only.
        gap = (said["factual"].softmax(-1) - said[name].softmax(-1)).abs().amax(-1)
        assert (gap > 1e-4).all(), f"{name} says the same as the factual branch at some step"


@pytest.mark.parametrize("mode", ["vision", "language", "multimodal", "joint"])
def test_every_mode_at_every_token(models, family, mode):
    config = CausalMMConfig(mode=mode, gamma=1.0, epsilon=0, seed=3)
    check(models, [sample(family, seed=1)], config)


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


@pytest.mark.parametrize("mode", ["multimodal", "joint"])
def test_padded_batch_equals_its_members_alone(models, family, mode):
    config = CausalMMConfig(mode=mode, epsilon=0, draws=2, seed=5)
    samples = [
        sample(family, seed=1, before=6, after=4),
        sample(family, seed=2, before=1, after=2),
        sample(family, seed=3, before=3, after=7),
    ]
    check(models, samples, config)


def test_several_images_in_one_prompt(models, family):
    shape = {"images": 2} if family == "llava" else {"grids": ((4, 4), (2, 6))}
    config = CausalMMConfig(vision_method="reversed", language_method="reverse", epsilon=0)
    check(models, [sample(family, seed=6, **shape)], config)


def test_sampled_tokens_are_contrasted_at_every_step_too(models, family):
    torch.manual_seed(0)
    config = CausalMMConfig(epsilon=0)
    check(models, [sample(family, seed=7)], config, do_sample=True, temperature=1.3, top_k=20)
