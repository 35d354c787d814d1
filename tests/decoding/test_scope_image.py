"""Scope "image" and heads found in the prompt: identities of whole models.

Against the dense definition they are compared in tests/decoding/test_equivalence.py, and beside
padding, packing and caches in tests/decoding/test_contracts.py.
"""

import pytest
import torch
from equivalence import check_beams
from family_rows import row_of
from packed_rows import additive, positions
from test_shared_image import GREEDY, prompts
from tiny_models import model_pair, sample
from tiny_words import words
from transformers import StaticCache

from causalmm import BranchTrace, CausalMMConfig
from causalmm.decoding import language_pass
from causalmm.decoding.shared_image import generate_together
from causalmm.figures.recording import attention_modules

SETTINGS = (
    {"language_method": "blind"},
    {"language_method": "random", "draws": 2},
    {"language_method": "uniform", "language_heads": "image:2"},
)


@pytest.fixture(params=SETTINGS, ids=lambda each: "-".join(map(str, each.values())))
def config(request):
    return CausalMMConfig(
        mode="language", language_scope="image", language_layers="1:", epsilon=0, **request.param
    )


def image_tokens(model, inputs):
    tokens = [getattr(model.config, f"{medium}_token_id", -1) for medium in ("image", "video")]
    return torch.isin(inputs["input_ids"], torch.tensor(tokens))


@torch.no_grad()
@pytest.mark.parametrize("images", ["one", "two"])
def test_blind_on_all_layers_is_upstream_with_image_keys_masked(family, images):
    model, upstream = model_pair(family, "eager")
    shape = row_of(family).two_images if images == "two" else {}
    inputs = sample(family, seed=1, **shape)
    config = CausalMMConfig(
        mode="language", language_method="blind", language_scope="image", language_layers="all"
    )
    trace = BranchTrace()
    places = positions(model, inputs)
    model(**inputs, causalmm=model.causalmm_plan(config, trace), position_ids=places)
    image = image_tokens(model, inputs)[0]
    seen = torch.ones(len(image), len(image), dtype=torch.bool).tril()
    seen &= ~(image & ~image[:, None])
    masked = inputs | {"attention_mask": additive(seen[None, None])}
    expected = upstream(**masked, position_ids=places).logits[:, -1]
    torch.testing.assert_close(trace.steps[0].language, expected, atol=1e-4, rtol=1e-4)


def test_without_an_image_the_branch_is_factual(family, model, config, monkeypatch):
    warned = []
    monkeypatch.setattr(language_pass.logger, "warning_once", warned.append)
    ids = torch.tensor([words(6, seed=3)])
    trace = BranchTrace()
    tokens = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), causalmm=config, causalmm_trace=trace,
        **GREEDY,
    )  # fmt: skip
    for step in trace.steps:
        said = (logits.log_softmax(dim=-1) for logits in (step.language, step.factual))
        torch.testing.assert_close(*said, atol=1e-4, rtol=1e-4)
    plain = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)
    assert torch.equal(tokens, plain)
    assert set(warned) == {language_pass._NO_IMAGE}


def test_a_shared_picture_gives_each_prompt_its_answer_alone(family, model, config):
    rows = prompts(family)
    trace = BranchTrace()
    together = generate_together(model, rows, causalmm=config, causalmm_trace=trace, **GREEDY)
    for number, row in enumerate(rows):
        single = BranchTrace()
        alone = model.generate(**row, causalmm=config, causalmm_trace=single, **GREEDY)
        assert torch.equal(together[number], alone[0, row["input_ids"].shape[1] :])
        for one, other in zip(trace.steps, single.steps, strict=True):
            torch.testing.assert_close(one.language[number], other.language[0], atol=1e-4, rtol=0)


def test_a_static_cache_is_a_dynamic_one(family, model, inputs, config):
    def said(**cache):
        trace = BranchTrace()
        model.generate(**inputs, causalmm=config, causalmm_trace=trace, **GREEDY, **cache)
        return torch.stack([step.language for step in trace.steps])

    static = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    torch.testing.assert_close(said(past_key_values=static), said(), atol=1e-4, rtol=1e-4)


def test_beams_of_a_batch_are_those_of_its_members(family, model, inputs, config):
    def generate(given, **settings):
        settings = GREEDY | {"return_dict_in_generate": True} | settings
        return model.generate(**given, causalmm=config, **settings)

    members = (sample(family, seed=1, before=4), sample(family, seed=2))
    check_beams(generate, members, inputs)


def test_heads_stay_those_of_the_prompt(family, model):
    """Of the factual rows' attention in the prompt, in steps and in a later turn too."""
    config = CausalMMConfig(
        mode="language", language_scope="image", language_method="blind", language_heads="image:1",
        language_layers="1:",
    )  # fmt: skip
    inputs = sample(family, seed=4)
    output = model.generate(
        **inputs, causalmm=config, return_dict_in_generate=True, use_cache=True, **GREEDY
    )
    heads = output.past_key_values.layers[0].state.heads
    layers = len(attention_modules(model.get_decoder()))
    assert heads.shape == (1, layers, model.config.get_text_config().num_attention_heads)
    assert heads.sum(dim=-1).tolist() == [[0] + [1] * (layers - 1)]
    more = torch.cat([output.sequences, torch.tensor([words(2, seed=9)])], dim=1)
    again = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    cache = output.past_key_values
    model.generate(**again, past_key_values=cache, causalmm=config, **GREEDY)
    assert torch.equal(cache.layers[0].state.heads, heads)


def test_heads_are_not_found_where_no_text_follows_the_image(family, model):
    config = CausalMMConfig(language_heads="image:1")
    inputs = sample(family, seed=4)
    last = int(image_tokens(model, inputs)[0].nonzero()[-1]) + 1
    sequences = {"input_ids", "attention_mask", "mm_token_type_ids"} & inputs.keys()
    cut = inputs | {name: inputs[name][:, :last] for name in sequences}
    with pytest.raises(ValueError, match="expected images and the text after them in one call"):
        model(**cut, causalmm=config)
