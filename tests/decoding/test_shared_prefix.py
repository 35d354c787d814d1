"""A text before the pictures that is run once for all branches changes nothing but the work."""

import pytest
import torch
from tiny_models import FAMILIES, model_pair, pad_together, sample
from torch.testing import assert_close
from transformers import DynamicCache

from causalmm import CausalMMConfig
from causalmm.decoding import shared_prefix

MODES = ["vision", "language", "multimodal", "joint"]
BEFORE, LONGER = 9, 13  # words before the picture of the first and the second prompt


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return model_pair(family, "sdpa")[0]


def prompts(family, padded):
    samples = [sample(family, seed=1, before=BEFORE)]
    if padded:
        samples.append(sample(family, seed=2, before=LONGER, after=7))
    return pad_together(samples)


def same(one, other):
    """Up to 1e-5 of the largest number: other shapes round otherwise."""
    assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=0)


def sharing(monkeypatch, at_least):
    monkeypatch.setattr(shared_prefix, "LEAST_SAVED", at_least)


def new_cache(model):
    return DynamicCache(config=model.config.get_text_config())


def decoder_shapes(model, monkeypatch, at_least, **call):
    """Rows and columns of every run of the decoder's layers, and what came out."""
    sharing(monkeypatch, at_least)
    shapes = []
    layers = model.model.language_model.layers
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, inputs, shapes=shapes: shapes.append(tuple(inputs[0].shape[:2]))
        )
        for layer in (layers[0], layers[-1])
    ]
    with torch.no_grad():
        output = model(**call, past_key_values=new_cache(model))
    for hook in hooks:
        hook.remove()
    return shapes, output


@pytest.mark.parametrize("padded", [False, True], ids=["one", "padded"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("draws", [1, 2])
def test_logits_of_every_column(family, model, mode, padded, draws, monkeypatch):
    call = {**prompts(family, padded), "causalmm": CausalMMConfig(mode=mode, draws=draws)}
    apart, expected = decoder_shapes(model, monkeypatch, 10**9, **call)
    shared, output = decoder_shapes(model, monkeypatch, 1, **call)
    real = call["attention_mask"].bool()
    assert output.logits.shape == expected.logits.shape
    same(output.logits[real], expected.logits[real])
    for mine, theirs in zip(
        output.past_key_values.layers, expected.past_key_values.layers, strict=True
    ):
        groups = len(mine.keys) // len(real)
        kept = real.repeat(groups, 1)
        for one, other in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
            same(one.transpose(1, 2)[kept], other.transpose(1, 2)[kept])
    if mode == "language":  # every row is the factual one's until a layer of the decoder
        assert shared == apart
        return
    batch, columns = real.shape
    words = torch.tensor([BEFORE, LONGER])[:batch] + 1 + (family == "qwen2vl")
    text = (real.int().argmax(dim=1) + words).min()
    (rows, first), (last_rows, _), (all_rows, rest), _ = shared
    assert (rows, first) == (batch, text)
    assert all_rows == apart[0][0] == (1 + draws) * batch
    assert first + rest == columns
    language = 0 if mode == "vision" else draws
    assert last_rows == (1 + language) * batch


@pytest.mark.parametrize("mode", MODES)
def test_generated_tokens_and_logits(family, model, mode, monkeypatch):
    inputs = prompts(family, padded=True)
    settings = {
        "causalmm": CausalMMConfig(mode=mode),
        "max_new_tokens": 6,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
        "suppress_tokens": [model.config.image_token_id],
    }
    monkeypatch.setattr(shared_prefix, "prefill", run := Recorder(shared_prefix.prefill))
    results, runs = [], []
    for at_least in (10**9, 1):
        sharing(monkeypatch, at_least)
        results.append(model.generate(**inputs, **settings))
        runs.append(len(run.results))
    assert runs == [0, 0 if mode == "language" else 1]
    apart, shared = results
    assert torch.equal(shared.sequences, apart.sequences)
    same(torch.stack(shared.logits), torch.stack(apart.logits))


@pytest.mark.parametrize(
    "why", ["no pictures before", "too short", "no cache", "a cache in use", "hidden states"]
)
def test_what_is_not_run_by_itself(family, model, why, monkeypatch):
    call = {**prompts(family, padded=False), "causalmm": CausalMMConfig(mode="vision")}
    at_least = BEFORE + 3 if why == "too short" else 1
    if why == "no pictures before":
        call = {
            name: part
            for name, part in call.items()
            if name not in ("pixel_values", "image_grid_thw")
        }
        call["input_ids"] = call["input_ids"].clamp_min(10)
        call.pop("mm_token_type_ids", None)
    if why == "hidden states":
        call["output_hidden_states"] = True
    sharing(monkeypatch, at_least)
    monkeypatch.setattr(shared_prefix, "prefill", run := Recorder(shared_prefix.prefill))
    with torch.no_grad():
        if why == "a cache in use":
            cache = model(**call, past_key_values=new_cache(model)).past_key_values
            run.results.clear()
            length = call["input_ids"].shape[1]
            call["attention_mask"] = torch.ones(1, 2 * length, dtype=torch.long)
            axes = (1,) if family == "llava" else (3, 1)
            place = torch.arange(length, 2 * length).expand(*axes, -1)
            model(**call, position_ids=place, past_key_values=cache)
        else:
            cache = {"use_cache": False} if why == "no cache" else {}
            output = model(**call, **cache or {"past_key_values": new_cache(model)})
    assert not any(run.results)
    if why == "hidden states":
        assert output.hidden_states[0].shape[1] == call["input_ids"].shape[1]


class Recorder:
    """Calls a function and keeps what it gave."""

    def __init__(self, function):
        self.function = function
        self.results = []

    def __call__(self, *args, **kwargs):
        self.results.append(self.function(*args, **kwargs))
        return self.results[-1]
