"""Compare a batched forward with separate runs of an independent implementation, step by step.

The branches of `dense_branches` are contrasted by the formula of the design.
"""

import math

import torch
from dense_branches import Falsified, branch_logits
from noised_pictures import with_noise
from tiny_models import pad_together

from causalmm import BranchTrace
from causalmm.heads import image_heads, resolve_heads
from causalmm.layers import resolve_layers

STEPS = 9
# A nearly uniform row enlarges rounding errors in any formula of `reverse_and_normalize`.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


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


def check_beams(generate, members, inputs, **settings):
    """Beam search of a batch gives each member what it gets alone: `generate` takes inputs."""
    settings = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True} | settings
    together = generate(inputs, **settings)
    for row, alone in enumerate(members):
        single = generate(alone, **settings)
        rows = slice(2 * row, 2 * row + 2)
        new = single.sequences.shape[1] - alone["input_ids"].shape[1]
        assert torch.equal(together.sequences[rows, -new:], single.sequences[:, -new:])
        torch.testing.assert_close(
            together.sequences_scores[rows], single.sequences_scores, **TOLERANCE
        )


def expected(models, inputs, answer, config, towers):
    """Factual, branch and adjusted logits of one sample by the independent implementation."""
    _, upstream, host = models
    vision_layers = resolve_layers(
        "vision", config.vision_layers, towers.vision_layers, towers.full_vision_layers
    )
    language_layers = resolve_layers(
        "language", config.edited_language_layers, towers.language_layers
    )
    heads = config.language_heads
    heads = image_heads(heads) or resolve_heads(
        "heads", heads, language_layers, towers.language_heads
    )
    variant = "image" if config.language_scope == "image" else config.normalization
    noisy = config.vision_method == "noise"
    vision = {
        "vision": config.vision_method,
        "vision_layers": vision_layers,
        "vision_variant": config.normalization,
    }
    language = {
        "language": config.language_method,
        "language_layers": language_layers,
        "language_heads": heads,
        "language_variant": variant,
    }
    vision = {} if noisy else vision
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
                with_noise(inputs, config.seed, draw, config.noise_step)
                if noisy and branch != "language"
                else inputs,
                answer,
                Falsified(**edit, seed=config.seed, draw=draw),
            )
            for draw in range(config.draws)
        ]
        if config.draws == 1:
            said[branch] = draws[0]
        else:
            said[branch] = torch.stack([draw.log_softmax(-1) for draw in draws]).mean(0)
        strength = strengths[branch] * by_token(config, said["factual"])
        adjusted += strength * (said["factual"] - said[branch])
    if config.epsilon:
        probabilities = said["factual"].softmax(-1)
        kept = probabilities >= config.epsilon * probabilities.amax(-1, keepdim=True)
        step = adjusted.amax(-1, keepdim=True) - adjusted.amin(-1, keepdim=True) + 1024
        adjusted = torch.where(kept, adjusted, adjusted - step)
    return said | {"adjusted": adjusted}


def by_token(config, factual):
    """What multiplies every strength at each of T tokens, [T, 1], of factual logits [T, vocab]."""
    factors = [
        0.0
        if config.confident < 1 and float(logits.softmax(-1).amax()) >= config.confident
        else math.exp(config.forgetting * place) - 1
        if config.schedule == "growing"
        else 1.0
        for place, logits in enumerate(factual, start=1)
    ]
    return torch.tensor(factors).unsqueeze(-1)


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
