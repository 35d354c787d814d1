"""`generate(..., causalmm=...)` is transformers' own generate; off is upstream, bit for bit."""

import threading

import pytest
import torch
from tiny_models import model_pair, pad_together, sample
from tiny_words import FIRST_WORD, VOCAB
from transformers import DynamicCache, TextStreamer

from causalmm import BranchTrace, CausalMMConfig
from causalmm.config import MODES

GREEDY = {"do_sample": False, "max_new_tokens": 10}
SAMPLED = {"do_sample": True, "max_new_tokens": 10, "temperature": 1.5, "top_p": 0.95, "top_k": 30}
OFF = {
    "none": None,
    "zero": CausalMMConfig(gamma=0, epsilon=0),
    "zero_joint": CausalMMConfig(mode="joint", gamma=0, epsilon=0),
}


@pytest.mark.parametrize("mode", MODES)
def test_zero_strength_leaves_only_the_mask(family, model, mode):
    inputs = sample(family, seed=1)
    config = CausalMMConfig(mode=mode, gamma=0, epsilon=0.3)
    assert model.causalmm_plan(config).branches == 1
    with torch.no_grad():
        plain = model(**inputs).logits.float()
        masked = model(**inputs, causalmm=config).logits
    probabilities = plain.softmax(-1)
    kept = probabilities >= 0.3 * probabilities.amax(-1, keepdim=True)
    assert torch.equal(masked[kept], plain[kept])
    assert (masked.softmax(-1)[~kept] == 0).all()


def test_a_tower_of_strength_zero_gets_no_branch(model):
    plan = model.causalmm_plan(CausalMMConfig(gamma_vision=0))
    assert (plan.image_branches, plan.language_branches) == (0, 1)
    plan = model.causalmm_plan(CausalMMConfig(gamma_language=0, draws=3))
    assert (plan.image_branches, plan.language_branches) == (3, 0)


def test_draws_of_a_deterministic_method_are_one_branch(model):
    config = CausalMMConfig(vision_method="uniform", language_method="reverse", draws=4)
    assert model.causalmm_plan(config).branches == 3


@pytest.mark.parametrize("mode", ["multimodal", "joint"])
def test_chunked_prefill_changes_nothing(family, model, mode):
    config = CausalMMConfig(mode=mode, epsilon=0)
    inputs = pad_together([sample(family, seed=1, before=5), sample(family, seed=2)])
    whole, chunked = BranchTrace(), BranchTrace()
    one = model.generate(**inputs, causalmm=config, causalmm_trace=whole, **GREEDY)
    other = model.generate(
        **inputs, causalmm=config, causalmm_trace=chunked, prefill_chunk_size=7, **GREEDY
    )
    assert torch.equal(one, other)
    for a, b in zip(whole.steps, chunked.steps[-len(whole.steps) :], strict=True):
        torch.testing.assert_close(a.adjusted, b.adjusted, atol=1e-4, rtol=1e-4)


def test_without_a_cache_the_answer_is_the_same(family, model):
    config = CausalMMConfig(epsilon=0)
    inputs = sample(family, seed=3)
    assert torch.equal(
        model.generate(**inputs, causalmm=config, **GREEDY),
        model.generate(**inputs, causalmm=config, use_cache=False, **GREEDY),
    )


def test_the_seed_fixes_the_counterfactual(family, model):
    inputs = sample(family, seed=1)
    with torch.no_grad():
        first, again, other = (
            model(**inputs, causalmm=CausalMMConfig(seed=seed, epsilon=0)).logits
            for seed in (1, 1, 2)
        )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_the_callers_view_is_an_ordinary_batch(family, model):
    inputs = pad_together([sample(family, seed=1), sample(family, seed=2, before=5)])
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True)
        ours = model(**inputs, causalmm=CausalMMConfig(), output_hidden_states=True)
    assert ours.logits.shape == plain.logits.shape
    assert ours.logits.dtype == torch.float32
    for one, other in zip(ours.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_several_answers_to_one_prompt(family, model):
    """Each returned sequence is one that its own tokens, decoded alone, could have produced."""
    config = CausalMMConfig(epsilon=0.05)
    inputs = pad_together([sample(family, seed=1), sample(family, seed=2, before=5)])
    trace = BranchTrace()
    torch.manual_seed(1)
    tokens = model.generate(
        **inputs, causalmm=config, causalmm_trace=trace, num_return_sequences=2, **SAMPLED
    )
    assert tokens.shape[0] == 4
    first = trace.steps[0].adjusted
    torch.testing.assert_close(first[0], first[1])
    torch.testing.assert_close(first[2], first[3])
    assert not torch.allclose(first[0], first[2])


def test_logits_processors_see_adjusted_logits(family, model):
    config = CausalMMConfig(epsilon=0.2)
    inputs = sample(family, seed=5)
    output = model.generate(
        **inputs,
        causalmm=config,
        repetition_penalty=1.4,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        **GREEDY,
    )
    seen = inputs["input_ids"]
    for scores, logits in zip(output.scores, output.logits, strict=True):
        picked = logits.gather(1, seen)
        penalised = torch.where(picked < 0, picked * 1.4, picked / 1.4)
        torch.testing.assert_close(scores, logits.scatter(1, seen, penalised))
        seen = torch.cat([seen, scores.argmax(-1, keepdim=True)], dim=1)


class Letters:
    """A stand-in tokenizer of one letter a token, enough for streaming and stop strings."""

    def decode(self, tokens, **kwargs):
        return "".join(chr(ord("0") + int(token)) for token in torch.as_tensor(tokens).flatten())


@pytest.mark.parametrize("mode", MODES)
def test_streaming(family, model, mode, capsys):
    inputs = sample(family, seed=1)
    streamer = TextStreamer(Letters(), skip_prompt=True)
    tokens = model.generate(
        **inputs, causalmm=CausalMMConfig(mode=mode), streamer=streamer, **GREEDY
    )
    answer = tokens[0, inputs["input_ids"].shape[1] :]
    assert capsys.readouterr().out.strip() == Letters().decode(answer)


def test_stopping_at_an_end_token(family, model):
    inputs = sample(family, seed=1)
    config = CausalMMConfig(epsilon=0)
    length = inputs["input_ids"].shape[1]
    free = model.generate(**inputs, causalmm=config, **GREEDY)[0, length:]
    stopped = model.generate(**inputs, causalmm=config, eos_token_id=int(free[4]), **GREEDY)
    first = free.tolist().index(int(free[4]))
    assert stopped[0, length:].tolist() == free[: first + 1].tolist()


def test_two_threads_with_different_configurations(family, model):
    jobs = [
        (sample(family, seed=1), CausalMMConfig(mode="language", language_method="reverse")),
        (sample(family, seed=2, before=6), CausalMMConfig(mode="vision", seed=9)),
        (sample(family, seed=3, before=4), None),
    ]
    alone = [model.generate(**inputs, causalmm=config, **GREEDY) for inputs, config in jobs]
    together: dict[int, list[torch.Tensor]] = {index: [] for index in range(len(jobs))}

    def work(index):
        inputs, config = jobs[index]
        for _ in range(5):
            together[index].append(model.generate(**inputs, causalmm=config, **GREEDY))

    threads = [threading.Thread(target=work, args=(index,)) for index in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, wanted in enumerate(alone):
        assert len(together[index]) == 5
        assert all(torch.equal(got, wanted) for got in together[index])


def test_language_rows_are_cached_from_their_first_edited_layer_on(family, model):
    cache = DynamicCache(config=model.config.get_text_config())
    config = CausalMMConfig(mode="multimodal", language_layers="2:")
    with torch.no_grad():
        model(**sample(family, seed=1), causalmm=config, past_key_values=cache, use_cache=True)
    assert [layer.keys.shape[0] for layer in cache.layers] == [2, 2, 3, 3]


def test_a_cache_is_continued_only_under_its_own_plan(family, model):
    inputs = sample(family, seed=1)
    length = inputs["input_ids"].shape[1]
    cache = DynamicCache(config=model.config.get_text_config())
    config = CausalMMConfig(language_layers="all")
    with torch.no_grad():
        model(**inputs, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="continue a cache only with"):
        model(
            input_ids=torch.tensor([[FIRST_WORD]]),
            attention_mask=torch.ones(1, length + 1, dtype=torch.long),
            past_key_values=cache,
            causalmm=config,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_lookup_num_tokens": 2}, "causalmm does not support assisted_generation"),
        ({"cache_implementation": "quantized"}, "does not support cache_implementation='quanti"),
        ({"cache_implementation": "static"}, "counts all keys"),
    ],
)
def test_refuses_what_a_plan_cannot_follow(family, model, settings, message):
    config = CausalMMConfig(normalization="released")
    with pytest.raises(ValueError, match=message):
        model.generate(**sample(family, seed=1), causalmm=config, **GREEDY, **settings)


def test_refuses_what_is_no_configuration(family, model):
    with pytest.raises(TypeError, match="expected a CausalMMConfig, got dict"):
        model.generate(**sample(family, seed=1), causalmm={"gamma": 1.0})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["multimodal", "joint"])
def test_half_precision_stays_finite(family, dtype, mode):
    model = model_pair(family, "sdpa")[0].to(dtype)
    trace = BranchTrace()
    config = CausalMMConfig(mode=mode, vision_method="reversed", language_method="reverse")
    inputs = sample(family, seed=1)
    model.generate(**inputs, causalmm=config, causalmm_trace=trace, **GREEDY)
    for step in trace.steps:
        assert all(part.isfinite().all() for name, part in step._asdict().items()
                   if part is not None and name != "adjusted")  # fmt: skip
        assert not step.adjusted.isnan().any()
        assert step.adjusted.isfinite().any(-1).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 1.5}])
def test_a_trace_of_the_plain_model_only_looks_on(family, attention, sampling):
    """The same logits bit for bit, and they are what the trace holds."""
    model = model_pair(family, attention)[0]
    inputs = pad_together([sample(family, seed=1, before=5), sample(family, seed=2)])
    settings = GREEDY | sampling | {"return_dict_in_generate": True, "output_logits": True}

    def run(**trace):
        torch.manual_seed(4)
        return model.generate(**inputs, **settings, **trace)

    trace = BranchTrace()
    plain, traced = run(), run(causalmm_trace=trace)
    assert torch.equal(plain.sequences, traced.sequences)
    for step, one, other in zip(trace.steps, plain.logits, traced.logits, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(step.factual, one.float())
        assert torch.equal(step.adjusted, step.factual)


def test_the_vocabulary_is_what_the_tests_assume(model):
    assert model.config.get_text_config().vocab_size == VOCAB
