"""A strength by token equals its formula, and counts the same tokens however they are decoded."""

import math
from functools import partial

import pytest
import torch
import torch._dynamo.testing
from dense_branches import attach
from equivalence import TOLERANCE, by_token, check, check_beams, decode
from family_rows import TWO_FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import model_pair, pad_together, sample
from tiny_words import IMAGE, words
from torch.nn.functional import pad
from transformers import DynamicCache, StaticCache

from causalmm import BranchTrace, CausalMMConfig
from causalmm.config import MAX_STRENGTH, MODES
from causalmm.decoding.shared_image import generate_together
from causalmm.decoding.strength import TokenStrength, growing, unsure

GROWING = {"schedule": "growing", "forgetting": 0.1}
STEPS = 6


@pytest.fixture(scope="module", params=TWO_FAMILIES)
def family(request):
    """Strengths act behind the head, on what the cache says of the answer."""
    return request.param


@pytest.fixture(params=MODES)
def config(request):
    return CausalMMConfig(mode=request.param, epsilon=0, **GROWING)


def generate(model, inputs, config, **settings):
    return model.generate(
        **inputs,
        causalmm=config,
        return_dict_in_generate=True,
        output_logits=True,
        suppress_tokens=[IMAGE],
        **{"max_new_tokens": STEPS, "do_sample": False} | settings,
    )


def same(one, other):
    assert torch.equal(one.sequences, other.sequences)
    for mine, theirs in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


# -- the formula -------------------------------------------------------------------------------


@given(st.floats(1e-6, 100), st.floats(0, 5), st.integers(1, 10**5))
def test_a_growing_strength(gamma, forgetting, place):
    wanted = gamma * math.expm1(min(forgetting * place, 80))
    found = float(growing(gamma, forgetting, place))
    assert found == pytest.approx(min(wanted, MAX_STRENGTH), rel=1e-4, abs=1e-30)
    assert found == float(growing(gamma, forgetting, torch.tensor(place)))


def test_a_tiny_strength_stays_finite():
    assert growing(1e-300, 5.0, 10**5).isfinite()


def test_only_an_unsure_model_is_adjusted():
    factual = torch.tensor([[[0.9, 0.1], [0.5, 0.5], [0.3, 0.7]]]).log() + 3
    assert unsure(factual, 0.75).squeeze(-1).tolist() == [[0, 1, 1]]
    strength = TokenStrength(forgetting=0.5, confident=0.6).of(2.0, factual, 3)
    wanted = torch.tensor([0.0, 1, 0]) * 2 * (math.exp(1.5) - 1)
    torch.testing.assert_close(strength[0, :, 0], wanted)


def test_by_default_a_strength_is_the_number_given():
    strength = 0.7
    assert TokenStrength().of(strength, torch.zeros(1, 1, 3), 9) is strength


# -- every step of a model ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_equals_separate_runs_of_an_independent_implementation(family, mode):
    ours, upstream = model_pair(family, "sdpa")
    config = CausalMMConfig(mode=mode, epsilon=0.02, gamma=1.5, **GROWING)
    samples = [sample(family, seed=1, before=4), sample(family, seed=2)]
    check((ours, upstream, attach(upstream, family)), samples, config)


@pytest.mark.parametrize("schedule", [{}, GROWING], ids=["constant", "growing"])
def test_the_gate_of_each_step_and_sample(family, schedule):
    ours, upstream = model_pair(family, "sdpa")
    samples = [sample(family, seed=1, before=4), sample(family, seed=2)]
    best = decode(ours, pad_together(samples), CausalMMConfig())[1]["factual"].softmax(-1).amax(-1)
    # Between two of the probabilities: the gates of one at the threshold itself may differ.
    low, high = best.flatten().sort().values[len(best) * STEPS // 2 :][:2].tolist()
    config = CausalMMConfig(epsilon=0, confident=(low + high) / 2, **schedule)
    _, said = decode(ours, pad_together(samples), config)
    closed = [(by_token(config, row) == 0).squeeze(-1) for row in said["factual"]]
    assert {bool(each) for row in closed for each in row} == {True, False}
    check((ours, upstream, attach(upstream, family)), samples, config)
    for row, gate in enumerate(closed):
        assert torch.equal(said["adjusted"][row][gate], said["factual"][row][gate])


def test_a_plain_forward_takes_every_position_for_the_end_of_a_prompt(family, model):
    inputs = sample(family, seed=1)
    weak = CausalMMConfig(epsilon=0, gamma=math.exp(0.1) - 1)
    with torch.no_grad():
        found = model(**inputs, causalmm=CausalMMConfig(epsilon=0, **GROWING)).logits
        torch.testing.assert_close(found, model(**inputs, causalmm=weak).logits, **TOLERANCE)


def test_no_forgetting_is_the_plain_model(model):
    config = CausalMMConfig(gamma_language=2.0, epsilon=0, schedule="growing", forgetting=0)
    assert model.causalmm_plan(config) is None


# -- what counts as the end of a prompt --------------------------------------------------------


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("left", [None, 1, 3])
def test_a_prompt_prefilled_in_chunks(model, inputs, config, kind, left):
    """Also where the last chunk is a single token."""
    length = inputs["input_ids"].shape[1]
    chunk = None if left is None else length - left
    settings = {"cache_implementation": kind, "prefill_chunk_size": chunk}
    same(generate(model, inputs, config, **settings), generate(model, inputs, config))


def prolonged(inputs, tokens):
    longer = dict(inputs, input_ids=torch.cat([inputs["input_ids"], tokens], dim=1))
    further = (0, tokens.shape[1])
    longer["attention_mask"] = pad(inputs["attention_mask"], further, value=1)
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = pad(inputs["mm_token_type_ids"], further)
    return longer


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_second_turn_of_one_token_counts_anew(family, model, config, kind):
    inputs = sample(family, seed=1)
    cache = {
        "dynamic": DynamicCache,
        "static": lambda: StaticCache(config=model.config.get_text_config(), max_cache_len=60),
    }[kind]()
    first = generate(model, inputs, config, past_key_values=cache)
    cache.crop(-1) if kind == "dynamic" else None
    said = first.sequences[:, inputs["input_ids"].shape[1] :]
    turn = prolonged(inputs, said[:, :-2] if kind == "dynamic" else said[:, :-1])
    turn = prolonged(turn, torch.tensor([words(1, seed=9)]))
    rest = {name: part for name, part in turn.items() if name != "pixel_values"}
    found = generate(model, rest, config, past_key_values=cache)
    same(found, generate(model, turn, config))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_loop_of_the_callers_own(family, model, config, kind):
    inputs = sample(family, seed=2)
    wanted = generate(model, inputs, config)
    cache = {
        "dynamic": DynamicCache,
        "static": lambda: StaticCache(config=model.config.get_text_config(), max_cache_len=60),
    }[kind]()
    length = inputs["input_ids"].shape[1]
    offset, call = 0, inputs
    for step, logits in enumerate(wanted.logits):
        output = model(**call, causalmm=config, past_key_values=cache, use_cache=True)
        torch.testing.assert_close(output.logits[:, -1], logits, **TOLERANCE)
        axes = (4, 1, 1) if hasattr(model.model, "rope_deltas") else (1, 1)
        offset = int(getattr(model.model, "rope_deltas", torch.zeros(1)))
        places = torch.full(axes, length + step + offset)
        places[0] = length + step
        call = {
            "input_ids": wanted.sequences[:, length + step, None],
            "position_ids": places,
            "attention_mask": torch.ones(1, length + step + 1, dtype=torch.long),
        }


def test_prompts_about_the_same_picture_that_differ_in_one_token(family, model, config):
    begun = sample(family, seed=1)
    for lengths in ((1, 1), (1, 4)):
        rows = [prolonged(begun, torch.tensor([words(length, seed=length + 7 * row)]))
                for row, length in enumerate(lengths)]  # fmt: skip
        settings = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": [IMAGE]}
        trace = BranchTrace()
        together = generate_together(model, rows, causalmm=config, causalmm_trace=trace, **settings)
        for number, row in enumerate(rows):
            alone = generate(model, row, config)
            assert torch.equal(together[number], alone.sequences[0, row["input_ids"].shape[1] :])
            for step, logits in zip(trace.steps, alone.logits, strict=True):
                torch.testing.assert_close(step.adjusted[number], logits[0], **TOLERANCE)


def test_beams_of_a_batch_are_those_of_its_members(family, model, inputs, config):
    members = (sample(family, seed=1, before=4), sample(family, seed=2))
    check_beams(partial(generate, model, config=config), members, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("gate", [1.0, 0.3])
def test_no_token_compiles_again(model, inputs, gate):
    config = CausalMMConfig(epsilon=0.01, confident=gate, **GROWING)
    wanted = generate(model, inputs, config)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model.forward = torch.compile(model.forward, fullgraph=True, backend=counter)
    try:
        same(generate(model, inputs, config, cache_implementation="static"), wanted)
    finally:
        del model.forward
    assert counter.frame_count == 2


def test_needs_a_cache(model, inputs):
    config = CausalMMConfig(**GROWING)
    with pytest.raises(ValueError, match=r"schedule='growing' with use_cache=False.*expected use_"):
        generate(model, inputs, config, use_cache=False)
    generate(model, inputs, CausalMMConfig(confident=0.5), use_cache=False, max_new_tokens=1)
