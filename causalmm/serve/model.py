"""A replica of the model on Ray Serve: a batch of questions at a time, gathered by `serve.batch`.

Decoding runs in a thread, so that the next batch gathers meanwhile. An answer goes out when its row
is over, not when its batch is. Where nobody waits for a row any more, it ends at the next token and
its place among the requests is free at once.
Tests: tests/serve/test_service.py.
"""

import argparse
import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ray import serve

from causalmm.cli.request import Request
from causalmm.serve.answers import Answer, Refusal
from causalmm.serve.errors import FAILED
from causalmm.serve.options import ServeOptions
from causalmm.serve.question import Question

if TYPE_CHECKING:  # it loads torch
    from causalmm.serve.row import Row


class ModelReplica:
    """Answers questions. For `serve.deployment`."""

    def __init__(self, args: argparse.Namespace, request: Request, options: ServeOptions) -> None:
        import torch

        from causalmm.cli.session import Session
        from causalmm.serve.engine import Engine

        # Ray's own default, and as many in the threads that decode.
        torch.set_num_threads(options.cpus_per_replica)
        self._engine = Engine(Session.start(args, request))
        self._waiting: deque[Row] = deque()
        self._batch_size = options.batch_size
        self._batch.set_max_batch_size(options.batch_size)
        self._batch.set_batch_wait_timeout_s(options.batch_wait)

    async def ask(self, question: Question) -> Answer | Refusal:
        """The answer, at once with its last token."""
        async for piece in self._ask(question, streamed=False):
            if not isinstance(piece, str):
                return piece
        raise RuntimeError("a row ended without an answer")

    async def stream(self, question: Question) -> AsyncIterator[str | Answer | Refusal]:
        """Pieces of the answer as they come, and at last the whole of it."""
        async for piece in self._ask(question, streamed=True):
            yield piece

    async def _ask(
        self, question: Question, streamed: bool
    ) -> AsyncIterator[str | Answer | Refusal]:
        from causalmm.serve.row import Row

        loop, told = asyncio.get_running_loop(), asyncio.Queue()
        row = Row(
            question, lambda piece: loop.call_soon_threadsafe(told.put_nowait, piece), streamed
        )
        self._waiting.append(row)
        batch = asyncio.ensure_future(self._batch(row))
        batch.add_done_callback(lambda done: told.put_nowait(_lost(done)))
        try:
            piece: str | Answer | Refusal = ""
            while isinstance(piece, str):
                piece = await told.get()
                yield piece
        finally:
            row.gone = True

    @serve.batch
    async def _batch(self, rows: list) -> list[None]:
        """Decode as many waiting rows as a batch may have, those of `rows` among them.

        Ray closes a batch `batch_wait` after its first row, also while another one is decoded: with
        only the rows of their own, many small batches would follow a long one. The rows of a batch
        whose turn comes later are answered by then, or others take their place.
        """
        taken: list[Row] = []
        while self._waiting and len(taken) < self._batch_size:
            if not (row := self._waiting.popleft()).gone:
                taken.append(row)
        if taken:
            await asyncio.to_thread(self._engine.answer, taken)
        return [None] * len(rows)


def _lost(batch: "asyncio.Future[None]") -> Refusal:
    """What a row is told behind its answer, which it reads only if there was none."""
    if not batch.cancelled():
        batch.exception()  # or asyncio complains that nobody looked
    return Refusal(FAILED, 500)
