"""One answer, streamed while it is decoded, with each token's probabilities where they are wanted.

A token's factual probability is what the model says without intervention, its adjusted probability
what is left after the contrast. Both are the softmax of raw logits: temperature, top-p, top-k and
any repetition penalty come after. Held by tests/cli/test_generate_command.py.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

from causalmm.config import CausalMMConfig
from causalmm.decoding.shared_image import generate_together
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


class AnswerPrinter(TextStreamer):
    """Prints words to a text file as they come, no space in front and one newline at the end."""

    def __init__(self, tokenizer: Any, out: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.out = out
        self.begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if not self.begun:
            text = text.lstrip()
        self.begun = self.begun or bool(text)
        if stream_end:
            text += "\n"
        self.out.write(text)
        self.out.flush()


class ProbabilityStreamer(BaseStreamer):
    """Notes when the first token comes and each one's probabilities; passes tokens to a printer.

    It empties the trace at every token, so that memory does not grow with the answer.
    """

    def __init__(self, printer: AnswerPrinter | None, trace: BranchTrace | None) -> None:
        self.printer = printer
        self.trace = trace
        self.first_token_at: float | None = None
        self.probabilities: list[tuple[float, float]] = []
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self.prompt_seen:
            if self.first_token_at is None:
                self.first_token_at = time.perf_counter()
            if self.trace is not None:
                step = self.trace.steps[-1]
                self.trace.steps.clear()
                self.probabilities.append(
                    (probability(step.factual, value), probability(step.adjusted, value))
                )
        self.prompt_seen = True
        if self.printer is not None:
            self.printer.put(value)

    def end(self) -> None:
        if self.printer is not None:
            self.printer.end()


def answer(
    model: Any,
    processor: Any,
    inputs: Any,
    *,
    causalmm: CausalMMConfig | None,
    max_new_tokens: int,
    sampling: Mapping[str, Any],
    seed: int = 0,
    probabilities: bool = False,
    out: TextIO | None = None,
) -> TimedAnswer:
    """Generate from one row of inputs, printing to `out` if given.

    `sampling` goes to `generate`; `seed` seeds torch for it.
    """
    tokenizer = processor.tokenizer
    trace = BranchTrace() if probabilities and causalmm is not None else None
    streamer = ProbabilityStreamer(None if out is None else AnswerPrinter(tokenizer, out), trace)
    begun = time.perf_counter()
    output = _generate(
        model,
        inputs,
        seed,
        **sampling,
        causalmm=causalmm,
        causalmm_trace=trace,
        max_new_tokens=max_new_tokens,
        streamer=streamer,
        return_dict_in_generate=True,
        output_logits=probabilities and causalmm is None,
    )
    ended = time.perf_counter()
    ids = output.sequences[0, inputs["input_ids"].shape[1] :]
    found = streamer.probabilities
    if output.logits is not None:
        plain = [probability(step, token) for step, token in zip(output.logits, ids, strict=True)]
        found = [(each, each) for each in plain]
    tokens = [
        Token(tokenizer.decode([token]), token, *pair)
        for token, pair in zip(ids.tolist(), found, strict=False)
    ]
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return TimedAnswer(text, tokens, streamer.first_token_at - begun, ended - begun)


def answer_batch(
    model: Any,
    processor: Any,
    inputs: Any,
    *,
    causalmm: CausalMMConfig | None,
    max_new_tokens: int,
    sampling: Mapping[str, Any],
    seed: int = 0,
    trace: BranchTrace | None = None,
) -> list[Reply]:
    """The answer to each row. `sampling` and `seed` as in `answer`; `trace` is that of `generate`.

    Inputs are those of all rows, padded on the left, or a list with each row's own, about the same
    pictures.
    """
    settings = {
        **sampling,
        "causalmm": causalmm,
        "causalmm_trace": trace,
        "max_new_tokens": max_new_tokens,
    }
    if isinstance(inputs, list):
        torch.manual_seed(seed % 2**63)
        rows = [row.to(model.device, model.dtype) for row in inputs]
        answers = generate_together(model, rows, **settings)
    else:
        output = _generate(model, inputs, seed, **settings)
        answers = output[:, inputs["input_ids"].shape[1] :]
    texts = processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [Reply(text.strip(), ids) for text, ids in zip(texts, answers.tolist(), strict=True)]


def _generate(model: Any, inputs: Any, seed: int, **settings: Any) -> Any:
    torch.manual_seed(seed % 2**63)
    return model.generate(**inputs.to(model.device, model.dtype), **settings, num_beams=1)


def probability(logits: Tensor, token: Tensor) -> float:
    """Of a token id (one element) under logits [1, vocab]."""
    return logits[0].float().softmax(dim=-1)[token.item()].item()
