"""What a benchmark declares: its flags, how its questions are read, how answers are counted.

Tests: tests/evaluation/test_scoring.py.
"""

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.report import Report, make_report
from causalmm.evaluation.tally import Pair, Tally, join

IMAGES = {"type": Path, "metavar": "FOLDER", "help": "where the images lie"}
"""Options of the flag --images."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark: one of these at the end of its module, and one line in registry.py."""

    name: str
    """As on the command line."""
    title: str
    """One line for the help."""
    read: Callable[..., list[Question]]
    """The questions that its flags ask for; each parameter is a flag of the same name, and needed
    if it has no default. Raises RequestError, which says what is wrong with the files. Images need
    not be there."""
    flags: Mapping[str, Mapping[str, Any]]
    """By the name of the parameter: options of `add_argument`, without default and required."""
    files: Callable[..., list[Path]]
    """Takes what `read` takes; the files that the questions come from, to keep their SHA-256."""
    tally: Callable[[Sequence[Pair]], list[Tally]]
    """The answers of a run counted, set by set."""
    max_new_tokens: int = 64
    """Enough for an answer, where the user does not say."""

    def add_flags(self, group: Any, optional: bool = False) -> None:
        """Add the flags that say which questions; if `optional`, one not given is not in the
        result, and none has to be given."""
        for name, parameter in inspect.signature(self.read).parameters.items():
            options = dict(self.flags[name])
            options["required"] = parameter.default is parameter.empty
            if not options["required"]:
                options["default"] = parameter.default
                if parameter.default is not None:
                    shown = str(parameter.default).replace("%", "%%")
                    options["help"] += f' (default: "{shown}")'
            if optional:
                options |= {"required": False, "default": argparse.SUPPRESS}
            group.add_argument(f"--{name.replace('_', '-')}", **options)

    def questions(self, args: argparse.Namespace) -> list[Question]:
        """Those that the flags ask for; raises as `read` does."""
        return self.read(**self._given(args))

    def question_files(self, args: argparse.Namespace) -> list[Path]:
        """The files that they come from."""
        return self.files(**self._given(args))

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Report:
        """The report on a run. Raises RequestError where answers are missing."""
        pairs = join(questions, answers)
        return make_report(self.name, pairs, self.tally(pairs))

    def _given(self, args: argparse.Namespace) -> dict[str, Any]:
        return {name: getattr(args, name) for name in self.flags}
