"""Noised pictures as rows of the vision encoder's batch equal separate runs of an unpatched model.

Upstream's model decodes each branch alone, from pictures noised by hand (tests/noised_pictures.py).
"""

import pytest
import torch
from dense_branches import attach
from equivalence import TOLERANCE, check
from family_rows import fast_first, row_of
from tiny_models import PICTURES, model_pair, sample

from causalmm import BranchTrace, CausalMMConfig
from causalmm.decoding.shared_image import generate_together
from causalmm.decoding.vision_pass import VisionPass

MODES = ("vision", "multimodal", "joint")


@pytest.fixture(scope="module", params=fast_first(1, ["sdpa", "eager"]))
def models(request, family):
    ours, upstream = model_pair(family, request.param)
    return ours, upstream, attach(upstream, family)


@pytest.mark.parametrize("mode", MODES)
def test_a_padded_batch(models, family, mode):
    config = CausalMMConfig(
        mode=mode, vision_method="noise", noise_step=700, draws=2, seed=5, epsilon=0.02
    )
    check(models, [sample(family, seed=1, before=6), sample(family, seed=2, after=5)], config)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_several_pictures(models, family, cache):
    """Of two sizes, where the family has such: each is noised from its own first place on."""
    config = CausalMMConfig(mode="vision", vision_method="noise", epsilon=0, gamma=0.7)
    pictures = sample(family, seed=6, **row_of(family).two_images)
    check(models, [pictures], config, cache_implementation=cache)


@pytest.mark.parametrize("read", [[-2, -3], [0, -2]])
def test_features_of_any_layer(read):
    """Where the model reads below the first layer, too: noise is there before all of them."""
    ours, upstream = model_pair("llava", "sdpa", vision_feature_layer=read)
    config = CausalMMConfig(mode="vision", vision_method="noise", epsilon=0)
    check((ours, upstream, attach(upstream, "llava")), [sample("llava", seed=3)], config)


@pytest.mark.parametrize("mode", MODES)
def test_prefill_is_decoding(models, family, mode):
    config = CausalMMConfig(mode=mode, vision_method="noise", epsilon=0, seed=2)
    inputs, trace = sample(family, seed=1), BranchTrace()
    settings = {"do_sample": False, "max_new_tokens": 6}
    tokens = models[0].generate(**inputs, causalmm=config, causalmm_trace=trace, **settings)
    whole = dict(inputs, input_ids=tokens, attention_mask=torch.ones_like(tokens))
    if "mm_token_type_ids" in inputs:
        whole["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 6))
    with torch.no_grad():
        logits = models[0](**whole, causalmm=config).logits[0, -7:-1]
    wanted = torch.stack([step.adjusted[0] for step in trace.steps])
    torch.testing.assert_close(logits, wanted, **TOLERANCE)


def test_pictures_encoded_beforehand_and_shared(models, family):
    model, inputs = models[0], sample(family, seed=1)
    config = CausalMMConfig(vision_method="noise", epsilon=0)
    settings = {"do_sample": False, "max_new_tokens": 6}
    alone = model.generate(**inputs, causalmm=config, **settings)
    pictures = {name: inputs[name] for name in PICTURES if name in inputs}
    with torch.no_grad():
        encoded = model.get_image_features(**pictures, causalmm=model.causalmm_plan(config))
    rest = {name: part for name, part in inputs.items() if name != "pixel_values"}
    given = model.generate(
        **rest, mm_encoder_outputs={"image": encoded}, causalmm=config, **settings
    )
    assert torch.equal(given, alone)
    new = alone[:, inputs["input_ids"].shape[1] :]
    shared = generate_together(model, [inputs, inputs], causalmm=config, **settings)
    assert torch.equal(shared, new.expand(2, -1))


def test_modeling_files_that_add_no_noise_are_refused(model, family, monkeypatch):
    """Such as a family of another package may have."""
    monkeypatch.setattr(VisionPass, "add_noise", lambda _self, pixels, *_: pixels)
    with pytest.raises(ValueError, match="vision_method='noise': the modeling files of this model"):
        model(**sample(family, seed=1), causalmm=CausalMMConfig(vision_method="noise"))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_compiled_forward(family, dynamic):
    model = model_pair(family, "sdpa", layers=3)[0]
    inputs = sample(family, seed=1)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, backend="eager", dynamic=dynamic)
    for step in (500, 900):
        config = CausalMMConfig(mode="vision", vision_method="noise", noise_step=step, draws=2)
        with torch.no_grad():
            wanted = model(**inputs, causalmm=config).logits
            found = compiled(**inputs, causalmm=config).logits
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
