"""Both answers are those of a session, come as they are decoded, and end when nobody wants them."""

import io
from pathlib import Path
from threading import Event

import pytest

from causalmm import CausalMMConfig
from causalmm.app.answering import answers
from causalmm.app.conversation import CAUSALMM, PLAIN
from causalmm.app.turns import Turns
from causalmm.cli.flags import parse_args
from causalmm.cli.request import check
from causalmm.cli.session import Session
from causalmm.errors import RequestError

PICTURE = Path(__file__).resolve().parents[2] / "examples" / "llava_300041_helped.png"
SOON = 20  # seconds, for what takes a fraction of one


@pytest.fixture(scope="module")
def session():
    args = parse_args(["--image", str(PICTURE), "--prompt", "Describe the image."])
    return Session.start(args, check(args))


@pytest.fixture
def ask(session):
    """Begins both answers; the line and the event that stops them are beside it."""

    def begin(messages=session.request.messages, new_tokens=64, **settings):
        ask.stop = Event()
        return answers(
            session,
            {PLAIN: messages, CAUSALMM: messages},
            CausalMMConfig(**session.request.config.to_dict() | settings),
            seed=0,
            new_tokens=new_tokens,
            stop=ask.stop,
            turns=ask.turns,
        )

    ask, ask.stop, ask.turns = begin, Event(), Turns(2)
    return ask


def test_both_answers_are_those_of_the_session(ask, session):
    *_, last = ask()
    inputs = session.inputs(session.request.messages)
    config = session.request.config
    expected = session.answer(inputs, config, probabilities=True, out=io.StringIO())
    assert last.finished
    assert last.answers == {PLAIN: session.answer(inputs, None).text, CAUSALMM: expected.text}
    assert [step.chosen.id for step in last.steps] == [token.id for token in expected.tokens]
    for step, token in zip(last.steps, expected.tokens, strict=True):
        assert step.chosen.factual == pytest.approx(token.factual)
        assert step.chosen.adjusted == pytest.approx(token.adjusted)
    assert ask.turns.wait_until_empty(SOON)


def test_an_answer_that_is_stopped_ends_with_the_next_token(ask, session):
    made = []
    decode = Session.decode

    class Slow(Session):
        def decode(self, inputs, seed, **settings):
            streamer = settings["streamer"]
            put = streamer.put

            def count(value):
                put(value)
                made.append(value.numel())
                if len(made) == 1 + 3:  # after the prompt and three tokens
                    ask.stop.set()

            streamer.put = count
            return decode(self, inputs, seed, **settings)

    slow = Slow(*session)
    messages = dict.fromkeys((PLAIN, CAUSALMM), session.request.messages)
    config = session.request.config
    *_, last = answers(
        slow, messages, config, seed=0, new_tokens=64, stop=ask.stop, turns=ask.turns
    )
    assert made[1:] == [1] * 4  # of the plain answer; the other one was not begun
    assert not last.finished
    assert last.answers[CAUSALMM] == ""
    inputs = session.inputs(session.request.messages)
    assert session.answer(inputs, None).text.startswith(last.answers[PLAIN])
    assert ask.turns.wait_until_empty(SOON)


def test_whoever_leaves_frees_the_model(ask):
    going = ask()
    next(going)
    going.close()
    assert ask.stop.is_set()
    assert ask.turns.wait_until_empty(SOON)


def test_what_the_model_cannot_take_is_raised_where_the_answer_is_read(ask, session):
    long = [{"role": "user", "content": [{"type": "text", "text": "is " * 5000}]}]
    with pytest.raises(RequestError, match=r"take \d+ tokens and the model reads at most"):
        list(ask(long))
    assert ask.turns.wait_until_empty(SOON)
    with pytest.raises(ValueError, match="language_layers"):
        list(ask(language_layers="90:99"))
    assert ask.turns.wait_until_empty(SOON)


def test_who_waits_sees_how_many_are_before_and_can_stop(ask):
    with ask.turns.turn():
        waiting = ask()
        assert next(waiting).before == 1
        ask.stop.set()
        *_, last = waiting
        assert not last.finished
    going = ask()
    assert next(going).before == 0
    going.close()
    assert ask.turns.wait_until_empty(SOON)
