"""A request's model, loaded, and the ways to ask it.

Tests: tests/cli/test_generate_command.py and tests/cli/test_batch_command.py.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from causalmm.cli.batch import BatchRow
from causalmm.cli.request import Request
from causalmm.cli.terminal import quiet_transformers
from causalmm.config import CausalMMConfig
from causalmm.errors import FailureError, RequestError, is_out_of_memory
from causalmm.families.family import load_reference
from causalmm.families.registry import find
from causalmm.inputs.messages import limit_sizes, one_turn, open_messages, text_part
from causalmm.inputs.prompts import Prepared, to_model

if TYPE_CHECKING:  # they load torch
    from causalmm.cli.answer import Reply, TimedAnswer
    from causalmm.decoding.trace import BranchTrace
    from causalmm.families.family import PromptModule

SMALLER = (
    "smaller images, a smaller --batch-size, fewer --draws, --dtype bfloat16 or another --device"
)


class Session(NamedTuple):
    """A loaded model with what the request says of answering."""

    model: Any
    processor: Any
    prompt: "PromptModule"
    """The family's, which makes inputs of messages."""
    request: Request

    @classmethod
    def start(cls, args: argparse.Namespace, request: Request) -> "Session":
        """Load the model. Raises RequestError or FailureError as loading does."""
        with contextlib.redirect_stdout(sys.stderr):
            # Imported here: torch and transformers take seconds.
            from causalmm.families import loading

            prompt = find(request.family).prompts()
            quiet_transformers()
            model, processor = loading.load(
                request.source,
                family=request.family,
                dtype=args.dtype,
                device=args.device,
                attn=args.attn,
                causalmm=request.config,
                preset=request.preset,
            )
        return cls(model, processor, prompt, request)

    def inputs(self, messages: Sequence[Any]) -> Any:
        """Of a conversation. Raises RequestError where the model cannot take it."""
        with contextlib.redirect_stdout(sys.stderr):
            inputs = self.prompt.build_chat_inputs(self.processor, messages)
        if (error := self._too_long(inputs)[0]) is not None:
            raise RequestError(error)
        return inputs

    def answer(
        self,
        inputs: Any,
        causalmm: CausalMMConfig | None,
        *,
        probabilities: bool = False,
        out: TextIO | None = None,
    ) -> "TimedAnswer":
        """The answer to one row of inputs, printed to `out` as it comes if given."""
        from causalmm.cli.answer import AnswerStreamer, TimedAnswer, Token, probability
        from causalmm.decoding.trace import BranchTrace

        tokenizer = self.processor.tokenizer
        trace = BranchTrace() if probabilities and causalmm is not None else None
        streamer = AnswerStreamer(tokenizer, out, trace)
        begun = time.perf_counter()
        output = self._generate(
            inputs,
            self.request.seed,
            causalmm=causalmm,
            causalmm_trace=trace,
            streamer=streamer,
            return_dict_in_generate=True,
            output_logits=probabilities and causalmm is None,
        )
        ended = time.perf_counter()
        ids = output.sequences[0, inputs["input_ids"].shape[1] :]
        found = streamer.probabilities
        if output.logits is not None:
            plain = [probability(*each) for each in zip(output.logits, ids, strict=True)]
            found = [(each, each) for each in plain]
        tokens = [
            Token(tokenizer.decode([token]), token, *pair)
            for token, pair in zip(ids.tolist(), found, strict=False)
        ]
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        return TimedAnswer(text, tokens, streamer.first_token_at - begun, ended - begun)

    def answer_rows(self, rows: Sequence[BatchRow], first: int) -> list[dict[str, str]]:
        """{"answer"} or {"error"} of each row. `first` is the number of the first in its file."""
        # A seed of its own for each batch: rows at the same place would be drawn alike.
        replies = self.ask_rows(rows, self.request.seed + first)
        return [
            {"error": reply} if isinstance(reply, str) else {"answer": reply.text}
            for reply in replies
        ]

    def ask_rows(
        self, rows: Sequence[BatchRow], seed: int, trace: "BranchTrace | None" = None
    ) -> "list[Reply | str]":
        """The reply to each row, or a sentence on why it cannot be asked.

        The others are answered in one batch, and are the rows that `trace` sees.
        """
        asked: list[list[dict[str, Any]] | str] = []
        pictures: dict[str, list[Any]] = {}
        for row in rows:
            if row.error:
                asked.append(row.error)
                continue
            try:
                if (key := json.dumps(row.image)) not in pictures:
                    pictures[key] = self._open(row.images)
                content = [*pictures[key], text_part(row.prompt)]
                asked.append([{"role": "user", "content": content}])
            except RequestError as error:
                asked.append(str(error))
        # What is asked without a picture has none to share.
        shared = len(pictures) == 1 and any(pictures.values())
        return self.ask(asked, seed, shared=shared, trace=trace)

    def _open(self, images: Sequence[str]) -> list[dict[str, Any]]:
        """The parts of a message that show these images. Raises RequestError as `open_messages`."""
        if not images:
            return []
        opened = open_messages(one_turn(images, None), allow_network=self.request.allow_network)
        [turn] = limit_sizes(opened, self.request.limits)
        return turn["content"]

    def ask(
        self,
        conversations: Sequence[list[dict[str, Any]] | str],
        seed: int,
        *,
        shared: bool,
        trace: "BranchTrace | None" = None,
    ) -> "list[Reply | str]":
        """The reply to each opened conversation, or a sentence on why it cannot be asked.

        A sentence in the place of a conversation is returned as it is. The others are answered in
        one batch, and are the rows that `trace` sees. They are `shared` where all begin alike up to
        and with their last picture: what they share is then found and computed once.
        """
        from causalmm.cli.answer import Reply

        said: list[Any] = [each if isinstance(each, str) else None for each in conversations]
        prepared = {}
        for index, messages in enumerate(conversations):
            if said[index] is None:
                try:
                    prepared[index] = self.prompt.prepare(self.processor, messages)
                except RequestError as error:
                    said[index] = str(error)
        inputs, errors = self.join(prepared, shared=shared)
        for index, error in errors.items():
            said[index] = error
            del prepared[index]
        if prepared:
            answers = self.decode(inputs, seed, causalmm=self.request.config, causalmm_trace=trace)
            texts = self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
            for index, text, ids in zip(prepared, texts, answers.tolist(), strict=True):
                said[index] = Reply(text.strip(), ids)
        return said

    def join(
        self, prepared: "Mapping[Any, Prepared]", *, shared: bool
    ) -> tuple[Any, dict[Any, str]]:
        """Inputs for `decode` of the conversations that fit, in their order, and a sentence for
        each of the others, which are too long.

        Inputs are None where none fits; `shared` is as in `ask`. Raises FailureError where the
        tokenizer cannot pad.
        """
        errors: dict[Any, str] = {}
        while left := {key: each for key, each in prepared.items() if key not in errors}:
            # About the same pictures one by one; a single one has nothing to share.
            apart = shared and len(left) > 1
            parts = [[each] for each in left.values()] if apart else [list(left.values())]
            inputs = [self.prompt.join(self.processor, part) for part in parts]
            said = [error for each in inputs for error in self._too_long(each)]
            if not any(said):
                return (inputs if apart else inputs[0]), errors
            errors |= {key: error for key, error in zip(left, said, strict=True) if error}
        return None, errors

    def decode(self, inputs: Any, seed: int, **settings: Any) -> Any:
        """New tokens int64 [rows, T] for the inputs of `join`; `settings` go to `generate`.

        Raises FailureError where the adjusted logits of a row are not finite.
        """
        answers = self._generate(inputs, seed, **settings)
        return answers if isinstance(inputs, list) else answers[:, inputs["input_ids"].shape[1] :]

    def _generate(self, inputs: Any, seed: int, **settings: Any) -> Any:
        """What `generate`, or `generate_together` for a list of inputs, returns."""
        import torch

        from causalmm.decoding.shared_image import generate_together

        torch.manual_seed(seed % 2**63)
        model, request = self.model, self.request
        settings |= request.sampling | {"max_new_tokens": request.max_new_tokens}
        if request.logits_processor is not None:
            make = load_reference(request.logits_processor)
            settings["logits_processor"] = make(self.processor.tokenizer)
        if isinstance(inputs, list):
            return generate_together(model, [to_model(row, model) for row in inputs], **settings)
        return model.generate(**to_model(inputs, model), **settings, num_beams=1)

    def _too_long(self, inputs: Any) -> list[str | None]:
        """A sentence for each row that leaves no room for an answer, None for the others."""
        limit = self.model.config.get_text_config().max_position_embeddings
        return [
            f"image and prompt take {length} tokens and the model reads at most {limit}"
            if length >= limit
            else None
            for length in inputs["attention_mask"].sum(dim=1).tolist()
        ]


@contextlib.contextmanager
def memory_guard(advice: str = SMALLER) -> Iterator[None]:
    """Raise FailureError with this advice where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise FailureError(f"not enough memory: try {advice}") from error
