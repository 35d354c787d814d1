"""What every model of transformers keeps, kept with branches on: for every family and mode.

Padded = alone, cached = uncached, packed = alone, a 4-D mask = the mask it spells out, every kind
of cache honoured or refused; and no way to call a model that takes `causalmm` and runs plainly.
"""

import contextlib

import pytest
import torch
from dense_methods import UNRELEASED, config_settings
from equivalence import TOLERANCE
from family_rows import FAMILIES, TWO_FAMILIES, fast_first, slow_sibling
from packed_rows import LOWEST, additive, block_mask, packed, positions
from tiny_models import PICTURES, model_pair, pad_together, sample
from tiny_words import PAD
from transformers import DynamicCache, GenerationConfig, QuantizedCache, StaticCache
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS

from causalmm import BranchTrace, CausalMMConfig
from causalmm.config import MODES

STEPS = 4
TWO = pytest.mark.parametrize("family", TWO_FAMILIES, indirect=True, scope="module")
"""For what is refused by the keywords of a call, whatever the model."""


def first_for_all(name, values):
    """Over families: the first value for each, the others for two. They are of one meaning."""
    pairs = [(family, value) for family in FAMILIES for value in values]
    pairs = [
        slow_sibling(*pair) for pair in pairs if pair[0] in TWO_FAMILIES or pair[1] == values[0]
    ]
    return pytest.mark.parametrize(("family", name), pairs, indirect=["family"], scope="module")


@pytest.fixture(scope="module", params=fast_first(1, ["sdpa", "eager"]))
def attention(request):
    return request.param


@pytest.fixture(scope="module")
def models(family, attention):
    return model_pair(family, attention)


@pytest.fixture(scope="module")
def model(models):
    return models[0]


@pytest.fixture
def samples(family):
    return [sample(family, seed=1, before=4, after=3), sample(family, seed=2, before=2, after=6)]


def configurations():
    """Each mode, each language method in each scope, heads found in the prompt and
    noise on the pixels, once."""
    language = {"mode": "language", "epsilon": 0, "language_layers": "1:"}
    found = [CausalMMConfig(mode=mode, epsilon=0, draws=2, seed=3) for mode in MODES]
    found += [
        CausalMMConfig(language_method=method, **config_settings(variant), **language)
        for method, variant in UNRELEASED
    ]
    found += [
        CausalMMConfig(
            language_method="blind", language_scope="image", language_heads="image:2", **language
        )
    ]
    found.append(CausalMMConfig(vision_method="noise", epsilon=0, draws=2, seed=3))
    return [
        pytest.param(
            each,
            id=f"{each.mode}-{each.vision_method}-{each.language_method}-{each.language_scope}-"
            f"{each.language_heads}",
        )
        for each in found
    ]


def refused_for_found_heads(config, match):
    """Heads are found once, in a prompt that has a row and a KV cache of its own."""
    if config.language_heads == "all":
        return contextlib.nullcontext()
    return pytest.raises(ValueError, match=match)


@pytest.fixture(params=configurations())
def config(request):
    return request.param


@torch.no_grad()
def logits(model, inputs, config, **options):
    return model(**inputs, causalmm=config, **options).logits


def alone(model, samples, config):
    return torch.cat([logits(model, each, config) for each in samples], dim=1)


def test_sequences_packed_into_a_row_are_those_alone(model, samples, config):
    row, places = packed(model, samples)
    with refused_for_found_heads(config, "image:K.*one prompt a row"):
        found = logits(model, row, config, position_ids=places, use_cache=False)
        torch.testing.assert_close(found, alone(model, samples, config), **TOLERANCE)


@first_for_all("hidden", [LOWEST, -torch.inf, -1e4])
def test_a_block_mask_packs_a_row(model, samples, config, hidden):
    row, places = packed(model, samples)
    mask = additive(block_mask(samples), hidden)
    with refused_for_found_heads(config, "image:K.*one prompt a row"):
        found = logits(model, row, config, position_ids=places, attention_mask=mask)
        torch.testing.assert_close(found, alone(model, samples, config), **TOLERANCE)


@first_for_all("padding_sees", ["nothing", "itself", "as 2-D masks say"])
def test_a_four_dimensional_mask_of_padding(model, samples, config, padding_sees):
    """Whatever the queries at padding see, the others see what they see alone."""
    batch = pad_together(samples)
    real = batch.pop("attention_mask").bool()
    length = real.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None, None, :]
    if padding_sees != "as 2-D masks say":
        seen = seen & real[:, None, :, None]
    if padding_sees == "itself":
        seen = seen | (torch.eye(length, dtype=torch.bool) & ~real[:, None, :, None])
    places = [positions(model, each) for each in samples]
    places = [torch.nn.functional.pad(each, (length - each.shape[-1], 0)) for each in places]
    places = torch.cat(places, dim=places[0].ndim - 2)
    found = logits(model, batch, config, position_ids=places, attention_mask=additive(seen))
    for row, each in enumerate(samples):
        own = logits(model, each, config)
        torch.testing.assert_close(found[row : row + 1, -own.shape[1] :], own, **TOLERANCE)


def test_padded_is_alone(model, samples, config):
    found = logits(model, pad_together(samples), config)
    for row, each in enumerate(samples):
        own = logits(model, each, config)
        torch.testing.assert_close(found[row : row + 1, -own.shape[1] :], own, **TOLERANCE)


def generate(model, inputs, config, **settings):
    return model.generate(
        **inputs,
        causalmm=config,
        return_dict_in_generate=True,
        output_logits=True,
        suppress_tokens=[model.config.image_token_id, PAD],
        **{"max_new_tokens": STEPS, "do_sample": False} | settings,
    )


def same(one, other):
    assert torch.equal(one.sequences, other.sequences)
    for mine, theirs in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_cached_is_uncached(model, samples, config):
    inputs = pad_together(samples)
    with refused_for_found_heads(config, "use_cache=False"):
        same(generate(model, inputs, config), generate(model, inputs, config, use_cache=False))


@pytest.fixture
def idle(model, monkeypatch):
    """A model that fails the test where it does any work."""

    def work(*args, **kwargs):
        raise AssertionError("the model was run")

    tower = model.model.visual if hasattr(model.model, "visual") else model.model.vision_tower
    for part in (tower, model.model.language_model):
        monkeypatch.setattr(part, "forward", work)
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["dynamic", "static", "hybrid"])
def test_a_kind_of_cache_changes_nothing(model, samples, mode, kind):
    inputs, config = pad_together(samples), CausalMMConfig(mode=mode, epsilon=0)
    same(
        generate(model, inputs, config, cache_implementation=kind),
        generate(model, inputs, config),
    )


# "hybrid" is a dynamic cache to transformers. Offloaded ones:
# tests/decoding/test_ways_to_generate.py.
HONOURED = {"dynamic", "static", "hybrid", "offloaded", "offloaded_static"}


@TWO
@pytest.mark.parametrize("kind", sorted({*ALL_CACHE_IMPLEMENTATIONS, "paged"} - HONOURED))
@pytest.mark.parametrize("where", ["keyword", "configuration"])
def test_other_kinds_of_cache_are_refused_before_any_work(idle, samples, kind, where):
    settings = {"cache_implementation": kind}
    if where == "configuration":
        settings = {"generation_config": GenerationConfig(max_new_tokens=2, **settings)}
    with pytest.raises(ValueError, match=r"causalmm does not support .*(cache_implementation)"):
        idle.generate(**samples[0], causalmm=CausalMMConfig(), **settings)


@TWO
def test_generation_that_takes_causalmm_and_would_not_honour_it_is_refused(idle, samples):
    config = CausalMMConfig()
    calls = {
        "continuous batching": lambda: idle.generate_batch([[1, 2]], causalmm=config),
        "continuous .atching": lambda: idle.generate_batch([[1]], causalmm_trace=BranchTrace()),
        "loops from a repository": lambda: idle.generate(
            **samples[0], causalmm=config, custom_generate="somebody/loop"
        ),
        "guidance_scale=2.0": lambda: idle.generate(
            **samples[0], causalmm=config, guidance_scale=2.0
        ),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=f"causalmm does not support .*{words}"):
            call()


@TWO
@pytest.mark.parametrize(
    "settings",
    [{"penalty_alpha": 0.6, "top_k": 4}, {"num_beams": 4, "num_beam_groups": 2},
     {"prompt_lookup_num_tokens": 2}, {"dola_layers": "low"}],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_modes_with_loops_of_their_own_are_refused(idle, samples, settings):
    with pytest.raises(ValueError, match="causalmm does not support"):
        idle.generate(
            **samples[0],
            causalmm=CausalMMConfig(),
            max_new_tokens=2,
            trust_remote_code=True,  # else transformers stops first, asking for it
            **settings,
        )


@TWO
def test_an_assistant_model_is_refused(model, models, samples):
    with pytest.raises(ValueError, match="causalmm does not support assisted_generation"):
        generate(model, samples[0], CausalMMConfig(), assistant_model=models[1])


@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_cache_is_continued_only_by_the_plan_that_filled_it(model, samples, mode, monkeypatch):
    config = None if mode is None else CausalMMConfig(mode=mode, epsilon=0)
    inputs = samples[0]
    filled = generate(model, inputs, config)
    others = {
        each: None if each is None else CausalMMConfig(mode=each, epsilon=0)
        for each in (None, *MODES)
    }
    layouts = {
        name: None if other is None else model.causalmm_plan(other).branches_in_layer
        for name, other in others.items()
    }
    text = {name: part for name, part in inputs.items() if "pixel" not in name}
    text["input_ids"] = torch.cat([filled.sequences, filled.sequences[:, -1:]], dim=1)
    longer = text["input_ids"].shape[1]
    text["attention_mask"] = torch.ones(1, longer, dtype=torch.long)
    if "mm_token_type_ids" in text:
        kinds = text["mm_token_type_ids"]
        text["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, longer - kinds.shape[1]))

    def rows(name):
        return [1 if layouts[name] is None else layouts[name](layer) for layer in range(4)]

    def work(*args, **kwargs):
        raise AssertionError("the model was run")

    monkeypatch.setattr(model.model.language_model, "forward", work)
    for name, other in others.items():
        if rows(name) == rows(mode):
            continue
        for call in (
            lambda other=other: model.generate(
                **text, causalmm=other, past_key_values=filled.past_key_values
            ),
            lambda other=other: model(
                input_ids=text["input_ids"][:, -1:],
                causalmm=other,
                past_key_values=filled.past_key_values,
            ),
        ):
            with pytest.raises(ValueError, match="continue a cache only with the CausalMM config"):
                call()


@TWO
@pytest.mark.parametrize("mode", MODES)
def test_a_quantised_cache_is_refused_as_an_object_too(idle, samples, mode):
    config = CausalMMConfig(mode=mode)
    cache = QuantizedCache("fp8", idle.config)
    for call in (idle.generate, idle):
        with pytest.raises(ValueError, match="does not support past_key_values of type Quantized"):
            call(**samples[0], causalmm=config, past_key_values=cache)


@pytest.mark.parametrize("mode", MODES)
def test_pictures_encoded_beforehand(family, model, samples, mode, monkeypatch):
    """With the plan that uses them, they are what `generate` encodes; without, they are refused."""
    config, inputs = CausalMMConfig(mode=mode, epsilon=0), samples[0]
    plan = model.causalmm_plan(config)
    pixels = {name: inputs[name] for name in PICTURES if name in inputs}
    rest = {name: part for name, part in inputs.items() if name != "pixel_values"}

    @torch.no_grad()
    def encoded(plan):
        return {"image": model.model.get_image_features(**pixels, causalmm=plan, return_dict=True)}

    torch.testing.assert_close(
        logits(model, rest, config, mm_encoder_outputs=encoded(plan)),
        logits(model, inputs, config),
        **TOLERANCE,
    )
    if mode == "language":  # no counterfactual pictures: the same features
        return
    for made, used in ((None, config), (plan, None)):
        features = encoded(made)

        def work(*args, **kwargs):
            raise AssertionError("the model was run")

        with monkeypatch.context() as patch:
            patch.setattr(model.model.language_model, "forward", work)
            for call in (model.generate, model):
                with pytest.raises(ValueError, match="encode pictures with the CausalMM config"):
                    call(**rest, causalmm=used, mm_encoder_outputs=dict(features))


@TWO
@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.zeros(1, 4, 25, 25), "differs between heads"),
        (torch.full((1, 1, 25, 25), -1.0), "hidden or visible"),
        (torch.ones(1, 1, 25, 25, dtype=torch.long), "hidden or visible"),
    ],
)
def test_a_mask_that_says_more_than_what_is_seen_is_refused(model, samples, mask, words):
    length = samples[0]["input_ids"].shape[1]
    inputs = samples[0] | {"attention_mask": mask[..., :1, :1].expand(-1, -1, length, length)}
    with pytest.raises(ValueError, match=words):
        logits(model, inputs, CausalMMConfig(), position_ids=positions(model, samples[0]))


def test_packing_that_cannot_be_followed_is_refused(family, samples):
    """Flash attention keeps sequences apart by their positions, in one row only."""
    model = model_pair(family, "sdpa")[0]
    row, places = packed(model, samples)
    model.config.text_config._attn_implementation = "flash_attention_2"
    for cached in (True, False):
        with pytest.raises(ValueError, match="packs several sequences"):
            logits(model, row, CausalMMConfig(), position_ids=places, use_cache=cached)


def test_with_a_cache_positions_pack_nothing(models, samples):
    """As transformers has it: the factual row is upstream's, and edited rows see as much."""
    model, upstream = models
    row, places = packed(model, samples)
    trace = BranchTrace()
    with torch.no_grad():
        plan = model.causalmm_plan(CausalMMConfig(mode="language", epsilon=0), trace)
        cache = DynamicCache(config=model.config.get_text_config())
        model(**row, causalmm=plan, position_ids=places, past_key_values=cache)
        cache = DynamicCache(config=model.config.get_text_config())
        wanted = upstream(**row, position_ids=places, past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(trace.steps[0].factual, wanted, **TOLERANCE)


def test_a_static_cache_object(model, samples):
    config, inputs = CausalMMConfig(epsilon=0), samples[0]
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=60)
    same(generate(model, inputs, config, past_key_values=cache), generate(model, inputs, config))


@TWO
def test_logits_that_are_not_finite_stop_generation(family, samples):
    model = model_pair(family, "sdpa")[0]
    with torch.no_grad():
        model.lm_head.weight[9] = torch.nan
    for sampling in (True, False):
        with pytest.raises(RuntimeError, match="the adjusted logits of the token after .* finite"):
            generate(model, samples[0], CausalMMConfig(), do_sample=sampling)


def test_a_loss_of_adjusted_logits_is_finite(model, samples):
    """Labels are ruled out by epsilon more often than not."""
    inputs = samples[0]
    with torch.no_grad():
        output = model(**inputs, causalmm=CausalMMConfig(epsilon=1.0), labels=inputs["input_ids"])
    assert output.loss.isfinite()
    assert output.loss > 100


@TWO
@pytest.mark.parametrize("constraint", ["prefix_allowed_tokens_fn", "suppress_tokens", "bad_words"])
def test_constraints_choose_among_ruled_out_tokens_as_plain_decoding_does(
    model, samples, constraint
):
    """All allowed tokens are suppressed: what is left keeps its order under the mask alone."""
    config, inputs = CausalMMConfig(gamma=0.0, epsilon=1.0), samples[0]
    best = int(logits(model, inputs, None)[0, -1].argmax())
    allowed = [token for token in range(20, 25) if token != best]
    settings = {
        "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": lambda *_: allowed},
        "suppress_tokens": {"suppress_tokens": [best]},
        "bad_words": {"bad_words_ids": [[best]]},
    }[constraint]
    found, plain = (
        model.generate(**inputs, causalmm=each, max_new_tokens=1, do_sample=False, **settings)
        for each in (config, None)
    )
    assert torch.equal(found, plain)
    assert int(found[0, -1]) != best


def test_beams_are_different_and_finite_below_the_mask(model, samples):
    found = generate(
        model, samples[0], CausalMMConfig(epsilon=1.0), num_beams=4, num_return_sequences=4,
        output_scores=True,
    )  # fmt: skip
    assert len({tuple(row.tolist()) for row in found.sequences}) == 4
    assert (found.sequences_scores > -1e5).all()


@TWO
def test_tensor_parallel_models_are_refused(family, samples):
    model = model_pair(family, "sdpa")[0]
    model._tp_size = 2
    with pytest.raises(ValueError, match="does not support tensor parallelism"):
        model.causalmm_plan(CausalMMConfig())


def test_other_features_than_the_configured_are_refused(samples):
    model = model_pair("llava", "sdpa")[0]
    inputs = sample("llava", seed=1)
    for asked in ({"vision_feature_layer": -3}, {"vision_feature_select_strategy": "full"}):
        name = next(iter(asked))
        for call in (model, model.generate):
            with pytest.raises(ValueError, match=f"{name}=.*causalmm edits what"):
                call(**inputs, causalmm=CausalMMConfig(), **asked)
