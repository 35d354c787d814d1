"""Who gets the models when: one question at a time, in the order in which they came.

A question that waits can be stopped like one that is answered, which gradio's own queue cannot do
without a race: what it streamed before may reach the page after the word that it was stopped.
Tests: tests/app/test_turns.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Event

from causalmm.errors import RequestError

INTERVAL = 0.1
"""Seconds between two looks at whether a question was stopped."""


class Turns:
    """A line in which at most `waiting` questions stand behind the one that is answered."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.line: list[object] = []
        self.moved = Condition()

    @contextmanager
    def turn(
        self, stop: Event | None = None, tell: Callable[[int], object] | None = None
    ) -> Iterator[bool]:
        """Wait in the line; then the models are the caller's within the context.

        False, and they are not, where `stop` was set before. `tell` is given the number of
        questions before this one whenever it changes. Raises RequestError where the line is full.
        """
        own, stop, told = object(), stop or Event(), 0
        with self.moved:
            if len(self.line) > self.waiting:
                raise RequestError(
                    f"as many questions wait as may ({self.waiting}): ask again later"
                )
            self.line.append(own)
        try:
            with self.moved:
                while True:
                    before = self.line.index(own)
                    if tell is not None and before != told:
                        tell(before)
                        told = before
                    if not before or stop.is_set():
                        break
                    self.moved.wait(INTERVAL)
            yield not stop.is_set()
        finally:
            with self.moved:
                self.line.remove(own)
                self.moved.notify_all()

    def wait_until_empty(self, timeout: float) -> bool:
        """Whether nobody stands in the line any more, after as many seconds at most."""
        with self.moved:
            return self.moved.wait_for(lambda: not self.line, timeout)
