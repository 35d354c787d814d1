"""A request's model, loaded, and the ways to ask it.

Held by tests/test_generate_command.py and tests/test_batch_command.py.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, TextIO

from causalmm import checkpoints
from causalmm.batch import Row
from causalmm.config import CausalMMConfig
from causalmm.errors import FailureError, RequestError, is_out_of_memory
from causalmm.messages import one_turn
from causalmm.request import Request
from causalmm.terminal import quiet_transformers


class Session(NamedTuple):
    """A loaded model with what the request says of answering."""

    model: Any
    processor: Any
    prompt: ModuleType
    """The package's, which makes inputs of messages."""
    request: Request

    @classmethod
    def start(cls, args: argparse.Namespace, request: Request) -> "Session":
        """Load the model. Raises RequestError or FailureError as loading does."""
        package = checkpoints.FAMILIES[request.family].package
        with contextlib.redirect_stdout(sys.stderr):
            # Imported here: torch and transformers take seconds.
            loading = import_module(f"{package}.loading")
            prompt = import_module(f"{package}.prompt")
            quiet_transformers()
            model, processor = loading.load(
                request.source,
                dtype=args.dtype,
                device=args.device,
                attn=args.attn,
                causalmm=request.config,
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
    ) -> Any:
        """An `answer.Answer`, printed to `out` as it comes if given."""
        from causalmm.answer import answer

        return answer(
            self.model,
            self.processor,
            inputs,
            causalmm=causalmm,
            max_new_tokens=self.request.max_new_tokens,
            sampling=self.request.sampling,
            seed=self.request.seed,
            probabilities=probabilities,
            out=out,
        )

    def answer_rows(self, rows: Sequence[Row], first: int) -> list[dict[str, str]]:
        """{"answer"} or {"error"} of each row, those without error in one batch.

        `first` is the number of the first row in its file.
        """
        from causalmm.answer import answer_batch

        said = [{"error": row.error} if row.error else {} for row in rows]
        prepared = {}
        for index, row in enumerate(rows):
            if not row.error:
                try:
                    messages = one_turn(row.images, row.prompt)
                    prepared[index] = self.prompt.prepare(self.processor, messages)
                except RequestError as error:
                    said[index] = {"error": str(error)}
        inputs = None
        while prepared and inputs is None:
            inputs = self.prompt.join(self.processor, list(prepared.values()))
            errors = dict(zip(list(prepared), self._too_long(inputs), strict=True))
            for index, error in errors.items():
                if error is not None:
                    said[index], inputs = {"error": error}, None
                    del prepared[index]
        if inputs is not None:
            if len(prepared) > 1 and len({json.dumps(rows[row].image) for row in prepared}) == 1:
                # One by one, so that what they share is found and computed once.
                inputs = [self.prompt.join(self.processor, [each]) for each in prepared.values()]
            answers = answer_batch(
                self.model,
                self.processor,
                inputs,
                causalmm=self.request.config,
                max_new_tokens=self.request.max_new_tokens,
                sampling=self.request.sampling,
                # Of its own for each batch: rows at the same place would be drawn alike.
                seed=self.request.seed + first,
            )
            for index, text in zip(prepared, answers, strict=True):
                said[index] = {"answer": text}
        return said

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
def memory_guard(advice: str) -> Iterator[None]:
    """Raise FailureError with this advice where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise FailureError(f"not enough memory: try {advice}") from error
