"""What a model answers, printed while it is decoded, and each token's probabilities.

A token's factual probability is what the model says without intervention, its adjusted probability
what is left after the contrast. Both are the softmax of raw logits: temperature, top-p, top-k and
any repetition penalty come after. Tests: tests/cli/test_generate_command.py.
"""

import io
import time
from typing import Any, NamedTuple, TextIO

from torch import Tensor
from transformers import TextStreamer

from causalmm.decoding.trace import BranchTrace


class Token(NamedTuple):
    """A generated token and its probabilities when it was chosen."""

    text: str
    id: int
    factual: float
    adjusted: float


class TimedAnswer(NamedTuple):
    """What a model answered. Seconds count from the call of `generate`."""

    text: str
    tokens: list[Token]
    """Empty unless probabilities were asked for."""
    first_token: float
    total: float


class Reply(NamedTuple):
    """What a model answered to one row of many."""

    text: str
    tokens: list[int]
    """Generated ids, those after the end of the answer included."""


class AnswerStreamer(TextStreamer):
    """For one call of `generate` with one row.

    Prints words to `out`, if given, as they come, with no space in front and one newline at the
    end; notes when the first token comes and, with a trace, each one's probabilities. It empties
    the trace at every token, so that memory does not grow with the answer.
    """

    def __init__(
        self, tokenizer: Any, out: TextIO | None = None, trace: BranchTrace | None = None
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.out = io.StringIO() if out is None else out
        self.begun = False
        self.trace = trace
        self.first_token_at: float | None = None
        self.probabilities: list[tuple[float, float]] = []

    def put(self, value: Tensor) -> None:
        """Take the prompt's ids, [1, prompt], and then one new id at a time, [1]."""
        if not self.next_tokens_are_prompt:
            if self.first_token_at is None:
                self.first_token_at = time.perf_counter()
            if self.trace is not None:
                step = self.trace.steps.pop()
                self.trace.steps.clear()
                self.probabilities.append(
                    (probability(step.factual, value), probability(step.adjusted, value))
                )
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece of the answer."""
        if not self.begun:
            text = text.lstrip()
        self.begun = self.begun or bool(text)
        self.out.write(text + "\n" * stream_end)
        self.out.flush()


def probability(logits: Tensor, token: Tensor) -> float:
    """Of a token id (one element) under logits [1, vocab]."""
    return logits[0].float().softmax(dim=-1)[token.item()].item()
