"""A question while it is answered: one row of a batch, which ends on its own terms.

`generate` asks after every token which rows are over (`EndOfRows`), so that rows of different
lengths, with stop texts, or whose client has gone away share one call. Sampled rows draw from
random numbers of their own (`DrawRows`): what is drawn is the same in any batch.
Tests: tests/serve/test_engine.py.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from causalmm.serve.answers import Answer, Refusal
from causalmm.serve.question import Question


class Row:
    """A question with what is known of its answer.

    `tell` is called with pieces of the text, where `streamed`, and at last with the Answer or the
    Refusal, by the thread that decodes.
    """

    def __init__(
        self, question: Question, tell: Callable[[str | Answer | Refusal], None], streamed: bool
    ) -> None:
        self.question = question
        self.tell = tell
        self.streamed = streamed
        self.gone = False
        """Set where nobody waits for the answer any more: it ends at the next token."""
        self.over = False
        self._tokens: list[int] = []
        self._sent = ""
        self._finish_reason = "stop"
        self._text: str | None = None
        self._prompt_tokens = self._limit = self._batch = 0
        self._tokenizer: Any = None
        self._ends: Collection[int] = ()

    def begin(
        self, tokenizer: Any, ends: Collection[int], prompt_tokens: int, limit: int, batch: int
    ) -> None:
        """Before the first token; `ends` are the tokens that end an answer, `limit` its length."""
        self._tokenizer, self._ends, self._batch = tokenizer, ends, batch
        self._prompt_tokens, self._limit = prompt_tokens, limit
        # A row that is asked a second time, alone, begins again.
        self._tokens, self._text, self._finish_reason, self.over = [], None, "stop", False

    def take(self, token: int) -> None:
        """The next token of the answer, until it is over."""
        if self.gone:
            self.over = True
        if self.over:
            return
        self._tokens.append(token)
        if token in self._ends:
            self.over = True
        elif len(self._tokens) >= self._limit:
            self.over, self._finish_reason = True, "length"
        if self.streamed or self.question.stop:
            self._look_at_text()
        if self.over:
            text = self._decode() if self._text is None else self._text
            if self.streamed and text.startswith(self._sent) and len(text) > len(self._sent):
                self.tell(text[len(self._sent) :])
            used = len(self._tokens)
            self.tell(Answer(text, self._finish_reason, self._prompt_tokens, used, self._batch))

    def refuse(self, refusal: Refusal) -> None:
        """The end of a row that has no answer."""
        self.over = True
        self.tell(refusal)

    def _decode(self) -> str:
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True).strip()

    def _look_at_text(self) -> None:
        """End at a stop text; tell what cannot change any more, where it is streamed."""
        text = self._decode()
        found = [place for stop in self.question.stop if (place := text.find(stop)) >= 0]
        if found:
            self._text = text[: min(found)].rstrip()
            self.over, self._finish_reason = True, "stop"
            return
        # The last word may grow, and so may what begins a stop text.
        safe = text[: max(text.rfind(" "), text.rfind("\n"), 0)].rstrip()
        for stop in self.question.stop:
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    safe = safe[: len(text) - length]
                    break
        safe = safe.rstrip()
        if self.streamed and not self.over and safe.startswith(self._sent) and safe != self._sent:
            self.tell(safe[len(self._sent) :])
            self._sent = safe


class EndOfRows(StoppingCriteria):
    """Hands each row its token and tells `generate` which rows are over."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Ids int64 [B, T], the last of each row new; bool [B]."""
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            row.take(token)
        return torch.tensor([row.over for row in self.rows], device=input_ids.device)


class DrawRows(LogitsProcessor):
    """Chooses the tokens of sampled rows, by ruling out all others.

    A row draws as `generate` does for it alone after `torch.manual_seed` of its seed, with the
    temperature and top-p of its own.
    """

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self.drawn = []
        for place, row in enumerate(rows):
            if (sampling := row.question.sampling) is not None:
                generator = torch.Generator(device).manual_seed(sampling.seed % 2**63)
                warpers: list[LogitsProcessor] = []
                if sampling.temperature != 1:
                    warpers.append(TemperatureLogitsWarper(sampling.temperature))
                if sampling.top_p < 1:
                    warpers.append(TopPLogitsWarper(sampling.top_p))
                self.drawn.append((place, generator, warpers))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores float32 [B, vocab]; -inf for all but the drawn token of a sampled row."""
        scores = scores.clone() if self.drawn else scores
        for place, generator, warpers in self.drawn:
            own = scores[place : place + 1]
            for warper in warpers:
                own = warper(input_ids[place : place + 1], own)
            token = torch.multinomial(own.softmax(dim=-1), 1, generator=generator)
            scores[place] = -torch.inf
            scores[place, token] = 0.0
        return scores
