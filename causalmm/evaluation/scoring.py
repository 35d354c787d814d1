"""The commands `score` and `compare`: from the answers of runs to tables and JSON.

Both take `args` with the benchmark's own flags, its name in `benchmark`, and theirs; a folder of
controls or of a grid stands for all its runs. Tables go to standard output.
Held by tests/test_scoring.py.
"""

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from causalmm.errors import FailureError, RequestError
from causalmm.evaluation.answers_file import ANSWERS, CONTROLS, find_runs, read_answers
from causalmm.evaluation.benchmarks import BENCHMARKS, Benchmark
from causalmm.evaluation.compare import compare
from causalmm.evaluation.records import Question
from causalmm.evaluation.run_record import RECORD
from causalmm.evaluation.runner import limited
from causalmm.json_lines import read_bytes, to_object, write_whole

_CONTROL_BASES = (CONTROLS[0], CONTROLS[2])
"""What any gain must be measured against: greedy, and sampling under the mask alone."""


def add_score_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `score`, beside those that say which questions."""
    _add_flags(parser, "the folder of a run or of several, or the answers file of one")


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
    benchmark, questions, runs = _asked(args)
    reports = {name: benchmark.score(questions, read_answers(path)) for name, path in runs.items()}
    _write(
        args.out,
        {
            "benchmark": benchmark.name,
            "reports": {name: report.to_dict() for name, report in reports.items()},
            "runs": _records(runs),
        },
    )
    several = len(reports) > 1
    _print("\n\n".join(f"{name}\n\n" * several + each.table() for name, each in reports.items()))


def compare_command(args: argparse.Namespace) -> None:
    """Print runs side by side and their differences; raises as `score_command` does."""
    benchmark, questions, runs = _asked(args)
    bases = args.base or (_CONTROL_BASES if runs.keys() >= set(_CONTROL_BASES) else ())
    answers = {name: read_answers(path) for name, path in runs.items()}
    found = compare(benchmark.name, benchmark.tally, questions, answers, bases=bases)
    _write(args.out, found.to_dict() | {"runs": _records(runs)})
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
    parser.add_argument(
        "--limit", type=int, metavar="N", help="the first N images only, as the runs were"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON, too")


def _asked(args: argparse.Namespace) -> tuple[Benchmark, list[Question], dict[str, Path]]:
    if args.out is not None and not args.out.parent.is_dir():
        raise RequestError(f"--out {args.out}: there is no folder {args.out.parent}")
    benchmark = BENCHMARKS[args.benchmark]
    return benchmark, limited(benchmark.from_args(args), args.limit), named_runs(args.answers)


def _records(runs: Mapping[str, Path]) -> dict[str, Any]:
    """What each run was made with, where that lies beside its answers."""
    files = {name: _folder(path) / RECORD for name, path in runs.items()}
    return {
        name: to_object(read_bytes(file)) if file.is_file() else None
        for name, file in files.items()
    }


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


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
