"""The `data` command: make what `evaluate` needs of hub data sets or folders, and check it.

Exit codes: 0, 1 where something is missing or is not as published, 2 for a wrong request, 130 when
interrupted. Given again, it does the same again; a download goes on where it stopped.
Tests: tests/evaluation/test_data_command.py.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causalmm.cli.flags import Parser, flag_name
from causalmm.cli.sole_writer import sole_writer
from causalmm.cli.terminal import complain, exit_code, quiet_hub
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.data import chair, mme, pope, vlind
from causalmm.evaluation.data.prepared import Preparation, Prepared
from causalmm.evaluation.data.sources import find
from causalmm.evaluation.data.writing import (
    MANIFEST,
    Pictures,
    check_out,
    check_pictures,
    write_files,
    write_index,
    write_manifest,
)

PREPARATIONS: dict[str, Preparation] = {
    "pope": pope.PREPARATION,
    "mme": mme.PREPARATION,
    "vlind": vlind.PREPARATION,
    "chair": chair.PREPARATION,
}
"""By the names of the benchmarks."""


def main(argv: list[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command and return its exit code; `prog` is its name in messages."""
    return exit_code(lambda: run(parse_args(sys.argv[1:] if argv is None else argv, prog)))


def parse_args(argv: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Flags as given. Raises RequestError."""
    parser = Parser(
        prog=prog, description="Prepare the data of a benchmark for `evaluate`, and check them."
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, preparation in PREPARATIONS.items():
        title = BENCHMARKS[name].title
        each = benchmarks.add_parser(name, help=title, description=f"Prepare the data of {title}.")
        each.add_argument(
            "--source",
            action="append",
            metavar="FOLDER|DATASET",
            help="a folder, or a data set of the hub; may be given several times, as for questions "
            f"and pictures that lie apart (default: {preparation.source})",
        )
        each.add_argument("--out", type=Path, required=True, metavar="FOLDER")
        each.add_argument(
            "--download",
            action="store_true",
            help="fetch what of a data set is not in the local cache; without it, nothing is",
        )
        each.add_argument(
            "--revision", metavar="COMMIT", help="of the data sets (default: the newest)"
        )
        for flag, options in preparation.flags.items():
            each.add_argument(flag_name(flag), **options)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Write the files of a benchmark and print what they are; 1 where something is wrong with them.

    Raises RequestError for sources without such data or a folder that holds others, FailureError
    where a data set cannot be fetched.
    """
    quiet_hub()
    preparation = PREPARATIONS[args.benchmark]
    fetched = {"revision": args.revision, "download": args.download}
    sources = [
        find(given, preparation.patterns, **fetched)
        for given in args.source or [preparation.source]
    ]
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with sole_writer(out / MANIFEST):
        check_out(out, args.benchmark, sources)
        given = {name: getattr(args, name) for name in preparation.flags}
        prepared = preparation.prepare(sources, **given)
        write_files(out, args.benchmark, prepared.files)
        # Read as `evaluate` will: what it refuses is told now.
        questions = BENCHMARKS[args.benchmark].read(**_flags(out, prepared))
        wanted = list(dict.fromkeys(each.image for each in questions))
        pictures = check_pictures(wanted, prepared.places)
        write_index(out, pictures.there, prepared.places)
        write_manifest(out, args.benchmark, sources, prepared, pictures)
    return _report(args, len(questions), prepared, pictures)


def _report(
    args: argparse.Namespace, questions: int, prepared: Prepared, pictures: Pictures
) -> int:
    print(f"{args.out}: {questions} questions about {len(pictures.there)} pictures")
    for name, count in prepared.counts.items():
        print(f"  {name:<24} {count:>6}")
    for note in prepared.notes:
        print(note)
    problems = [*prepared.problems, *pictures.problems]
    for problem in problems:
        complain(problem)
    given = []
    for name, value in _flags(args.out, prepared).items():
        given += [flag_name(name), *map(str, value if isinstance(value, list) else [value])]
    print("ask them by:")
    asked = ["causalmm", "evaluate", args.benchmark, "run", *given]
    print(f"  {shlex.join([*asked, '--model', 'MODEL', '--out', 'RUN'])}")
    return int(bool(problems))


def _flags(out: Path, prepared: Prepared) -> dict[str, Any]:
    """The flags of `evaluate` with the files in `out`."""
    return {
        name: [out / each for each in value] if isinstance(value, list) else out / value
        for name, value in prepared.flags.items()
    }
