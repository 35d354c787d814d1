"""What transformers tests of these models, for every family, without and with branches.

Our own short version of what its VLMModelTest and GenerationTesterMixin hold (transformers 5.23).
What a call gives is compared with another call that must give the same. Padding, kinds of cache,
no cache, beams of one prompt, hidden states: tests/decoding/test_contracts.py and
tests/decoding/test_ways_to_generate.py.
"""

import re

import pytest
import torch
from equivalence import TOLERANCE
from family_rows import FAMILIES, row_of
from packed_rows import positions
from tiny_models import model_pair, pad_together
from tiny_words import FIRST_WORD, VOCAB
from torch.nn.functional import pad

from causalmm import CausalMMConfig
from causalmm.errors import FailureError
from causalmm.families.family import load_reference

STEPS = 8
ON = {"epsilon": 0, "seed": 3}
BRANCHES = {
    "off": None,
    "all": CausalMMConfig(**ON),
    "image": CausalMMConfig(**ON, language_scope="image"),
}
"""Off, and both branches in each scope of the decoder's edits."""
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")
BEAMS = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}


@pytest.fixture(scope="module", params=FAMILIES)
def row(request):
    return row_of(request.param)


@pytest.fixture(scope="module")
def pair(row):
    return model_pair(row, "sdpa")


@pytest.fixture(params=BRANCHES.values(), ids=list(BRANCHES))
def config(request):
    return request.param


@pytest.fixture
def model(pair):
    return pair[0]


@pytest.fixture
def own(row):
    """A model to change."""
    return model_pair(row, "sdpa")[0]


def generate(model, inputs, config, **settings):
    """Words only: a model without training may say image tokens."""
    return model.generate(
        **inputs,
        **({} if config is None else {"causalmm": config}),
        return_dict_in_generate=True,
        output_logits=True,
        **{
            "max_new_tokens": STEPS,
            "do_sample": False,
            "suppress_tokens": list(range(FIRST_WORD)),
        }
        | settings,
    )


def same(one, other):
    assert torch.equal(one.sequences, other.sequences)
    for mine, theirs in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


def words_of(sample):
    """A sample without its pictures and special tokens."""
    words = sample["input_ids"][0] >= FIRST_WORD
    return {name: sample[name][:, words] for name in PER_TOKEN if name in sample}


def test_generation_continues_from_a_cache(row, model, config):
    """4 tokens and then 4 more are 8 at once."""
    inputs = pad_together([row.sample(seed=1), row.sample(seed=2, before=5)])
    whole = generate(model, inputs, config)
    first = generate(model, inputs, config, max_new_tokens=4)
    longer = {name: pad(inputs[name], (0, 4)) for name in PER_TOKEN if name in inputs}
    longer |= {
        "input_ids": first.sequences,
        "attention_mask": pad(inputs["attention_mask"], (0, 4), value=1),
    }
    cache = first.past_key_values
    rest = generate(model, longer, config, past_key_values=cache, max_new_tokens=4)
    assert torch.equal(rest.sequences, whole.sequences)
    for mine, theirs in zip(first.logits + rest.logits, whole.logits, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


@torch.no_grad()
def test_embeddings_in_the_place_of_tokens(row, model, config):
    """Positions are given where there are no tokens: by M-RoPE, pictures have their own."""
    inputs = row.sample(seed=1, **row.two_images)
    given = inputs | {"position_ids": positions(model, inputs)}
    rest = {name: part for name, part in given.items() if name != "input_ids"}
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    found = model(**rest, inputs_embeds=embeds, causalmm=config).logits
    torch.testing.assert_close(found, model(**given, causalmm=config).logits, **TOLERANCE)
    same(
        generate(model, inputs | {"inputs_embeds": embeds}, config),
        generate(model, inputs, config),
    )


@pytest.mark.parametrize("settings", [{}, BEAMS], ids=["greedy", "beams"])
def test_prompts_of_several_pictures_and_of_none_in_a_batch(row, model, config, settings):
    samples = [
        row.sample(seed=1, **row.two_images),
        words_of(row.sample(seed=2, before=4, after=3)),
        row.sample(seed=3),
    ]
    batch = generate(model, pad_together(samples), config, **settings)
    kept = settings.get("num_return_sequences", 1)
    for place, sample in enumerate(samples):
        alone = generate(model, sample, config, **settings)
        rows = slice(kept * place, kept * (place + 1))
        assert torch.equal(batch.sequences[rows, -STEPS:], alone.sequences[:, -STEPS:])
        if settings:
            scores = batch.sequences_scores[rows]
            torch.testing.assert_close(scores, alone.sequences_scores, **TOLERANCE)
            continue
        for mine, theirs in zip(batch.logits, alone.logits, strict=True):
            torch.testing.assert_close(mine[rows], theirs, **TOLERANCE)


@pytest.mark.parametrize(
    ("scope", "left"), [("all", CausalMMConfig(**ON, mode="language")), ("image", None)]
)
def test_without_pictures_only_text_is_edited(row, pair, scope, left):
    """The vision branch is the factual one, and so is the language branch in scope "image"."""
    model, upstream = pair
    inputs = words_of(row.sample(seed=1, before=5, after=6))
    host = upstream if left is None else model
    same(generate(model, inputs, BRANCHES[scope]), generate(host, inputs, left))


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("pictures", ["too few", "too many"])
def test_pictures_that_do_not_match_their_tokens(row, pair, config, pictures):
    """Upstream's own error."""
    model, upstream = pair
    one, two = row.sample(seed=1), row.sample(seed=1, **row.two_images)
    tokens, pixels = (two, one) if pictures == "too few" else (one, two)
    inputs = pixels | {name: tokens[name] for name in PER_TOKEN if name in tokens}
    for ours, theirs in ((model, upstream), (model.generate, upstream.generate)):
        with pytest.raises((ValueError, RuntimeError, StopIteration)) as caught:
            theirs(**inputs)
        with pytest.raises(caught.type, match=f"^{re.escape(str(caught.value))}$"):
            ours(**inputs, causalmm=config)


def test_what_is_output_has_the_callers_batch(row, config):
    asked = {"output_attentions": True, "output_hidden_states": True, "max_new_tokens": 2}
    inputs = pad_together([row.sample(seed=1), row.sample(seed=2, before=5)])
    model, upstream = model_pair(row, "eager")
    found = generate(model, inputs, config, **asked)
    wanted = generate(upstream, inputs, None, **asked)
    for name in ("hidden_states", "attentions"):
        for mine, theirs in zip(getattr(found, name), getattr(wanted, name), strict=True):
            assert [part.shape for part in mine] == [part.shape for part in theirs]


def test_gradient_checkpointing_changes_no_answer(row, own, config):
    inputs = row.sample(seed=1)
    wanted = generate(own, inputs, config)
    own.activation_checkpointing_enable()
    same(generate(own, inputs, config), wanted)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_is_upstreams_or_refused(row, checkpointing):
    inputs = row.sample(seed=1)
    gradients = []
    for model in model_pair(row, "sdpa"):
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append({name: each.grad for name, each in model.named_parameters()})
        for config in (BRANCHES["all"], BRANCHES["image"]) if len(gradients) == 1 else ():
            loss = model(**inputs, labels=inputs["input_ids"], causalmm=config).loss
            with pytest.raises(FailureError, match="has no gradient: expected causalmm=None"):
                loss.backward()
    mine, theirs = gradients
    for name, gradient in theirs.items():
        assert gradient is None or torch.equal(mine[name], gradient), name


def test_more_words(row, own, config):
    inputs = row.sample(seed=1)
    wanted = generate(own, inputs, config)
    own.resize_token_embeddings(VOCAB + 16)
    never = [*range(FIRST_WORD), *range(VOCAB, VOCAB + 16)]
    found = generate(own, inputs, config, suppress_tokens=never)
    assert torch.equal(found.sequences, wanted.sequences)
    for more, fewer in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(more[:, :VOCAB], fewer, **TOLERANCE)


def test_saved_and_loaded(row, model, config, tmp_path):
    model.save_pretrained(tmp_path)
    inputs = row.sample(seed=1)
    again = type(model).from_pretrained(tmp_path)
    assert not again.training
    same(generate(again, inputs, config), generate(model, inputs, config))


def test_half_precision_off_is_upstream(row):
    model, upstream = (each.bfloat16() for each in model_pair(row, "sdpa"))
    inputs = pad_together([row.sample(seed=1), row.sample(seed=2, before=5)])
    found, wanted = (generate(each, inputs, None) for each in (model, upstream))
    for mine, theirs in zip(found.logits, wanted.logits, strict=True):
        assert torch.equal(mine, theirs)


def test_a_checkpoint_of_another_model_is_refused(row, model, tmp_path):
    """Transformers warns, and draws the weights that it does not find."""
    model.config.save_pretrained(tmp_path)
    for name in FAMILIES:
        other = load_reference(row_of(name).family.model_class)
        if name == row.name:
            continue
        sentence = f"has model_type {row.name!r}: expected {name!r} for {other.__name__}$"
        with pytest.raises(ValueError, match=sentence):
            other.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match=sentence):
            other.from_pretrained("owner/name", config=model.config)
