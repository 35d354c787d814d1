"""The two answers to a question while they are decoded: first the plain one, then the adjusted one.

One after the other, because a model keeps state of its own between the steps of an answer
(Qwen-VL's position offsets). A worker thread waits for its turn and decodes; whoever reads the
progress may leave at any time, and the worker then ends with the next token.
Tests: tests/app/test_answering.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from causalmm.app.conversation import CAUSALMM, PLAIN
from causalmm.app.turns import INTERVAL, Turns
from causalmm.cli.answer import AnswerStreamer
from causalmm.cli.session import Session, memory_guard
from causalmm.config import CausalMMConfig
from causalmm.decoding.trace import BranchTrace
from causalmm.figures.flags import CANDIDATES
from causalmm.figures.tokens import Step, StepRecorder, step

SMALLER = "smaller pictures, fewer of them, or fewer draws"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the answers are."""

    answers: Mapping[str, str] = field(default_factory=lambda: {PLAIN: "", CAUSALMM: ""})
    """Text so far; of an answer that is finished, all of it."""
    steps: tuple[Step, ...] = ()
    """Of the adjusted answer's tokens, so far."""
    before: int = 0
    """Questions that are answered before this one."""
    finished: bool = False
    """Whether both answers are whole; False too for what was left when they were stopped."""


class StopAsked(StoppingCriteria):
    """Ends `generate` at the next token once an event is set."""

    def __init__(self, asked: Event) -> None:
        self.asked = asked

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Bool [B], the same for every row."""
        return torch.full((input_ids.shape[0],), self.asked.is_set(), device=input_ids.device)


def answers(
    session: Session,
    conversations: Mapping[str, Any],
    config: CausalMMConfig,
    *,
    seed: int,
    new_tokens: int,
    stop: Event,
    turns: Turns,
) -> Iterator[Progress]:
    """Progress on the answers to `conversations`, opened messages by PLAIN and CAUSALMM.

    `seed` is that of sampling. It ends at once when `stop` is set, which happens too where the
    iterator is closed. Raises RequestError for messages or settings that the model cannot take and
    where too many questions wait, FailureError where something goes wrong.
    """
    request = session.request._replace(max_new_tokens=new_tokens)
    work = _Work(session._replace(request=request), conversations, config, seed, stop, turns)
    Thread(target=work.run, daemon=True).start()
    try:
        ended = False
        while not ended:
            while not work.changed.wait(INTERVAL) and not stop.is_set():
                pass
            work.changed.clear()
            ended = work.ended.is_set() or stop.is_set()
            if work.error is not None:
                raise work.error
            yield work.progress
            # What comes meanwhile is told together: a page cannot follow every token.
            work.ended.wait(INTERVAL)
    finally:
        stop.set()


class _Work:
    """What the worker thread does; `progress` is replaced as it goes on."""

    def __init__(
        self,
        session: Session,
        conversations: Mapping[str, Any],
        config: CausalMMConfig,
        seed: int,
        stop: Event,
        turns: Turns,
    ) -> None:
        self.session = session
        self.conversations = conversations
        self.config = config
        self.seed = seed
        self.stop = stop
        self.turns = turns
        self.progress = Progress()
        self.error: Exception | None = None
        self.changed, self.ended = Event(), Event()

    def run(self) -> None:
        try:
            with self.turns.turn(self.stop, self._wait) as own, memory_guard(SMALLER):
                if own:
                    self._ask(PLAIN, None)
                    self._ask(CAUSALMM, self.config)
                    self._tell(finished=not self.stop.is_set())
        except Exception as error:  # of whatever kind, it is raised where the answer is read
            self.error = error
        finally:
            self.ended.set()
            self.changed.set()

    def _wait(self, before: int) -> None:
        self._tell(before=before)

    def _ask(self, which: str, config: CausalMMConfig | None) -> None:
        """Decode one answer, unless it was asked to stop."""
        if self.stop.is_set():
            return
        tokenizer = self.session.processor.tokenizer
        inputs = self.session.inputs(self.conversations[which])
        streamers: list[BaseStreamer] = []
        trace = None
        if config is not None:
            trace = BranchTrace()
            streamers.append(
                StepRecorder(trace, lambda logits, token: self._step(logits, token, tokenizer))
            )
        streamers.append(AnswerStreamer(tokenizer, _Out(lambda text: self._say(which, text))))
        [ids] = self.session.decode(
            inputs,
            self.seed,
            causalmm=config,
            causalmm_trace=trace,
            streamer=_Streamers(streamers),
            stopping_criteria=StoppingCriteriaList([StopAsked(self.stop)]),
        )
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        self._tell(answers={**self.progress.answers, which: text})

    def _step(self, logits: Any, token: int, tokenizer: Any) -> Step:
        made = step(logits, token, CANDIDATES, tokenizer)
        self._tell(steps=(*self.progress.steps, made))
        return made

    def _say(self, which: str, text: str) -> None:
        said = self.progress.answers
        self._tell(answers={**said, which: said[which] + text})

    def _tell(self, **changed: Any) -> None:
        self.progress = replace(self.progress, **changed)
        self.changed.set()


class _Out:
    """Where `AnswerStreamer` writes."""

    def __init__(self, say: Any) -> None:
        self.say = say

    def write(self, text: str) -> None:
        if text:
            self.say(text)

    def flush(self) -> None:
        pass


class _Streamers(BaseStreamer):
    """Several for one call of `generate`."""

    def __init__(self, streamers: list[BaseStreamer]) -> None:
        self.streamers = streamers

    def put(self, value: Tensor) -> None:
        for each in self.streamers:
            each.put(value)

    def end(self) -> None:
        for each in self.streamers:
            each.end()
