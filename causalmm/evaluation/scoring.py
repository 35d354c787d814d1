"""The commands `score` and `compare`: from the answers of runs to tables and JSON.

Both take `args` with the benchmark's name in `benchmark`, its flags as `question_flags` adds them,
and theirs; a folder of controls or of a grid stands for all its runs. Which questions were asked is
read from run.json, where it lies beside the answers. Tables go to standard output.
Tests: tests/evaluation/test_scoring.py.
"""

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from causalmm.errors import FailureError, RequestError
from causalmm.evaluation import over_seeds
from causalmm.evaluation.answers_file import CONTROLS, find_runs, folder_of, read_answers
from causalmm.evaluation.benchmarks.benchmark import Benchmark
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.compare import compare
from causalmm.evaluation.foreign_answers import is_foreign, read_foreign
from causalmm.evaluation.question_flags import FIELD, given_flags, read_questions
from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.report import to_json
from causalmm.evaluation.run_record import read_record
from causalmm.evaluation.tally import join
from causalmm.inputs.json_lines import write_json

CONTROL_BASES = (CONTROLS[0], CONTROLS[2])
"""What any gain must be measured against: greedy, and sampling under the mask alone."""


def score_command(args: argparse.Namespace) -> None:
    """Print the scores of runs.

    Raises RequestError, or FailureError where --out cannot be written.
    """
    runs, benchmark = given_runs(args), BENCHMARKS[args.benchmark]
    reports = {name: benchmark.score(run.questions, run.answers) for name, run in runs.items()}
    several = len(reports) > 1
    tables = [f"{name}\n\n" * several + each.table() for name, each in reports.items()]
    pairs = {name: join(run.questions, run.answers) for name, run in runs.items()}
    seeds = over_seeds.over_seeds(benchmark.tally, pairs)
    if seeds:
        tables.append(over_seeds.table(seeds))
    result = {"benchmark": benchmark.name, "reports": to_json(reports), "seeds": to_json(seeds)}
    _publish(args.out, result, runs, "\n\n".join(tables))


def compare_command(args: argparse.Namespace) -> None:
    """Print runs side by side and their differences; raises as `score_command` does."""
    runs, benchmark = given_runs(args), BENCHMARKS[args.benchmark]
    bases = args.base or (CONTROL_BASES if runs.keys() >= set(CONTROL_BASES) else ())
    answers = {name: run.answers for name, run in runs.items()}
    questions = next(iter(runs.values())).questions
    found = compare(
        benchmark.name,
        benchmark.tally,
        questions,
        answers,
        bases=bases,
        matchings=benchmark.matchings,
        in_other_words={name: run.questions for name, run in runs.items()},
    )
    _publish(args.out, to_json(found), runs, found.table())


def named_runs(paths: Sequence[Path]) -> dict[str, Path]:
    """All runs at some paths by the names of their folders, by their paths where two have one name.

    Raises RequestError where there is no run, or one twice.
    """
    runs = [run for path in paths for run in find_runs(path).items()]
    if len({folder_of(path) for _, path in runs}) < len(runs):
        raise RequestError("one run is given twice")
    names = [name for name, _ in runs]
    return {name if names.count(name) == 1 else str(path): path for name, path in runs}


class AnsweredRun(NamedTuple):
    """Answers, the questions they are to, and what they were made with, where that is known."""

    questions: list[Question]
    answers: dict[str, Answer]
    record: dict[str, Any] | None


def given_runs(args: argparse.Namespace) -> dict[str, AnsweredRun]:
    """The runs that a command was given, by name. Raises RequestError."""
    if args.out is not None and not args.out.parent.is_dir():
        raise RequestError(f"--out {args.out}: there is no folder {args.out.parent}")
    benchmark = BENCHMARKS[args.benchmark]
    return read_runs(benchmark, named_runs(args.answers), given_flags(args, benchmark))


def read_runs(
    benchmark: Benchmark, paths: Mapping[str, Path], given: Mapping[str, Any]
) -> dict[str, AnsweredRun]:
    """The runs at some paths, by name; `given` are the benchmark's flags in the place of recorded
    ones. Raises RequestError for what cannot be read."""
    # Of a file of another name, what lies beside it may be another run's.
    records = {name: read_record(folder_of(path)) or None for name, path in paths.items()}
    flags_of = {name: (record or {}).get(FIELD) for name, record in records.items()}
    recorded = {name: flags if isinstance(flags, dict) else {} for name, flags in flags_of.items()}
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
        runs[name] = AnsweredRun(asked, answers, records[name])
    return runs


def _publish(
    out: Path | None, result: dict[str, Any], runs: Mapping[str, AnsweredRun], table: str
) -> None:
    """Write the result, if a file is given, then print the table."""
    if out is not None:
        try:
            write_json(out, result | {"runs": {name: run.record for name, run in runs.items()}})
        except OSError as error:
            raise FailureError(f"--out {out} cannot be written ({error.strerror})") from error
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may leave the terminal's encoding
    print(table, flush=True)
