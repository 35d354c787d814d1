"""The state of cached keys follows whatever is done to a cache, and calls that contradict it stop.

What continues a cache is held to the same call without one, from the pictures on.
"""

import copy
import pickle

import pytest
import torch
from family_rows import TWO_FAMILIES
from packed_rows import additive, block_mask, packed, positions
from tiny_models import model_pair, sample
from tiny_words import IMAGE, PAD, words
from torch.nn.functional import pad
from transformers import DynamicCache, StaticCache

from causalmm import BranchTrace, CausalMMConfig
from causalmm.config import MODES
from causalmm.decoding.kv_cache import BranchStaticLayer
from causalmm.decoding.shared_image import generate_together

STEPS = 5
TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")


@pytest.fixture(scope="module", params=TWO_FAMILIES)
def family(request):
    """What is kept with a cache differs by positions: without M-RoPE and with it."""
    return request.param


@pytest.fixture(params=[*MODES, "growing"])
def config(request):
    """Each mode, and strengths that count the tokens of an answer."""
    settings = {"epsilon": 0, "draws": 2, "seed": 3}
    if request.param == "growing":
        settings |= {"schedule": "growing", "forgetting": 0.1}
    else:
        settings["mode"] = request.param
    return CausalMMConfig(**settings)


def generate(model, inputs, config, **settings):
    return model.generate(
        **inputs,
        causalmm=config,
        return_dict_in_generate=True,
        output_logits=True,
        suppress_tokens=[IMAGE, PAD],
        **{"max_new_tokens": STEPS, "do_sample": False} | settings,
    )


def chosen(inputs, samples):
    """The inputs of these samples of a batch, padding and pictures included."""
    batch = len(inputs["input_ids"])
    return {
        name: part.unflatten(0, (batch, -1))[samples].flatten(0, 1) for name, part in inputs.items()
    }


def prolonged(inputs, tokens):
    """The inputs of prompts that go on: `tokens` begin with the prompts."""
    further = tokens.shape[1] - inputs["input_ids"].shape[1]
    longer = inputs | {"input_ids": tokens}
    longer["attention_mask"] = pad(inputs["attention_mask"], (0, further), value=1)
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = pad(inputs["mm_token_type_ids"], (0, further))
    return longer


def asked_on(inputs, said, seed):
    """The next turn: what was said, and words of a user."""
    text = torch.tensor([words(3, seed + row) for row in range(len(said))])
    return prolonged(inputs, torch.cat([said, text], dim=1))


def check_continues(model, cache, turn, config):
    rest = {name: part for name, part in turn.items() if name != "pixel_values"}
    found = generate(model, rest, config, past_key_values=cache)
    wanted = generate(model, turn, config)
    assert torch.equal(found.sequences, wanted.sequences)
    for one, other in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def state(cache):
    assert all(layer.state is None for layer in cache.layers[1:])
    return cache.layers[0].state


def check_state(cache, inputs, new):
    """What the prompt says of its keys is what the state says; `new` keys are plain text."""
    held, batch = state(cache), len(inputs["input_ids"])
    real = torch.ones(1, 1) if held.real is None else held.real
    image = inputs["input_ids"] == IMAGE
    length = image.shape[1]
    expected = pad(inputs["attention_mask"].bool(), (0, new), value=True)
    assert torch.equal(
        real.bool().expand(batch, -1)[:, : length + new], expected[:, : real.shape[1]]
    )
    expected = pad(image, (0, max(0, held.image.shape[1] - length)))
    assert torch.equal(pad(held.image, (0, max(0, length - held.image.shape[1]))), expected)
    assert held.packed is None or not held.packed.any()


# -- what is done to a cache -------------------------------------------------------------------


def test_a_cropped_cache_goes_on_elsewhere(model, inputs, config):
    first = generate(model, inputs, config)
    cache = first.past_key_values
    cache.crop(-2)
    check_state(cache, inputs, STEPS - 3)
    check_continues(model, cache, asked_on(inputs, first.sequences[:, :-3], 50), config)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_go_on_each_by_itself(model, inputs, config, copied):
    first = generate(model, inputs, config)
    twin = copied(first.past_key_values)
    for seed, cache in ((60, twin), (70, first.past_key_values)):
        check_continues(model, cache, asked_on(inputs, first.sequences, seed), config)


@pytest.mark.parametrize(
    ("operation", "argument", "samples"),
    [
        ("batch_select_indices", torch.tensor([1]), [1]),
        ("batch_select_indices", torch.tensor([True, False]), [0]),
        ("reorder_cache", torch.tensor([1, 0]), [1, 0]),
        ("reorder_cache", torch.tensor([1, 1]), [1, 1]),
        ("batch_repeat_interleave", 2, [0, 0, 1, 1]),
    ],
)
def test_samples_of_a_cache_are_named_as_without_branches(
    model, inputs, config, operation, argument, samples
):
    first = generate(model, inputs, config)
    cache = first.past_key_values
    getattr(cache, operation)(argument)
    if hasattr(model.model, "rope_deltas"):  # upstream keeps them in the model, a row a sample
        model.model.rope_deltas = model.model.rope_deltas[samples]
    mine = chosen(inputs, samples)
    check_state(cache, mine, STEPS - 1)
    check_continues(model, cache, asked_on(mine, first.sequences[samples], 80), config)


@pytest.mark.parametrize("kind", ["dynamic", "lazy", "static", "early"])
def test_a_reset_cache_is_empty_for_any_plan(model, inputs, kind):
    text = model.config.get_text_config()
    cache = {
        "dynamic": lambda: DynamicCache(config=text),
        "lazy": DynamicCache,
        "static": lambda: StaticCache(config=text, max_cache_len=60),
        "early": lambda: StaticCache(config=text, max_cache_len=60),
    }[kind]()
    if kind == "early":
        heads, size = text.num_key_value_heads, text.hidden_size // text.num_attention_heads
        cache.early_initialization(2, heads, size, torch.float32, torch.device("cpu"))
    joint = CausalMMConfig(mode="joint", epsilon=0)
    for each in (joint, None, CausalMMConfig(epsilon=0), joint):
        found = generate(model, inputs, each, past_key_values=cache)
        assert torch.equal(found.sequences, generate(model, inputs, each).sequences)
        cache.reset()


def test_a_cache_cropped_to_nothing_is_empty_too(model, inputs, config):
    cache = generate(model, inputs, config).past_key_values
    cache.crop(-cache.get_seq_length())
    found = generate(model, inputs, CausalMMConfig(epsilon=0), past_key_values=cache)
    wanted = generate(model, inputs, CausalMMConfig(epsilon=0))
    assert torch.equal(found.sequences, wanted.sequences)


# -- what is kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"prefill_chunk_size": 7}, {"num_beams": 3},
                                      {"cache_implementation": "static"}], ids=str)  # fmt: skip
def test_padding_and_image_tokens_of_a_cache(model, inputs, config, settings):
    found = generate(model, inputs, config, **settings)
    beams = settings.get("num_beams", 1)
    mine = {name: part.repeat_interleave(beams, 0) for name, part in inputs.items() if name in TEXT}
    if beams > 1:  # which sample a row is of, beam search does not change
        assert len(state(found.past_key_values).image) == 2 * beams
    check_state(found.past_key_values, mine, STEPS - 1)


def test_static_layers_keep_it_too(model, inputs, config):
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=60)
    first = generate(model, inputs, config, past_key_values=cache)
    assert {type(layer) for layer in cache.layers} == {BranchStaticLayer}
    check_continues(model, cache, asked_on(inputs, first.sequences, 90), config)


def test_prompts_that_share_a_cache(family, model, config, monkeypatch):
    begun = sample(family, seed=1)
    rows = [prolonged(begun, torch.cat([begun["input_ids"], torch.tensor([words(length, 9)])], 1))
            for length in (2, 5)]  # fmt: skip
    caches = []
    original = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **call: caches.append(call["past_key_values"]) or original(**call)
    )
    generate_together(model, rows, causalmm=config, max_new_tokens=3, do_sample=False)
    held = state(caches[0])
    image = begun["input_ids"] == IMAGE
    assert torch.equal(held.image[:, : image.shape[1]], image.repeat(2, 1))
    hidden = (~held.real).sum(dim=1).tolist()
    assert hidden == [3, 0]


# -- what is refused ---------------------------------------------------------------------------

BASE = {"mode": "multimodal", "vision_layers": "all", "epsilon": 0}
NOISE = BASE | {"vision_method": "noise"}
OTHERS = [
    (BASE, None, "filled with mode='multimodal', this call is made without branches"),
    (None, BASE, "filled without branches, this call is made with mode='multimodal'"),
    (BASE, BASE | {"mode": "joint"}, "mode='multimodal', .* mode='joint'"),
    ({"mode": "vision"}, {"mode": "joint"}, "mode='vision', .* mode='joint'"),
    (BASE, BASE | {"seed": 4}, "vision_seed=0, .* vision_seed=4"),
    (BASE, BASE | {"draws": 2}, "vision_draws=1, .* vision_draws=2"),
    (BASE, BASE | {"language_method": "uniform"}, "language_method='random', .*='uniform'"),
    (BASE, BASE | {"vision_method": "uniform"}, "vision_method='random', .*='uniform'"),
    (BASE, BASE | {"vision_method": "noise"}, "vision_method='random', .*='noise'"),
    (NOISE, BASE, "vision_method='noise', .*='random'"),
    (NOISE, NOISE | {"noise_step": 501}, "vision_noise_step=500, .*=501"),
    (NOISE, NOISE | {"seed": 4}, "vision_seed=0, .*=4"),
    (BASE, BASE | {"language_layers": "2:"}, r"language_layers=\[1, 2, 3\], .*=\[2, 3\]"),
    (BASE, BASE | {"language_scope": "image"}, "language_scope='all', .*='image'"),
    (BASE, BASE | {"language_heads": "1"}, "language_heads='all', .*='1'"),
    (BASE, BASE | {"language_heads": "image:1"}, "language_heads='all', .*='image:1'"),
    (BASE, BASE | {"vision_layers": "1:"}, r"vision_layers=\[0, 1, 2\], .*=\[1, 2\]"),
    (BASE, BASE | {"normalization": "released"}, "normalization='visible', .*='released'"),
]


def plan_of(model, settings):
    return None if settings is None else model.causalmm_plan(CausalMMConfig(**settings))


@pytest.fixture
def idle(model, monkeypatch):
    """Turns a model into one whose decoder and image encoder fail the test where they are run."""

    def work(*args, **kwargs):
        raise AssertionError("the model was run")

    def stop():
        tower = model.model.visual if hasattr(model.model, "visual") else model.model.vision_tower
        for part in (tower, model.model.language_model):
            monkeypatch.setattr(part, "forward", work)

    return stop


@pytest.mark.parametrize(("filled", "used", "words"), OTHERS)
def test_another_configuration_is_refused_by_name(model, inputs, idle, filled, used, words):
    first = generate(model, inputs, plan_of(model, filled))
    cache, turn = first.past_key_values, asked_on(inputs, first.sequences, 60)
    rest = {name: part for name, part in turn.items() if name != "pixel_values"}
    idle()
    for call in (
        lambda: generate(model, rest, plan_of(model, used), past_key_values=cache),
        lambda: model(input_ids=turn["input_ids"][:, -1:], causalmm=plan_of(model, used),
                      past_key_values=cache),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{words}.*: continue a cache only with") as error:
            call()
        assert "\n" not in str(error.value)


def test_another_site_is_refused(idle):
    model = model_pair("llava", "sdpa")[0]
    inputs = sample("llava", seed=1)
    cache = generate(model, inputs, CausalMMConfig()).past_key_values
    with pytest.raises(ValueError, match="site='attention', .* site='features'"):
        model(input_ids=torch.tensor([[9]]), causalmm=CausalMMConfig(site="features"),
              past_key_values=cache)  # fmt: skip


@pytest.mark.parametrize("other", [
    {"gamma": 0.3}, {"epsilon": 0.2}, {"language_method": "uniform", "seed": 9},
    {"schedule": "growing", "forgetting": 0.2, "confident": 0.5},
])  # fmt: skip
def test_what_leaves_the_same_keys_goes_on(model, inputs, other):
    method = {name: value for name, value in other.items() if name == "language_method"}
    filled = CausalMMConfig(mode="language", epsilon=0, **method)
    used = CausalMMConfig(**{"mode": "language", "epsilon": 0} | other)
    first = generate(model, inputs, filled)
    turn = asked_on(inputs, first.sequences, 50)
    rest = {name: part for name, part in turn.items() if name != "pixel_values"}
    found = generate(
        model, rest, used, past_key_values=first.past_key_values, causalmm_trace=BranchTrace()
    )
    assert torch.equal(found.sequences, generate(model, turn, used).sequences)


def test_a_plan_without_branches_and_none_leave_the_same_keys(model, inputs):
    mask_only = CausalMMConfig(gamma=0, epsilon=0.2)
    for filled, used in ((None, mask_only), (mask_only, None)):
        first = generate(model, inputs, filled)
        check_continues(model, first.past_key_values, asked_on(inputs, first.sequences, 50), used)


def test_a_batch_of_another_size_is_refused(model, inputs, config, idle):
    first = generate(model, inputs, config)
    turn = chosen(asked_on(inputs, first.sequences, 50), [0])
    turn.pop("pixel_values")
    idle()
    with pytest.raises(ValueError, match="hold 2 samples, this call has 1: continue a cache with"):
        generate(model, turn, config, past_key_values=first.past_key_values)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("change", ["padding is seen", "no mask", "real keys are hidden"])
def test_a_mask_that_contradicts_the_padding_is_refused(model, inputs, config, kind, change):
    first = generate(model, inputs, config, cache_implementation=kind)
    mask = prolonged(inputs, first.sequences)["attention_mask"]
    if change == "padding is seen":
        mask = torch.ones_like(mask)
    new = first.sequences[:, -1:]
    axes = (4, 2, 1) if "image_grid_thw" in inputs else (2, 1)
    place = torch.full(axes, mask.shape[1] - 1)
    if change == "real keys are hidden":
        mask[1, -3] = 0
    elif change == "no mask":
        mask = None
    with pytest.raises(ValueError, match="attention_mask contradicts the padding"):
        model(input_ids=new, attention_mask=mask, position_ids=place, causalmm=config,
              past_key_values=first.past_key_values)  # fmt: skip


def test_padding_between_turns_is_remembered(model, inputs, config):
    """Rows of which one asks less: the hole is padding from then on."""
    first = generate(model, inputs, config)
    turn = asked_on(inputs, first.sequences, 50)
    turn["attention_mask"][0, -2:] = 0
    rest = {name: part for name, part in turn.items() if name != "pixel_values"}
    again = generate(model, rest, config, past_key_values=first.past_key_values)
    held = state(again.past_key_values).real
    assert torch.equal(held[:, : turn["attention_mask"].shape[1]], turn["attention_mask"].bool())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("config", MODES, indirect=True)  # a forward without cache counts nothing
def test_a_packed_cache_is_continued_with_a_mask_that_says_the_sequence(
    family, model, config, kind
):
    samples = [sample(family, seed=1, before=4), sample(family, seed=2)]
    row, places = packed(model, samples)
    text = model.config.get_text_config()
    cache = DynamicCache() if kind == "dynamic" else StaticCache(config=text, max_cache_len=80)
    mask = block_mask(samples)
    length = mask.shape[-1]
    width = length if kind == "dynamic" else 80
    given = {"causalmm": config, "past_key_values": cache, "use_cache": True}
    model(
        **row, position_ids=places, attention_mask=additive(pad(mask, (0, width - length))), **given
    )
    assert state(cache).packed.any()
    longer = prolonged(samples[1], torch.cat([samples[1]["input_ids"], torch.tensor([[9]])], dim=1))
    step = {"input_ids": torch.tensor([[9]]), "position_ids": positions(model, longer)[..., -1:]}
    for wrong in (None, torch.ones(1, length + 1, dtype=torch.long)):
        with pytest.raises(ValueError, match="hold several sequences packed into a row"):
            model(**step, attention_mask=wrong, **given)
    seen = pad(mask[:, :, -1:], (0, 1), value=True)
    width = length + 1 if kind == "dynamic" else 80
    seen = additive(pad(seen, (0, width - length - 1)))
    found = model(**step, attention_mask=seen, **given).logits[:, -1]
    wanted = model(**longer, causalmm=config, use_cache=False).logits[:, -1]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_static_cache_of_the_callers_is_refused_where_all_keys_count(model, inputs):
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=60)
    config = CausalMMConfig(normalization="released")
    with pytest.raises(ValueError, match="counts all keys"):
        generate(model, inputs, config, past_key_values=cache)


def test_a_cache_whose_first_call_failed_is_empty(model, inputs):
    length = inputs["input_ids"].shape[1]
    window = torch.ones(2, 1, length, length, dtype=torch.bool).tril().triu(-2)
    axes = (4, 2, -1) if "image_grid_thw" in inputs else (2, -1)
    call = inputs | {"attention_mask": window, "position_ids": torch.arange(length).expand(axes)}
    cache, other = DynamicCache(), CausalMMConfig(epsilon=0)
    with pytest.raises(ValueError, match="one position for each key"):
        model(**call, causalmm=CausalMMConfig(mode="language"), past_key_values=cache)
    found = generate(model, inputs, other, past_key_values=cache)
    assert torch.equal(found.sequences, generate(model, inputs, other).sequences)
