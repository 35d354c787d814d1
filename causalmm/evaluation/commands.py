"""The `evaluate` command: run a benchmark's questions, score, compare and export the answers.

Exit codes: 0, 2 for a wrong request, 1 for a failure, 130 when interrupted. A run is resumed when
its command is given again. Tests: tests/evaluation/test_evaluation_run.py,
tests/evaluation/test_scoring.py and tests/evaluation/test_exporting.py.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from causalmm.cli import flags
from causalmm.cli.request import Request, find_model
from causalmm.cli.terminal import exit_code
from causalmm.errors import RequestError
from causalmm.evaluation import question_flags, run_record
from causalmm.evaluation.benchmarks.benchmark import Benchmark
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.benchmarks.yes_no import CHOICES
from causalmm.evaluation.exporting import export_command
from causalmm.evaluation.question_files import check_images, limited
from causalmm.evaluation.runner import Run
from causalmm.evaluation.running import answer_runs
from causalmm.evaluation.scoring import CONTROL_BASES, compare_command, score_command
from causalmm.evaluation.variants import YES_PROMPT, controls, grid, spurious, with_seeds

_SCORED = (
    "the folder of a run or of several, or the answers file of one, which may be of the form that "
    "LLaVA's and VCD's scripts write: JSON lines with question_id and text"
)
_EXPORTED = "the folder of a run, or its answers file"
_COMPARED = "two runs or more over the same questions, or a folder of such"


def main(argv: list[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command and return its exit code; `prog` is its name in messages."""

    def act() -> None:
        args = parse_args(sys.argv[1:] if argv is None else argv, prog)
        args.act(args)

    return exit_code(act)


def parse_args(argv: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Flags as given, and in `act` what to do with them. Raises RequestError."""
    parser = flags.Parser(
        prog=prog, description="Ask a benchmark's questions and count the answers."
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for benchmark in BENCHMARKS.values():
        of_benchmark = benchmarks.add_parser(
            benchmark.name, help=benchmark.title, description=benchmark.title
        )
        actions = of_benchmark.add_subparsers(dest="action", required=True, metavar="ACTION")
        _add_run(actions, benchmark)
        _add_reading(actions, benchmark, score_command, "score", "count its answers", _SCORED)
        compare = _add_reading(
            actions, benchmark, compare_command, "compare", "compare runs", _COMPARED
        )
        compare.add_argument(
            "--base",
            action="append",
            metavar="NAME",
            help="the run that the others are compared with, by the name of its folder; may be "
            "given several times (default: the first; of --controls "
            f"{' and '.join(CONTROL_BASES)})",
        )
        if benchmark.export is not None:
            _add_export(actions, benchmark)
    return parser.parse_args(argv)


def _add_run(actions: Any, benchmark: Benchmark) -> None:
    parser = actions.add_parser(
        "run",
        help="ask a model, into a folder",
        description=f"Ask a model the questions of {benchmark.title}",
        epilog=f"{flags.SETTINGS_EPILOG} Under `accelerate launch` the images are distributed over "
        "the processes. What is in --out already is continued, if it is of the same questions and "
        "settings.",
    )
    parser.set_defaults(act=run)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--controls",
        action="store_true",
        help="five runs in folders of their own: greedy, sample, sample+mask (gamma 0), and the "
        "configuration greedy and sampled",
    )
    several.add_argument(
        "--grid",
        type=Path,
        metavar="FILE",
        help="a run for every combination of the settings in a YAML file, such as "
        "{gamma: [0.5, 1], language_layers: ['half:', all]}, in folders of their own",
    )
    parser.add_argument(
        "--seeds",
        type=flags.at_least(2),
        metavar="N",
        help="as many runs of each that draws anything, with seeds from --seed on, in folders of "
        "their own; score and compare show their mean and spread",
    )
    parser.add_argument(
        "--spurious",
        action="store_true",
        help="two more runs, of greedy decoding that leans toward yes: by a prompt that asks for "
        "it, and where the model is in doubt (arXiv 2504.10020)",
    )
    flags.add_batch_size(parser, **question_flags.BATCH_SIZE)
    flags.add_retry_failed(parser)
    flags.add_model(parser)
    flags.add_pixel_limits(parser)
    question_flags.add_question_flags(parser, benchmark, "ask about the first N images only")
    flags.add_settings(parser)
    flags.add_decoding(parser, benchmark.max_new_tokens)
    flags.add_running(parser)


def _add_reading(
    actions: Any,
    benchmark: Benchmark,
    act: Callable[[argparse.Namespace], None],
    name: str,
    what: str,
    runs: str,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=what, description=benchmark.title)
    parser.set_defaults(act=act)
    parser.add_argument("answers", nargs="+", type=Path, metavar="RUN", help=runs)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON, too")
    _add_questions(parser, benchmark)
    return parser


def _add_export(actions: Any, benchmark: Benchmark) -> None:
    parser = actions.add_parser(
        "export",
        help="write its answers for the published scorer",
        description=f"Write a run's answers as {benchmark.export.form}.",
    )
    parser.set_defaults(act=export_command)
    parser.add_argument("answers", nargs=1, type=Path, metavar="RUN", help=_EXPORTED)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE_OR_FOLDER")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="leave out what has no answer (default: write nothing and exit with 1)",
    )
    _add_questions(parser, benchmark)


def _add_questions(parser: argparse.ArgumentParser, benchmark: Benchmark) -> None:
    limit = "the first N images only, as the run; answers in a file of their own may be of more"
    question_flags.add_question_flags(parser, benchmark, limit, optional=True)


def run(args: argparse.Namespace) -> None:
    """Answer the questions that have no answer yet.

    Raises RequestError for what this model cannot do, FailureError where something goes wrong.
    """
    answer_runs(args, runs_of(args))


def runs_of(args: argparse.Namespace) -> list[Run]:
    """The runs that the flags ask for. Raises RequestError."""
    request = find_model(args)
    if args.controls:
        requests = controls(request)
    elif args.grid is not None:
        requests = grid(request, args.grid)
    else:
        requests = {"": request}
    if args.seeds is not None:
        requests = with_seeds(requests, args.seeds)
    runs = asked(args, requests)
    if args.spurious:
        prompted, lean = spurious(request).items()
        runs += asked(asking_for_yes(args, runs[0]), dict([prompted])) + asked(args, dict([lean]))
    return runs


def asked(args: argparse.Namespace, requests: Mapping[str, Request]) -> list[Run]:
    """The questions that the flags ask for, answered in so many ways."""
    benchmark = BENCHMARKS[args.benchmark]
    questions = limited(benchmark.questions(args), args.limit)
    check_images(questions)
    common = run_record.common_settings(
        args.benchmark, questions, next(iter(requests.values())), args
    )
    return [
        Run(
            name=name,
            request=each,
            folder=args.out / name,
            questions=questions,
            settings=common | run_record.decoding_settings(each, args.batch_size),
            sources=benchmark.question_files(args),
            question_flags=question_flags.to_record(args, benchmark),
        )
        for name, each in requests.items()
    ]


def asking_for_yes(args: argparse.Namespace, run: Run) -> argparse.Namespace:
    """The flags with a prompt that asks for a yes. Raises RequestError where there is none such."""
    if "suffix" not in args or run.questions[0].choices != CHOICES:
        raise RequestError(
            f"--spurious is for questions of yes or no, which {args.benchmark} lacks"
        )
    return argparse.Namespace(**vars(args) | {"suffix": (args.suffix or "") + YES_PROMPT})
