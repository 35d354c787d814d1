"""Every way transformers generates, with branches: the same tokens and logits as the plainest way.

Greedy search over a dynamic cache is held to an independent implementation by
tests/decoding/test_equivalence.py; what is compared with it here is beams, caches of other kinds,
continued caches, compiled forwards, other attention backends and modules that accelerate moves
about.
"""

from functools import partial

import pytest
import torch
import torch._dynamo.testing
from equivalence import TOLERANCE, check_beams
from family_rows import TWO_FAMILIES
from tiny_models import model_pair, pad_together, sample
from torch.nn.functional import pad
from transformers import AttentionInterface, BitsAndBytesConfig, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from causalmm import BranchTrace, CausalMMConfig
from causalmm.config import MODES

STEPS = 7
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def generate(model, inputs, config, **settings):
    """Tokens and the raw logits of each step. A model without training may say image tokens."""
    return model.generate(
        **inputs,
        causalmm=config,
        return_dict_in_generate=True,
        output_logits=True,
        suppress_tokens=[model.config.image_token_id],
        **{"max_new_tokens": STEPS, "do_sample": False} | settings,
    )


def same(one, other):
    assert torch.equal(one.sequences, other.sequences)
    for mine, theirs in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


def first_step(model, inputs, config):
    """What each branch says of the first token."""
    trace = BranchTrace()
    generate(model, inputs, config, causalmm_trace=trace, max_new_tokens=1)
    return trace.steps[0]


def prolonged(inputs, tokens):
    """The inputs of a prompt that goes on with `tokens`, images and all."""
    further = tokens.shape[1] - inputs["input_ids"].shape[1]
    longer = dict(inputs, input_ids=tokens)
    longer["attention_mask"] = pad(inputs["attention_mask"], (0, further), value=1)
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = pad(inputs["mm_token_type_ids"], (0, further))
    return longer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_a_beams_score_is_what_its_tokens_score_alone(family, model, mode, epsilon):
    """Sum of adjusted log-probabilities over length, from one forward over prompt and answer."""
    config = CausalMMConfig(mode=mode, epsilon=epsilon, seed=4)
    inputs = sample(family, seed=1)
    beams = generate(model, inputs, config, num_beams=4, num_return_sequences=3, output_scores=True)
    assert len({tuple(row.tolist()) for row in beams.sequences}) == 3
    length = inputs["input_ids"].shape[1]
    for tokens, score in zip(beams.sequences, beams.sequences_scores, strict=True):
        with torch.no_grad():
            logits = model(**prolonged(inputs, tokens[None]), causalmm=config).logits[0]
        logits = logits[length - 1 : -1].log_softmax(-1)
        said = logits.gather(-1, tokens[length:, None]).squeeze(-1)
        torch.testing.assert_close(score, said.mean(), **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_beam_search_of_a_batch_is_that_of_its_members(family, model, inputs, mode):
    config = CausalMMConfig(mode=mode, draws=2)
    members = (sample(family, seed=1, before=4), sample(family, seed=2))
    check_beams(partial(generate, model, config=config), members, inputs)


@pytest.mark.parametrize("mode", MODES)
def test_beam_sampling_needs_no_cache(model, inputs, mode):
    config = CausalMMConfig(mode=mode, epsilon=0.02)
    outputs = []
    for cached in (True, False):
        torch.manual_seed(2)
        outputs.append(
            generate(model, inputs, config, num_beams=3, do_sample=True, use_cache=cached)
        )
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)


def test_beams_without_branches_are_upstreams(family, inputs):
    ours, upstream = model_pair(family, "sdpa")
    settings = {"num_beams": 3, "max_new_tokens": STEPS, "do_sample": False}
    assert torch.equal(ours.generate(**inputs, **settings), upstream.generate(**inputs, **settings))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_static_cache(family, inputs, mode, attention):
    model = model_pair(family, attention)[0]
    config = CausalMMConfig(mode=mode, epsilon=0, draws=2)
    same(
        generate(model, inputs, config, cache_implementation="static"),
        generate(model, inputs, config),
    )


@pytest.mark.parametrize("method", ["uniform", "reverse", "reverse_and_normalize"])
def test_static_cache_with_every_closed_form(model, inputs, method):
    config = CausalMMConfig(mode="language", language_method=method, epsilon=0)
    dynamic = generate(model, inputs, config)
    same(generate(model, inputs, config, cache_implementation="static"), dynamic)
    chunked = generate(model, inputs, config, cache_implementation="static", prefill_chunk_size=8)
    same(chunked, dynamic)


def test_static_cache_with_a_two_dimensional_mask(family, model):
    """A loop of the caller's own, which need not prepare 4-D masks as generate does."""
    inputs = sample(family, seed=3)
    config = CausalMMConfig(epsilon=0)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=40)
    with torch.no_grad():
        wanted = model(**inputs, causalmm=config).logits
        got = model(**inputs, causalmm=config, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(got, wanted, **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_a_returned_cache_continues_the_conversation(model, inputs, mode):
    config = CausalMMConfig(mode=mode, epsilon=0)
    first = generate(model, inputs, config)
    turn = prolonged(inputs, torch.cat([first.sequences, first.sequences[:, -3:]], dim=1))
    rest = {name: part for name, part in turn.items() if name != "pixel_values"}
    same(
        generate(model, rest, config, past_key_values=first.past_key_values),
        generate(model, turn, config),
    )


@pytest.mark.parametrize("mode", MODES)
def test_several_sequences_are_those_of_several_rows(family, model, mode):
    inputs = sample(family, seed=1)
    config = CausalMMConfig(mode=mode, epsilon=0.02)
    torch.manual_seed(3)
    several = generate(model, inputs, config, do_sample=True, num_return_sequences=3)
    torch.manual_seed(3)
    copies = pad_together([inputs] * 3)
    rows = generate(model, copies, config, do_sample=True)
    same(several, rows)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, *MODES])
def test_compiles_as_one_graph_and_once(model, inputs, mode):
    """Prefill and decode are a graph each, as without branches, and no token compiles again."""
    config = None if mode is None else CausalMMConfig(mode=mode, epsilon=0.01)
    wanted = generate(model, inputs, config)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model.forward = torch.compile(model.forward, fullgraph=True, backend=counter)
    try:
        same(generate(model, inputs, config, cache_implementation="static"), wanted)
    finally:
        del model.forward
    assert counter.frame_count == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", TWO_FAMILIES, indirect=True, scope="module")  # minutes each
def test_a_compiled_forward_can_be_traced(model, inputs):
    config = CausalMMConfig(epsilon=0)
    plain, traced = BranchTrace(), BranchTrace()
    generate(model, inputs, config, causalmm_trace=plain)
    torch._dynamo.reset()
    model.forward = torch.compile(model.forward, backend="aot_eager")
    try:
        generate(model, inputs, config, causalmm_trace=traced, cache_implementation="static")
    finally:
        del model.forward
    for one, other in zip(plain.steps, traced.steps, strict=True):
        torch.testing.assert_close(one.adjusted, other.adjusted, **TOLERANCE)


def test_flex_attention():
    """Run by the same function without its compiler, which CPUs rarely have in full."""
    model = model_pair("llava", "sdpa")[0]
    inputs = pad_together([sample("llava", seed=1, before=4), sample("llava", seed=2)])
    configs = [CausalMMConfig(mode=mode, epsilon=0, draws=2) for mode in MODES]
    wanted = [generate(model, inputs, config) for config in configs]
    model.set_attn_implementation({"text_config": "flex_attention"})
    with torch.compiler.set_stance("force_eager"):
        for config, answer in zip(configs, wanted, strict=True):
            same(generate(model, inputs, config), answer)


@pytest.mark.parametrize("mode", MODES)
def test_backends_with_two_dimensional_masks(family, monkeypatch, mode):
    """flash_attention_2 and 3 take masks of rows and keys; here such a function on any machine."""

    def two_dimensional(module, query, key, value, attention_mask, **kwargs):
        assert attention_mask is None or attention_mask.shape == (len(query), key.shape[2])
        positions = kwargs.get("position_ids")
        assert positions is None or len(positions) in (1, len(query))
        causal = module.is_causal and attention_mask is not None
        if causal or (module.is_causal and query.shape[2] > 1):
            seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
            seen = seen.tril(key.shape[2] - query.shape[2])[None, None]
            if attention_mask is not None:
                seen = seen & attention_mask[:, None, None].bool()
            # Flash attention leaves padding out; a row that sees nothing must not be NaN here.
            attention_mask = seen | ~seen.any(-1, keepdim=True)
        kwargs["is_causal"] = False
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", two_dimensional)
    inputs = pad_together([sample(family, seed=1, before=4), sample(family, seed=2)])
    config = CausalMMConfig(mode=mode, epsilon=0)
    model = model_pair(family, "sdpa")[0]
    wanted = generate(model, inputs, config)
    model.config.text_config._attn_implementation = "flash_attention_2"
    same(generate(model, inputs, config), wanted)


@GPU
@pytest.mark.parametrize("backend", ["flex_attention", "flash_attention_2", "flash_attention_3"])
def test_attention_backends_on_a_gpu(family, backend):
    inputs = pad_together([sample(family, seed=1, before=4), sample(family, seed=2)])
    inputs = {name: part.cuda() for name, part in inputs.items()}
    model = model_pair(family, "sdpa")[0].to("cuda", torch.bfloat16)
    configs = [CausalMMConfig(mode=mode, epsilon=0) for mode in MODES]
    wanted = [first_step(model, inputs, config) for config in configs]
    try:
        model.set_attn_implementation({"text_config": backend})
    except (ImportError, ValueError) as error:
        pytest.skip(f"{backend} cannot be used here: {error}")
    for config, expected in zip(configs, wanted, strict=True):
        for got, branch in zip(first_step(model, inputs, config), expected, strict=True):
            if branch is not None:  # bfloat16 keeps 8 bits
                torch.testing.assert_close(got, branch, atol=0.1, rtol=0.05)


@GPU
@pytest.mark.parametrize("implementation", ["offloaded", "offloaded_static"])
def test_offloaded_caches_on_a_gpu(family, implementation):
    model = model_pair(family, "sdpa")[0].cuda()
    inputs = {name: part.cuda() for name, part in sample(family, seed=1).items()}
    config = CausalMMConfig(epsilon=0)
    same(
        generate(model, inputs, config, cache_implementation=implementation),
        generate(model, inputs, config),
    )


def _places(model):
    """Every module that is placed on a device, and its layer's number (0 for the others)."""
    towers, decoder = model.model, model.model.language_model
    names = ["lm_head", *(f"model.{name}" for name, _ in towers.named_children())]
    names += [f"model.{name}" for name, _ in towers.named_parameters(recurse=False)]
    names += [f"model.language_model.{name}" for name, _ in decoder.named_children()]
    places = dict.fromkeys(names, 0)
    del places["model.language_model"], places["model.language_model.layers"]
    layers = {f"model.language_model.layers.{n}": n for n in range(len(decoder.layers))}
    return places | layers


@pytest.mark.parametrize("mode", MODES)
def test_layers_that_accelerate_keeps_on_disk(family, inputs, mode, tmp_path):
    """Its hooks move weights and arguments at every layer; the plan passes through them."""
    accelerate = pytest.importorskip("accelerate")
    model = model_pair(family, "sdpa")[0]
    config = CausalMMConfig(mode=mode, epsilon=0)
    wanted = generate(model, inputs, config)
    places = {name: ("cpu", "disk")[layer % 2] for name, layer in _places(model).items()}
    dispatched = accelerate.dispatch_model(
        model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True
    )
    same(generate(dispatched, inputs, config), wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("mode", MODES)
def test_layers_on_two_gpus(family, inputs, mode):
    accelerate = pytest.importorskip("accelerate")
    model = model_pair(family, "sdpa")[0]
    config = CausalMMConfig(mode=mode, epsilon=0)
    wanted = generate(model, inputs, config)
    places = {name: int(layer >= 2) for name, layer in _places(model).items()}
    dispatched = accelerate.dispatch_model(model, places, main_device=0)
    on_first = {name: part.cuda(0) for name, part in inputs.items()}
    assert torch.equal(generate(dispatched, on_first, config).sequences.cpu(), wanted.sequences)


def test_quantised_weights(family, tmp_path):
    """8-bit products round, so the factual rows only come near what the same model says alone."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = model_pair(family, "sdpa")[0]
    model.save_pretrained(tmp_path)
    quantised = type(model).from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        device_map="auto" if torch.cuda.is_available() else "cpu",
    )
    inputs = {name: part.to(quantised.device) for name, part in sample(family, seed=1).items()}
    config = CausalMMConfig(gamma_vision=0.5, gamma_language=2.0, epsilon=0)
    step = first_step(quantised, inputs, config)
    with torch.no_grad():
        alone = quantised(**inputs).logits[:, -1].float()
    torch.testing.assert_close(step.factual, alone, atol=0.3, rtol=0.05)
    adjusted = 3.5 * step.factual - 0.5 * step.vision - 2.0 * step.language
    torch.testing.assert_close(step.adjusted, adjusted, **TOLERANCE)
    assert not torch.allclose(step.factual, step.language, atol=0.2)
