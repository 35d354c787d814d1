"""The benchmarks: for each, how its questions are read and how answers to them are counted.

A new benchmark is one module like pope.py, with a reader and a tally, and one entry here.
Held by tests/evaluation/test_pope.py, test_mme.py, test_vlind.py and test_chair.py.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from causalmm.evaluation.benchmarks import chair, mme, pope, vlind
from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.report import Report, make_report
from causalmm.evaluation.tally import Pair, Tally, join


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
    Images need not be there."""
    sources: Callable[[argparse.Namespace], list[Path]]
    """The files that the questions come from, e.g. to keep their SHA-256."""
    read: Callable[..., list[Question]]
    """The same from Python: `read(path or paths, **options)`."""
    tally: Callable[[Sequence[Pair]], list[Tally]]
    """Counts the answers of a run, set by set."""

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Report:
        """The report on a run. Raises RequestError where answers are missing."""
        pairs = join(questions, answers)
        return make_report(self.name, pairs, self.tally(pairs))


def _benchmark(module: ModuleType, title: str, max_new_tokens: int) -> Benchmark:
    return Benchmark(
        name=module.__name__.rpartition(".")[2],
        title=title,
        max_new_tokens=max_new_tokens,
        add_flags=module.add_flags,
        from_args=module.from_args,
        sources=module.sources,
        read=module.read,
        tally=module.tally,
    )


_ALL = (
    _benchmark(pope, "POPE: is a thing of this name in the image", 64),
    _benchmark(mme, "MME: two yes-or-no questions about each image", 64),
    _benchmark(vlind, "VLind-Bench: does the model believe a counterfactual picture", 64),
    _benchmark(chair, "CHAIR: which objects of a caption are not in the image", 512),
)
BENCHMARKS = {each.name: each for each in _ALL}
