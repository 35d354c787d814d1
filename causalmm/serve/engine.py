"""Answers rows of questions with a loaded model, those of one setting together.

Rows about the same pictures share the encoding of those and the beginning of the prompt, as in
`causalmm batch`; the others are padded. Greedy answers are those of `causalmm generate`, whatever
else is in the batch. Tests: tests/serve/test_engine.py.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import LogitsProcessorList, StoppingCriteriaList

from causalmm.cli.session import Session
from causalmm.config import CausalMMConfig
from causalmm.errors import FailureError, RequestError, is_out_of_memory
from causalmm.inputs.prompts import Prepared
from causalmm.serve.answers import Refusal
from causalmm.serve.errors import FAILED
from causalmm.serve.row import DrawRows, EndOfRows, Row

_LOGGER = logging.getLogger("ray.serve")
LEAST_APART = 4
"""Rows that are decoded apart from others of their batch: fewer cost more than they save. Padding
is dear on a CPU and cheap elsewhere."""
_MEMORY = Refusal("the service has not enough memory for this request; ask for less or later", 503)
_FAILED = Refusal(FAILED, 500)


class Engine:
    """For one thread at a time."""

    def __init__(self, session: Session) -> None:
        self.session = session._replace(
            request=session.request._replace(
                sampling=session.request.sampling | {"do_sample": False}, logits_processor=None
            )
        )
        self._refusal_of = lru_cache(maxsize=256)(self._why_not)
        ends = session.model.generation_config.eos_token_id
        self.ends = frozenset([ends] if isinstance(ends, int) else ends or [])

    def answer(self, rows: Sequence[Row]) -> None:
        """Tell every row its answer or its refusal; what goes wrong with one hurts no other."""
        prepared: dict[Row, Prepared] = {}
        for row in rows:
            if row.gone:
                continue
            if (sentence := self._refusal_of(row.question.config)) is not None:
                row.refuse(Refusal(sentence))
                continue
            try:
                prepared[row] = self.session.prompt.prepare(
                    self.session.processor, row.question.messages
                )
            except RequestError as error:
                row.refuse(Refusal(str(error)))
        model, tokenizer = self.session.model, self.session.processor.tokenizer
        for group, shared in _groups(prepared, tokenizer if model.device.type == "cpu" else None):
            self._answer_group({row: prepared[row] for row in group}, shared)

    def _why_not(self, config: CausalMMConfig | None) -> str | None:
        """A sentence where this model cannot follow the settings."""
        try:
            self.session.model.causalmm_plan(config)
        except ValueError as error:
            return f"causalmm: {error}"
        return None

    def _answer_group(self, prepared: dict[Row, Prepared], shared: bool) -> None:
        try:
            self._decode(prepared, shared)
        except Exception as error:
            if len(prepared) > 1:
                # One of them is at fault, or they are too many at once.
                for row, its in prepared.items():
                    if not row.over:
                        self._answer_group({row: its}, False)
                return
            [row] = prepared
            if isinstance(error, (RequestError, FailureError)):
                row.refuse(Refusal(str(error)))
                return
            _LOGGER.exception("a request failed")
            row.refuse(_MEMORY if is_out_of_memory(error) else _FAILED)

    def _decode(self, prepared: dict[Row, Prepared], shared: bool) -> None:
        inputs, errors = self.session.join(prepared, shared=shared)
        for row, error in errors.items():
            row.refuse(Refusal(error))
        rows, model = [row for row in prepared if row not in errors], self.session.model
        if not rows:
            return
        room = model.config.get_text_config().max_position_embeddings
        lengths = [
            int(length)
            for part in (inputs if isinstance(inputs, list) else [inputs])
            for length in part["attention_mask"].sum(dim=1)
        ]
        limits = [
            min(row.question.max_tokens, room - length)
            for row, length in zip(rows, lengths, strict=True)
        ]
        for row, length, limit in zip(rows, lengths, limits, strict=True):
            row.begin(self.session.processor.tokenizer, self.ends, length, limit, len(rows))
        request = self.session.request._replace(max_new_tokens=max(limits))
        self.session._replace(request=request).decode(
            inputs,
            0,
            causalmm=rows[0].question.config,
            stopping_criteria=StoppingCriteriaList([EndOfRows(rows)]),
            logits_processor=LogitsProcessorList([DrawRows(rows, model.device)]),
        )


def _groups(prepared: Mapping[Row, Prepared], tokenizer: Any) -> list[tuple[list[Row], bool]]:
    """Rows that are decoded together, and whether they share their pictures.

    Those of one setting are. Among them, rows about the same pictures are decoded apart where there
    are enough of them and, with a `tokenizer`, so are rows of the same length.
    """
    groups = []
    for alike in _grouped(prepared, lambda row: row.question.config):
        rest: list[Row] = []
        for same in _grouped(alike, lambda row: row.question.beginning):
            if same[0].question.beginning and len(same) >= LEAST_APART:
                groups.append((same, True))
            else:
                rest += same
        others: list[Row] = []
        for same in _grouped(rest, lambda row: tokenizer and _size(prepared[row], tokenizer)):
            if len(same) >= LEAST_APART:
                groups.append((same, False))
            else:
                others += same
        if others:
            groups.append((others, False))
    return groups


def _grouped(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> list[list[Row]]:
    found: dict[Hashable, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())


def _size(prepared: Prepared, tokenizer: Any) -> Hashable:
    """The same for inputs of one length."""
    return len(tokenizer(prepared.text)["input_ids"]), tuple(each.size for each in prepared.images)
