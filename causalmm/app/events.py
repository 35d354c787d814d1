"""What happens when something on the page is pressed. Tests: tests/app/test_browser.py."""

from collections.abc import Iterator, Mapping, Sequence
from threading import Event
from typing import Any

import gradio as gr

from causalmm.app import controls, fragments
from causalmm.app.answering import Progress, answers
from causalmm.app.attention import vision_maps
from causalmm.app.conversation import CAUSALMM, PLAIN, Conversation, Turn
from causalmm.app.examples import Example
from causalmm.app.limits import Limits
from causalmm.app.turns import Turns
from causalmm.cli.session import Session
from causalmm.config import CausalMMConfig
from causalmm.errors import FailureError, RequestError
from causalmm.families.loading import check_preset
from causalmm.families.registry import find
from causalmm.presets.registry import PRESETS

OWN = ""
"""In the place of a preset's name: the settings as they stand."""
_EXPECTED_ERRORS = (RequestError, FailureError, ValueError)
"""What is told in a sentence. Configurations raise ValueError itself."""


class Events:
    """Those of every open page. One question at a time is answered, by whatever model."""

    def __init__(
        self, sessions: Mapping[str, Session], examples: Sequence[Example], limits: Limits
    ) -> None:
        self.sessions = sessions
        self.examples = examples
        self.limits = limits
        self.turns = Turns(limits.waiting)
        self.running: dict[str, Event] = {}
        """By a page's session: what stops its answer."""

    def close(self, timeout: float = 10.0) -> None:
        """Stop what is asked, and wait as many seconds at most until the models are free."""
        for stop in list(self.running.values()):
            stop.set()
        self.turns.wait_until_empty(timeout)

    # Gradio puts the request in front of what the components hold.

    def ask(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Both answers to a new conversation's question as they come, and what is beside them."""
        yield from self._answers(request.session_hash, values, follow_up=False)

    def follow_up(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The same for the next question of a conversation."""
        yield from self._answers(request.session_hash, values, follow_up=True)

    def _answers(
        self, page: str, values: tuple[Any, ...], follow_up: bool
    ) -> Iterator[tuple[Any, ...]]:
        skip, stop = gr.skip(), Event()
        if self.running.setdefault(page, stop) is not stop:
            yield (skip,) * 4 + (fragments.error(_ONE_AT_A_TIME), skip)
            return
        state: Conversation | None = values[4]
        try:
            yield (skip,) * 4 + ("", skip)
            talk, question, config, new_tokens = self._read(*values)
            if follow_up:
                talk = self._continued(state, talk)
            talk.check(question, self.limits)
            shown = talk.opened(self.limits)
            conversations = {
                which: talk.messages(which, question, shown) for which in (PLAIN, CAUSALMM)
            }
            session = self._session(talk.model)
            progress = Progress()
            for progress in answers(
                session, conversations, config,
                seed=config.seed, new_tokens=new_tokens, stop=stop, turns=self.turns,
            ):  # fmt: skip
                turns = [
                    _transcript(talk, which, question, progress.answers[which])
                    for which in (PLAIN, CAUSALMM)
                ]
                yield *turns, fragments.tokens(progress.steps), _status(progress), skip, skip
        except _EXPECTED_ERRORS as error:
            yield (skip,) * 3 + ("", fragments.error(_sentence(error)), skip)
            return
        finally:
            del self.running[page]
        if progress.finished:
            talk = talk.said(Turn(question=question, answers=dict(progress.answers)))
            yield (skip,) * 3 + (_DONE, skip, talk)
        else:
            yield (skip,) * 3 + (_STOPPED, skip, skip)

    def stop(self, request: gr.Request) -> None:
        """Stop the answer that this page waits for, if it does; its own events tell the page."""
        if (stop := self.running.get(request.session_hash)) is not None:
            stop.set()

    def draw(self, *values: Any) -> tuple[Any, str]:
        try:
            *asked, number = values
            asked[3] = asked[3] or "What is this?"  # changes nothing here
            talk, question, config, _ = self._read(*asked)
            talk.check(question, self.limits)
            messages = talk.messages(PLAIN, question, talk.opened(self.limits))
            number = controls.whole_number(number, "picture", 10**6)
            found = vision_maps(self._session(talk.model), messages, number, config, self.turns)
        except _EXPECTED_ERRORS as error:
            return gr.skip(), fragments.error(_sentence(error))
        return fragments.attention(found.pixels, found.notes, config.vision_method), ""

    def show_model(self, name: str) -> list[Any]:
        request = self._session(name).request
        values = [gr.update(value=each) for each in controls.all_shown(request.config)]
        return [
            request.preset or OWN,
            *values,
            gr.update(visible=self.reads_video(name), value=None),
        ]

    def show_preset(self, preset: str, model: str) -> list[Any]:
        own = self._session(model).request.config
        config = CausalMMConfig.preset(preset) if preset in PRESETS else own
        return controls.all_shown(config)

    def show_example(self, index: int) -> tuple[list[str], str]:
        example = self.examples[index]
        return [example.file], example.question

    # -- what was asked

    def _read(
        self,
        model: str,
        pictures: Sequence[tuple[str, Any]] | None,
        video: str | None,
        question: str | None,
        state: Conversation | None,
        new_tokens: Any,
        preset: str,
        *values: Any,
    ) -> tuple[Conversation, str, CausalMMConfig, int]:
        """A new conversation, the question, the settings and the tokens that an answer may have."""
        session = self._session(model)
        config = controls.configuration(values, preset or None)
        check_preset(preset or None, session.model)
        session.model.causalmm_plan(config)
        talk = Conversation(
            model=model,
            pictures=tuple(path for path, _ in pictures or ()),
            video=video if self.reads_video(model) else None,
        )
        count = controls.whole_number(new_tokens, "max_new_tokens", self.limits.new_tokens)
        return talk, question or "", config, count

    def _continued(self, state: Conversation | None, now: Conversation) -> Conversation:
        """The conversation so far. Raises RequestError where it was about something else."""
        if state is None:
            raise RequestError("there is no conversation to follow up: press Ask first")
        if (state.model, state.pictures, state.video) != (now.model, now.pictures, now.video):
            raise RequestError(
                "the model or the pictures are no longer those of the conversation: press Ask for "
                "another one"
            )
        return state

    def _session(self, name: str) -> Session:
        if name not in self.sessions:
            raise RequestError(f"model {name!r}: expected one of {', '.join(self.sessions)}")
        return self.sessions[name]

    def reads_video(self, name: str) -> bool:
        return "video" in find(self._session(name).request.family).media


_ONE_AT_A_TIME = "an answer is on its way to this page: wait for it, or press Stop."
_ANSWERING = "Answering: the plain answer first, then the adjusted one."
_DONE = "Both answers are whole."
_STOPPED = "Stopped. What was asked last is not part of the conversation."


def _status(progress: Progress) -> str:
    if not (before := progress.before):
        return _ANSWERING
    return f"Waiting: {before} {'question is' if before == 1 else 'questions are'} before this one."


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text + "." * (not text.endswith("."))


def _transcript(talk: Conversation, which: str, question: str, answer: str) -> list[dict[str, str]]:
    found = []
    for asked, said in (
        *((turn.question, turn.answers[which]) for turn in talk.turns),
        (question, answer),
    ):
        found += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return found if answer else found[:-1]
