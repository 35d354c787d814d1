"""What a benchmark declares: how its questions are read, and how answers to them are counted.

Tests: tests/evaluation/test_scoring.py.
"""

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from causalmm.evaluation.question_files import with_pictures
from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.report import Report, make_report
from causalmm.evaluation.tally import Matching, Pair, Tally, join


class Flag(NamedTuple):
    """What a flag needs besides the name, type and default of its parameter."""

    metavar: str | None
    help: str
    choices: Sequence[str] | None = None


Images = Annotated[Path, Flag("FOLDER", "where the images lie")]
"""The type of a parameter `images`."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """How answers are written in the form that the published scorer reads."""

    form: str
    """What `export` writes, for the help."""
    write: Callable[[Sequence[Pair], str], str | dict[str, str]]
    """Takes answers none of which failed, in the order of the questions, and the model's name. The
    text of one file, or those of several by their names in a folder."""
    together: str | None = None
    """The fact that questions share which the scorer reads together, so that none of them is
    exported without the others."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark: one of these at the end of its module, and one line in registry.py."""

    name: str
    """As on the command line."""
    title: str
    """One line for the help."""
    read: Callable[..., list[Question]]
    """The questions that its flags ask for. Each parameter is a flag of the same name, of type str,
    Path or a list of those, annotated with a `Flag`, and needed if it has no default. Raises
    RequestError, which says what is wrong with the files. Images need not be there."""
    files: Callable[..., list[Path]]
    """Takes what `read` takes; the files that the questions come from, to keep their SHA-256."""
    tally: Callable[[Sequence[Pair]], list[Tally]]
    """The answers of a run counted, set by set."""
    max_new_tokens: int = 64
    """Enough for an answer, where the user does not say."""

    matchings: Mapping[str, Matching] = field(default_factory=dict)
    """By name: how the answers of two runs are made comparable, for differences beside those of the
    answers as they are."""
    export: Export | None = None
    """None where no scorer is published."""

    @property
    def flags(self) -> dict[str, dict[str, Any]]:
        """The options of `add_argument` by the name of the parameter."""
        hints = get_type_hints(self.read, include_extras=True)
        flags = {}
        for name, parameter in inspect.signature(self.read).parameters.items():
            kind, flag = get_args(hints[name])
            options = {key: value for key, value in flag._asdict().items() if value is not None}
            kinds = (kind, *get_args(kind))  # of X | None, X
            if any(get_origin(each) is list for each in kinds):
                options["nargs"] = "+"
            if any(Path in (each, *get_args(each)) for each in kinds):
                options["type"] = Path
            if parameter.default is parameter.empty:
                options["required"] = True
            elif parameter.default is not None:
                options["default"] = parameter.default
                shown = str(parameter.default).replace("%", "%%")
                options["help"] += f' (default: "{shown}")'
            flags[name] = options
        return flags

    def add_flags(self, group: Any, optional: bool = False) -> None:
        """Add the flags that say which questions; if `optional`, one not given is not in the
        result, and none has to be given."""
        lenient = {"required": False, "default": argparse.SUPPRESS} if optional else {}
        for name, options in self.flags.items():
            group.add_argument(f"--{name.replace('_', '-')}", **options | lenient)

    def questions(self, args: argparse.Namespace) -> list[Question]:
        """Those that the flags ask for, with their pictures where the pictures.json of one of the
        given folders says; raises as `read` does, and for a pictures.json of another form."""
        given = {name: getattr(args, name) for name in self.flags}
        folders = [each for each in given.values() if isinstance(each, Path) and each.is_dir()]
        return with_pictures(self.read(**given), folders)

    def question_files(self, args: argparse.Namespace) -> list[Path]:
        """The files that they come from."""
        return self.files(**{name: getattr(args, name) for name in self.flags})

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Report:
        """The report on a run. Raises RequestError where answers are missing."""
        pairs = join(questions, answers)
        return make_report(self.name, pairs, self.tally(pairs))
