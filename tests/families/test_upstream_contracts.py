"""What transformers tests of these models, for every family, without and with branches.

A short version of our own of its VLMModelTest and GenerationTesterMixin (transformers 5.23). Each
call is compared with another that must say the same, off bit for bit where nothing is padded.
Padding, caches of each kind, beams and sampling of one picture: tests/decoding/test_contracts.py
and tests/decoding/test_ways_to_generate.py. `--family-row` as for tests/families/test_contract.py.
"""

import pytest
import torch
from equivalence import TOLERANCE
from family_rows import FAMILIES, row_of
from tiny_models import model_pair, pad_together
from torch.nn.functional import pad

from causalmm import CausalMMConfig

STEPS = 8
BRANCHES = {
    "off": None,
    "all": CausalMMConfig(epsilon=0, seed=3),
    "image": CausalMMConfig(epsilon=0, seed=3, language_scope="image"),
}
"""Off, and with both branches in each scope of the decoder's edits."""


def pytest_generate_tests(metafunc):
    if "row" in metafunc.fixturenames:
        rows = [row_of(name) for name in FAMILIES]
        metafunc.parametrize("row", rows, ids=FAMILIES, scope="module")


@pytest.fixture(scope="module")
def pair(row):
    return model_pair(row, "sdpa")


@pytest.fixture
def model(pair):
    return pair[0]


@pytest.fixture(params=BRANCHES.values(), ids=list(BRANCHES))
def config(request):
    return request.param


def generate(model, inputs, config, **settings):
    """Greedy unless told otherwise; special tokens, pictures' among them, are never said."""
    extra = {} if config is None else {"causalmm": config}
    return model.generate(
        **inputs,
        **extra,
        return_dict_in_generate=True,
        output_logits=True,
        suppress_tokens=list(range(8)),
        **{"max_new_tokens": STEPS, "do_sample": False} | settings,
    )


def same(one, other):
    length = min(one.sequences.shape[1], other.sequences.shape[1])
    assert torch.equal(one.sequences[:, -STEPS:], other.sequences[:, -STEPS:]), length
    for mine, theirs in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


def without_pictures(model, sample):
    """The words of a sample."""
    words = sample["input_ids"][0] >= 8
    return {
        name: sample[name][:, words]
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
        if name in sample
    }


def embedded(model, inputs):
    """The same with embeddings in the place of tokens; pictures stay beside them."""
    rest = {name: part for name, part in inputs.items() if name != "input_ids"}
    return rest | {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach()}


def test_embeds_forward(row, model, config):
    inputs = row.sample(seed=1)
    with torch.no_grad():
        a = model(**inputs, causalmm=config).logits
        b = model(**embedded(model, inputs), causalmm=config).logits
    torch.testing.assert_close(a, b, **TOLERANCE)


def test_embeds_generate(row, model, config):
    inputs = row.sample(seed=1)
    a = generate(model, inputs, config)
    b = generate(model, embedded(model, inputs), config)
    same(a, b)


def test_embeds_generate_both(row, model, config):
    inputs = row.sample(seed=1)
    a = generate(model, inputs, config)
    b = generate(model, embedded(model, inputs)|{'input_ids': inputs['input_ids']}, config)
    same(a, b)


def test_text_only(row, model, pair, config):
    inputs = without_pictures(model, row.sample(seed=1, before=5, after=6))
    a = generate(model, inputs, config)
    if config is None:
        same(a, generate(pair[1], inputs, None))


def test_mixed(row, model, config):
    samples = [
        row.sample(seed=1, **row.two_images),
        without_pictures(model, row.sample(seed=2, before=4, after=3)),
        row.sample(seed=3),
    ]
    together = generate(model, pad_together(samples), config)
    for place, each in enumerate(samples):
        alone = generate(model, each, config)
        assert torch.equal(together.sequences[place, -STEPS:], alone.sequences[0, -STEPS:])
        for a, b in zip(together.logits, alone.logits):
            torch.testing.assert_close(a[place], b[0], **TOLERANCE)


def test_gc_eval(row, config):
    model, _ = model_pair(row, "sdpa")
    inputs = row.sample(seed=1)
    a = generate(model, inputs, config)
    model.gradient_checkpointing_enable()
    same(generate(model, inputs, config), a)


def test_gc_train(row, config):
    model, _ = model_pair(row, "sdpa")
    inputs = row.sample(seed=1)
    def loss():
        model.zero_grad()
        out = model(**inputs, causalmm=config, labels=inputs["input_ids"])
        out.loss.backward()
        return out.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.train()
    a, ga = loss()
    model.gradient_checkpointing_enable()
    b, gb = loss()
    torch.testing.assert_close(a, b)
    assert ga.keys() == gb.keys()
    for n in ga:
        torch.testing.assert_close(ga[n], gb[n], **TOLERANCE)


def test_mismatch(row, model, config):
    inputs = row.sample(seed=1)
    twice = inputs | {"input_ids": inputs["input_ids"].repeat(2, 1), "attention_mask": inputs["attention_mask"].repeat(2, 1)}
    if "mm_token_type_ids" in twice: twice["mm_token_type_ids"]= twice["mm_token_type_ids"].repeat(2, 1)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="oo"):
            call(**twice, causalmm=config)


def test_outputs(row, config):
    model, up = model_pair(row, "eager")
    inputs = pad_together([row.sample(seed=1), row.sample(seed=2, before=5)])
    out = generate(model, inputs, config, output_attentions=True, output_hidden_states=True, max_new_tokens=2)
    base = generate(up, inputs, None, output_attentions=True, output_hidden_states=True, max_new_tokens=2)
    for name in ("attentions", "hidden_states"):
        for a, b in zip(getattr(out, name), getattr(base, name), strict=True):
            assert [x.shape for x in a] == [x.shape for x in b]


def test_resize(row, config):
    model, up = model_pair(row, "sdpa")
    inputs = row.sample(seed=1)
    a = generate(model, inputs, config)
    for m in (model,):
        m.resize_token_embeddings(80)
    b = generate(model, inputs, config, suppress_tokens=[*range(8), *range(64, 80)])
    assert torch.equal(a.sequences, b.sequences)


def test_bf16(row, config):
    model, up = model_pair(row, "sdpa")
    inputs = row.sample(seed=1)
    a = generate(model.bfloat16(), inputs, config)
    if config is None:
        b = generate(up.bfloat16(), inputs, None)
        assert all(torch.equal(x, y) for x, y in zip(a.logits, b.logits))


def test_saved(row, config, tmp_path):
    model, up = model_pair(row, "sdpa")
    inputs = row.sample(seed=1)
    model.save_pretrained(tmp_path)
    same(generate(type(model).from_pretrained(tmp_path), inputs, config), generate(model, inputs, config))
    with pytest.raises(ValueError, match="has model_type .*: expected"):
        other = row_of(FAMILIES[row.name == FAMILIES[0]])
        from causalmm.families.family import load_reference
        load_reference(other.family.model_class).from_pretrained(tmp_path)


def test_beams(row, model, config):
    samples = [row.sample(seed=1, before=4, **row.two_images), row.sample(seed=2)]
    settings = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}
    together = generate(model, pad_together(samples), config, **settings)
    for place, each in enumerate(samples):
        alone = generate(model, each, config, **settings)
        assert torch.equal(together.sequences[2*place:2*place+2, -STEPS:], alone.sequences[:, -STEPS:])


def test_continue(row, model, config):
    inputs = pad_together([row.sample(seed=1), row.sample(seed=2, before=5)])
    whole = generate(model, inputs, config)
    half = generate(model, inputs, config, max_new_tokens=4)
    text = {"input_ids": half.sequences, "attention_mask": pad(inputs["attention_mask"], (0, 4), value=1)}
    if "mm_token_type_ids" in inputs: text["mm_token_type_ids"] = pad(inputs["mm_token_type_ids"], (0, 4))
    rest = generate(model, text, config, past_key_values=half.past_key_values, max_new_tokens=4)
    assert torch.equal(rest.sequences, whole.sequences)
    for a, b in zip(rest.logits, whole.logits[4:], strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
