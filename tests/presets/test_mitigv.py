"""Presets give the tokens of the independent package mitigv, greedy and by the same random stream.

Both draw a token by one call of `torch.multinomial` on the probabilities of that step, so that the
same seed draws the same tokens wherever these are the same; they are compared, too. It has two or
more forwards a token, over upstream's model.
"""

import pytest
import torch
from tiny_models import model_pair, pad_together, sample
from transformers import LlavaForConditionalGeneration

from causalmm import CausalMMConfig
from causalmm.counterfactual.pixel_noise import noised
from causalmm.families.loading import load
from causalmm.families.registry import find
from causalmm.inputs.messages import one_turn
from causalmm.toyworld import CHECKPOINTS
from causalmm.toyworld.scenes import scene

pytest.importorskip("mitigv")

from mitigv.algorithms.m3id import M3ID
from mitigv.algorithms.vcd import VCD
from mitigv.perturbations import build_perturbation
from mitigv_runs import NOISE, answer

TOKENS = 12
M3ID_SETTINGS = {"forgetting": 0.2, "confident": 0.8}
"""Stronger and more often than published, so that few tokens show it."""
SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


@pytest.fixture(scope="module")
def tiny():
    """Our model, upstream's and a batch of two prompts of different lengths."""
    inputs = pad_together([sample("llava", seed=1, before=4), sample("llava", seed=2)])
    return *model_pair("llava", "sdpa"), inputs


@pytest.fixture(scope="module")
def demo():
    """The same of the demonstration model, with two drawn scenes."""
    folder = CHECKPOINTS / "demo-llava"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("demo-llava is not in this checkout")
    ours, processor = load(str(folder), device="cpu")
    upstream = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ours.generation_config.eos_token_id = None  # as many tokens on both sides
    prompts = find("llava").prompts()
    asked = ("Describe the image.", "Is there a dog in the image?")
    prepared = [
        prompts.prepare(processor, one_turn([scene(number).image], text))
        for number, text in enumerate(asked)
    ]
    return ours, upstream, dict(prompts.join(processor, prepared))


@pytest.fixture(params=["tiny", "demo"])
def models(request):
    return request.getfixturevalue(request.param)


def check(models, config, algorithm, sampled, **settings):
    """The same tokens, drawn from the same probabilities."""
    ours, upstream, inputs = models
    torch.manual_seed(4)
    theirs = answer(algorithm, upstream, inputs, TOKENS, do_sample=sampled, **settings)
    torch.manual_seed(4)
    mine = ours.generate(
        **inputs,
        causalmm=config,
        max_new_tokens=TOKENS,
        return_dict_in_generate=True,
        output_logits=True,
        **(SAMPLED if sampled else {"do_sample": False}),
    )
    probabilities = torch.stack(mine.logits, dim=1).softmax(dim=-1)
    torch.testing.assert_close(probabilities, theirs.probabilities, atol=1e-5, rtol=1e-3)
    assert torch.equal(mine.sequences[:, inputs["input_ids"].shape[1] :], theirs.tokens)
    plain = ours.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    assert sampled or not torch.equal(mine.sequences, plain)


@pytest.mark.parametrize("sampled", [False, True])
def test_vcd(models, sampled):
    config = CausalMMConfig.preset("vcd", seed=3)
    noise = {"seed": 3, "noise_step": config.noise_step}
    check(
        models, config, VCD, sampled,
        alpha=config.gamma, beta=config.epsilon, distortion=NOISE, distortion_kwargs=noise,
    )  # fmt: skip


@pytest.mark.parametrize("sampled", [False, True])
def test_m3id(models, sampled):
    """Its model without a picture is given the prompt with the picture's tokens hidden, in place:
    by itself, mitigv leaves them out, which moves the text behind them."""
    config = CausalMMConfig.preset("m3id", **M3ID_SETTINGS)
    check(
        models, config, M3ID, sampled,
        alpha=config.confident, forgetting_rate=config.forgetting,
    )  # fmt: skip


@pytest.mark.parametrize("step", [0, 500, 999])
def test_noise_is_mixed_in_alike(monkeypatch, step):
    pixels, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: noise)
    theirs = build_perturbation("diffusion_noise", noise_step=step)(pixels)
    torch.testing.assert_close(noised(pixels, noise, step), theirs)
