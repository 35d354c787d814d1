"""The flags that say which questions: a benchmark's own and --limit, kept in run.json.

A run is scored with the flags that it was made with, so that nobody has to give them twice.
Held by tests/evaluation/test_scoring.py.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causalmm.cli.flags import Parser, at_least
from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.registry import Benchmark
from causalmm.evaluation.records import Question
from causalmm.evaluation.runner import limited

FIELD = "question_flags"
"""Where run.json has them."""


def add_question_flags(
    parser: argparse.ArgumentParser, benchmark: Benchmark, what: str, optional: bool = False
) -> None:
    """--limit, of which the help says `what`, and the benchmark's.

    If `optional`, none has to be given, and one that is not is not in the result.
    """
    group = parser.add_argument_group(
        "questions", "Those not given are as in the run's run.json, if it has them." * optional
    )
    flags = _Flags(group, optional)
    benchmark.add_flags(flags)
    flags.add_argument("--limit", type=at_least(1), metavar="N", help=what)
    parser.set_defaults(**{FIELD: flags.names})


def to_record(args: argparse.Namespace) -> dict[str, Any]:
    """The flags for run.json, files by their absolute paths."""
    return {name: _plain(value) for name, value in given_flags(args).items() if value is not None}


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Those in the result of a parser with `add_question_flags`, by their names."""
    return {name: getattr(args, name) for name in getattr(args, FIELD) if name in args}


def read_questions(
    benchmark: Benchmark, recorded: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[list[Question], list[Question]]:
    """All questions that the flags of a run, those given instead, or else the defaults ask for; and
    those within the limit.

    Raises RequestError for another limit than the run's, a flag that is missing or a file that
    cannot be read.
    """
    limit = given.get("limit")
    if recorded and limit is not None and limit != recorded.get("limit"):
        made = f"--limit {recorded['limit']}" if "limit" in recorded else "no --limit"
        raise RequestError(f"--limit {limit}: the run was made with {made}")
    parser = Parser(allow_abbrev=False)
    add_question_flags(parser, benchmark, "")
    args = parser.parse_args(_argv({**recorded, **given}))
    questions = benchmark.from_args(args)
    return questions, limited(questions, args.limit)


class _Flags:
    """Adds flags to a group and keeps their names."""

    def __init__(self, group: Any, optional: bool) -> None:
        self.group, self.optional, self.names = group, optional, []

    def add_argument(self, *flags: str, **options: Any) -> None:
        if self.optional:
            default = str(options.get("default")).replace("%", "%%")
            options["help"] = options["help"].replace("%(default)s", default)
            options |= {"required": False, "default": argparse.SUPPRESS}
        self.names.append(self.group.add_argument(*flags, **options).dest)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def _argv(flags: Mapping[str, Any]) -> list[str]:
    """As on a command line."""
    argv = []
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            argv += [flag, *map(str, value)]
        elif value is not None:
            argv.append(f"{flag}={value}")
    return argv
