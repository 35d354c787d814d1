"""The flags that say which questions: a benchmark's own and --limit, kept in run.json; and how many
are asked at a time.

A run is scored with the flags that it was made with, so that nobody has to give them twice.
Tests: tests/evaluation/test_scoring.py.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from causalmm.cli.flags import Parser, at_least
from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.benchmark import Benchmark
from causalmm.evaluation.question_files import limited
from causalmm.evaluation.records import Question

FIELD = "question_flags"
"""Where run.json has them."""
BATCH_SIZE = {
    "default": 8,
    "help": "questions at a time; those about one image share its work (default: %(default)s)",
}
"""For `add_batch_size`."""


def add_question_flags(
    parser: argparse.ArgumentParser, benchmark: Benchmark, what: str, optional: bool = False
) -> None:
    """The benchmark's and --limit, of which the help says `what`.

    If `optional`, none has to be given, and one that is not is not in the result.
    """
    group = parser.add_argument_group(
        "questions", "Those not given are as in the run's run.json, if it has them." * optional
    )
    benchmark.add_flags(group, optional)
    default = argparse.SUPPRESS if optional else None
    group.add_argument("--limit", type=at_least(1), metavar="N", help=what, default=default)


def given_flags(args: argparse.Namespace, benchmark: Benchmark) -> dict[str, Any]:
    """Those in the result of a parser with `add_question_flags`, by their names."""
    return {name: getattr(args, name) for name in (*benchmark.flags, "limit") if name in args}


def to_record(args: argparse.Namespace, benchmark: Benchmark) -> dict[str, Any]:
    """The flags for run.json, files by their absolute paths."""
    given = given_flags(args, benchmark)
    text = json.dumps(given, default=lambda path: str(path.absolute()))
    return {name: value for name, value in json.loads(text).items() if value is not None}


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
    parser = Parser()
    add_question_flags(parser, benchmark, "")
    argv = []
    for name, value in {**recorded, **given}.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            argv += [flag, *map(str, value)]
        elif value is not None:
            argv.append(f"{flag}={value}")
    args = parser.parse_args(argv)
    questions = benchmark.questions(args)
    return questions, limited(questions, args.limit)
