"""The benchmarks: for each, how its questions are read and how answers to them are counted.

A new benchmark is one module like pope.py, with a reader and a tally, and one entry here.
Held by tests/test_pope.py, test_mme.py, test_vlind.py and test_chair.py.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from causalmm.evaluation import pope
from causalmm.evaluation.records import Question


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What the commands need to know of a benchmark."""

    name: str
    """As on the command line."""
    title: str
    """One line for the help."""
    max_new_tokens: int
    """Enough for an answer, where the user does not say."""
    add_flags: Callable[[argparse.ArgumentParser], None]
    """Adds the flags that say which questions; the same for running, scoring and comparing."""
    from_args: Callable[[argparse.Namespace], list[Question]]
    """Reads the questions that those flags ask for; RequestError says what is wrong with them.
    Images need not be there (question_files.check_images)."""
    sources: Callable[[argparse.Namespace], list[Path]]
    """The files that the questions come from, e.g. to keep their SHA-256."""
    read: Callable[..., list[Question]]
    """The same from Python: `read(path or paths, **options)`."""


_ALL = (
    Benchmark(
        name="pope",
        title="POPE: is an object in the image",
        max_new_tokens=64,
        add_flags=pope.add_flags,
        from_args=pope.from_args,
        sources=pope.sources,
        read=pope.read,
    ),
)
BENCHMARKS = {each.name: each for each in _ALL}
