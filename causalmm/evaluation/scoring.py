"""The commands `score` and `compare`: from the answers of runs to tables and JSON.

Both take `args` with the benchmark's name in `benchmark`, its flags as `question_flags` adds them,
and theirs; a folder of controls or of a grid stands for all its runs. Which questions were asked is
read from run.json, where it lies beside the answers. Tables go to standard output.
Held by tests/evaluation/test_scoring.py.
"""

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from causalmm.cli.json_lines import read_bytes, to_object, write_whole
from causalmm.errors import FailureError, RequestError
from causalmm.evaluation.answers_file import ANSWERS, CONTROLS, find_runs, read_answers
from causalmm.evaluation.benchmarks.registry import BENCHMARKS, Benchmark
from causalmm.evaluation.compare import compare
from causalmm.evaluation.foreign_answers import is_foreign, read_foreign
from causalmm.evaluation.question_flags import FIELD, given_flags, read_questions
from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.run_record import RECORD

_CONTROL_BASES = (CONTROLS[0], CONTROLS[2])
"""What any gain must be measured against: greedy, and sampling under the mask alone."""


def add_score_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `score`, beside those that say which questions."""
    _add_flags(
        parser,
        "the folder of a run or of several, or the answers file of one, which may be of the form "
        "that LLaVA's and VCD's scripts write: JSON lines with question_id and text",
    )


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `compare`, beside those that say which questions."""
    _add_flags(parser, "two runs or more over the same questions, or a folder of such")
    parser.add_argument(
        "--base",
        action="append",
        metavar="NAME",
        help="the run that the others are compared with, by the name of its folder; may be given "
        f"several times (default: the first; of --controls {' and '.join(_CONTROL_BASES)})",
    )


def score_command(args: argparse.Namespace) -> None:
    """Print the scores of runs.

    Raises RequestError, or FailureError where --out cannot be written.
    """
    benchmark, runs = _read(args)
    reports = {name: benchmark.score(run.questions, run.answers) for name, run in runs.items()}
    _write(
        args.out,
        {
            "benchmark": benchmark.name,
            "reports": {name: report.to_dict() for name, report in reports.items()},
            "runs": {name: run.record for name, run in runs.items()},
        },
    )
    several = len(reports) > 1
    _print("\n\n".join(f"{name}\n\n" * several + each.table() for name, each in reports.items()))


def compare_command(args: argparse.Namespace) -> None:
    """Print runs side by side and their differences; raises as `score_command` does."""
    benchmark, runs = _read(args)
    bases = args.base or (_CONTROL_BASES if runs.keys() >= set(_CONTROL_BASES) else ())
    answers = {name: run.answers for name, run in runs.items()}
    questions = next(iter(runs.values())).questions
    found = compare(benchmark.name, benchmark.tally, questions, answers, bases=bases)
    _write(args.out, found.to_dict() | {"runs": {name: run.record for name, run in runs.items()}})
    _print(found.table())


def named_runs(paths: Sequence[Path]) -> dict[str, Path]:
    """All runs at some paths by the names of their folders, by their paths where two have one name.

    Raises RequestError where there is no run, or one twice.
    """
    runs = [run for path in paths for run in find_runs(path).items()]
    # A run's own file goes by the name of its folder.
    places = [(path.parent if path.name == ANSWERS else path).resolve() for _, path in runs]
    if len(set(places)) < len(places):
        raise RequestError("one run is given twice")
    runs = [
        (place.name if path.name == ANSWERS else name, path)
        for (name, path), place in zip(runs, places, strict=True)
    ]
    names = [name for name, _ in runs]
    return {name if names.count(name) == 1 else str(path): path for name, path in runs}


def _add_flags(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("answers", nargs="+", type=Path, metavar="RUN", help=what)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON, too")


class _Run(NamedTuple):
    """Answers, the questions they are to, and what they were made with, where that is known."""

    questions: list[Question]
    answers: dict[str, Answer]
    record: dict[str, Any] | None


def _read(args: argparse.Namespace) -> tuple[Benchmark, dict[str, _Run]]:
    if args.out is not None and not args.out.parent.is_dir():
        raise RequestError(f"--out {args.out}: there is no folder {args.out.parent}")
    benchmark, given = BENCHMARKS[args.benchmark], given_flags(args)
    paths = named_runs(args.answers)
    records = {name: _record(path) for name, path in paths.items()}
    recorded = {name: _flags(record) for name, record in records.items()}
    # Answers without a record are taken for answers to the questions of those that have one.
    others = next(filter(None, recorded.values()), {})
    read: dict[str, tuple[list[Question], list[Question]]] = {}
    runs = {}
    for name, path in paths.items():
        flags = recorded[name] or others
        key = json.dumps(flags, sort_keys=True)
        if key not in read:
            read[key] = read_questions(benchmark, flags, given)
        questions, asked = read[key]
        if path.is_file() and is_foreign(path):
            answers = read_foreign(path, questions)
            answers = {each.id: answers[each.id] for each in asked if each.id in answers}
        else:
            answers = read_answers(path)
        runs[name] = _Run(asked, answers, records[name])
    return benchmark, runs


def _record(path: Path) -> dict[str, Any] | None:
    """What a run was made with, where that lies beside its answers."""
    # Of a file of another name, what lies beside it may be another run's.
    folder = path.parent if path.name == ANSWERS and path.is_file() else path
    file = folder / RECORD
    return to_object(read_bytes(file)) if file.is_file() else None


def _flags(record: Mapping[str, Any] | None) -> dict[str, Any]:
    flags = (record or {}).get(FIELD)
    return flags if isinstance(flags, dict) else {}


def _write(out: Path | None, result: Mapping[str, Any]) -> None:
    if out is None:
        return
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    try:
        write_whole(out, text.encode())
    except OSError as error:
        raise FailureError(f"--out {out} cannot be written ({error.strerror})") from error


def _print(table: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may leave the terminal's encoding
    print(table, flush=True)
