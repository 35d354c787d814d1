"""Rows of a batch that end on their own terms, and say what they say alone."""

import argparse
import asyncio
import itertools

import pytest
from serve_bodies import body, data_url

from causalmm.cli.request import find_model
from causalmm.cli.session import Session
from causalmm.serve.answers import Answer, Refusal
from causalmm.serve.engine import Engine
from causalmm.serve.flags import parse_args
from causalmm.serve.options import ServeOptions
from causalmm.serve.question import Reader
from causalmm.serve.row import Row
from causalmm.serve.schema import ChatRequest

PROMPTS = ("What color is it?", "Is there a dog in the image?", "Describe the image.", "Why?")


QWEN = pytest.param("demo-qwen2vl", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["demo-llava", QWEN])
def session(request):
    args = parse_args(["--model", request.param])
    return Session.start(argparse.Namespace(**vars(args)), find_model(args))


@pytest.fixture(scope="module")
def ask(session):
    """A function of bodies: what each row is told, asked together."""
    engine, reader = Engine(session), Reader(session.request, ServeOptions())

    def together(*bodies, gone=(), change=None):
        rows, told = [], []
        for number, each in enumerate(bodies):
            each = each | {"model": session.request.model}
            question = asyncio.run(reader.read(ChatRequest.model_validate(each)))
            told.append([])
            rows.append(Row(question, told[-1].append, bool(each.get("stream"))))
            rows[-1].gone = number in gone
        if change is not None:
            change(rows)
        engine.answer(rows)
        return told

    return together


@pytest.fixture(scope="module")
def alone(session):
    """A function of a body: the answer of `causalmm generate`."""
    reader = Reader(session.request, ServeOptions())

    def answer(each, seed=0, **sampling):
        each = each | {"model": session.request.model}
        question = asyncio.run(reader.read(ChatRequest.model_validate(each)))
        request = session.request
        if sampling:
            request = request._replace(
                sampling=request.sampling | {"do_sample": True, "top_k": 0} | sampling
            )
        request = request._replace(max_new_tokens=question.max_tokens, seed=seed)
        mine = session._replace(request=request)
        return mine.answer(mine.inputs(question.messages), question.config).text

    return answer


def texts(told):
    assert all(len(each) == 1 and isinstance(each[0], Answer) for each in told)
    return [each[0].text for each in told]


COLORS = ("red", "blue", "green", "yellow", "purple")


def test_greedy_answers_are_those_of_the_command_in_any_batch(ask, alone):
    """Some share pictures, some a setting, some neither."""
    pairs = list(itertools.islice(itertools.product(COLORS, PROMPTS), 14))
    bodies = [body(data_url(color), prompt) for color, prompt in pairs]
    bodies[3]["causalmm"] = {"mode": "plain"}
    bodies[5]["causalmm"] = {"mode": "multimodal", "gamma": 2.0}
    bodies += [body(data_url("white"), "Is there a cup?", max_tokens=2)]
    told = ask(*bodies)
    assert texts(told) == [alone(each) for each in bodies]
    # Four about one picture share it, but for the one of another setting.
    assert {each[0].batch for each in told[8:12]} == {4}


def test_sampled_answers_are_those_of_the_command_in_any_batch(ask, alone):
    bodies = [
        body(data_url(color), PROMPTS[2], temperature=1.5, top_p=0.95, seed=seed)
        for color, seed in (("red", 1), ("red", 5), ("blue", 1))
    ]
    told = texts(ask(*bodies, body(data_url("blue"), PROMPTS[0])))
    for each, text in zip(bodies, told, strict=False):
        assert texts(ask(each)) == [text]
        assert text == alone(each, seed=each["seed"], temperature=1.5, top_p=0.95)
    assert told[0] != told[1]


def test_a_stream_tells_the_answer_in_pieces(ask):
    plain = body(data_url("red"), PROMPTS[2])
    told = ask(plain | {"stream": True}, plain)
    *pieces, answer = told[0]
    assert answer == told[1][0]
    assert len(pieces) > 2
    assert "".join(pieces) == answer.text


def test_an_answer_ends_at_its_length_or_a_stop_text(ask):
    whole = ask(body(data_url("red"), PROMPTS[2]))[0][0]
    assert whole.finish_reason == "stop"
    # Begins and ends within words.
    stop = whole.text[len(whole.text) // 2 :][:4]
    cut, stopped, streamed = ask(
        body(data_url("red"), PROMPTS[2], max_tokens=2),
        body(data_url("red"), PROMPTS[2], stop=["nowhere", stop]),
        body(data_url("red"), PROMPTS[2], stop=[stop], stream=True),
    )
    assert cut[0].finish_reason == "length"
    assert cut[0].completion_tokens == 2
    assert whole.text.startswith(cut[0].text)
    assert stopped[0].text == whole.text.partition(stop)[0].rstrip()
    assert stopped[0].finish_reason == "stop"
    assert stopped[0].completion_tokens < whole.completion_tokens
    *pieces, answer = streamed
    assert "".join(pieces) == answer.text == stopped[0].text


def test_a_row_whose_client_is_gone_is_not_answered(ask):
    bodies = [body(data_url("red"), PROMPTS[2]), body(data_url("blue"), PROMPTS[2])]
    gone, other = ask(*bodies, gone=[0])
    assert gone == []
    assert texts([other]) == texts(ask(bodies[1]))


def test_a_row_ends_at_the_next_token_when_its_client_goes(ask):
    bodies = [body(data_url(color), PROMPTS[2], stream=True) for color in ("red", "blue")]

    def leave(rows):
        tell = rows[0].tell

        def told(piece):
            rows[0].gone = True
            tell(piece)

        rows[0].tell = told

    first, second = ask(*bodies, change=leave)
    assert len(first) == 1
    assert isinstance(first[0], str)
    assert isinstance(second[-1], Answer)


def test_what_the_model_cannot_do_hurts_no_other_row(session, ask, alone):
    right = body(data_url("red"), PROMPTS[0])
    bad_layers = body(causalmm={"language_layers": "90:99"})
    token = body(prompt=f"What is {session.processor.image_token}?")
    long = body(prompt="word " * 5000)
    digits = body(causalmm={"language_layers": "0:" + "9" * 5000})
    told = ask(right, bad_layers, token, long, digits)
    assert texts(told[:1]) == [alone(right)]
    refused = [each for [each] in told[1:]]
    assert all(isinstance(each, Refusal) and each.status == 400 for each in refused)
    assert refused[0].message.startswith("causalmm: language_layers")
    assert "which stands for an image" in refused[1].message
    assert "the model reads at most" in refused[2].message


def test_a_batch_that_fails_is_asked_one_by_one(session, ask, monkeypatch):
    bodies = [body(data_url(color), PROMPTS[0]) for color in ("red", "blue")]
    right = texts(ask(*bodies))
    original = Session.decode

    def decode(self, inputs, seed, **settings):
        if len(inputs["input_ids"]) > 1:
            raise RuntimeError("CUDA out of memory")
        return original(self, inputs, seed, **settings)

    monkeypatch.setattr(Session, "decode", decode)
    assert texts(ask(*bodies)) == right
    monkeypatch.setattr(Session, "decode", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    [[refused], _] = ask(*bodies)
    assert refused.status == 503
    assert "not enough memory" in refused.message
