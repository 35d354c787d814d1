"""The `evaluate` command: run a benchmark's questions, score, compare and export the answers.

Exit codes: 0, 2 for a wrong request, 1 for a failure, 130 when interrupted. A run is resumed when
its command is given again. Tests: tests/evaluation/test_evaluation_run.py,
tests/evaluation/test_scoring.py and tests/evaluation/test_exporting.py.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from causalmm.cli import flags
from causalmm.cli.batch import outcome
from causalmm.cli.request import find_model
from causalmm.cli.session import Session, memory_guard
from causalmm.cli.sole_writer import sole_writer
from causalmm.cli.terminal import exit_code, tell
from causalmm.errors import RequestError
from causalmm.evaluation import question_flags, run_record
from causalmm.evaluation.answers_file import finish, part_file, parts
from causalmm.evaluation.benchmarks.benchmark import Benchmark
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.exporting import export_command
from causalmm.evaluation.processes import Processes, meeting
from causalmm.evaluation.question_files import check_images, limited
from causalmm.evaluation.runner import Run, Share, answer_share, open_runs, take_share
from causalmm.evaluation.scoring import CONTROL_BASES, compare_command, score_command
from causalmm.evaluation.variants import controls, grid

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
    runs = _runs(args)
    for each in runs:
        run_record.check_record(each.folder, each.settings)
    with contextlib.ExitStack() as held:
        with meeting() as processes:
            if processes.index == 0:
                _hold(held, runs, processes)
                open_runs(runs, args.retry_failed)
            processes.wait()
            if processes.index > 0:
                _hold(held, runs, processes)
            shares = [take_share(each, args.batch_size, processes) for each in runs]
            processes.wait()
        if any(share.units for share in shares):
            with memory_guard():
                _answer(args, shares, processes)
        else:
            for each in runs:
                _report(each, processes)


def _hold(held: contextlib.ExitStack, runs: Sequence[Run], processes: Processes) -> None:
    """The files that this process writes, until `held` is left."""
    for each in runs:
        each.folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(sole_writer(part_file(each.folder, processes.index)))


def _runs(args: argparse.Namespace) -> list[Run]:
    questions = limited(BENCHMARKS[args.benchmark].questions(args), args.limit)
    check_images(questions)
    request = find_model(args)
    if args.controls:
        requests = controls(request)
    elif args.grid is not None:
        requests = grid(request, args.grid)
    else:
        requests = {"": request}
    common = run_record.common_settings(args.benchmark, questions, request, args)
    return [
        Run(
            name=name,
            request=each,
            folder=args.out / name,
            questions=questions,
            settings=common | run_record.decoding_settings(each, args.batch_size),
        )
        for name, each in requests.items()
    ]


def _answer(args: argparse.Namespace, shares: Sequence[Share], processes: Processes) -> None:
    from causalmm.evaluation.probabilities import choice_tokens
    from causalmm.families.loading import check_preset

    benchmark, runs = BENCHMARKS[args.benchmark], [share.run for share in shares]
    device = args.device
    if processes.count > 1 and device in ("auto", "cuda") and runs[0].settings["device"] == "cuda":
        device = f"cuda:{processes.local}"
    # One with a configuration, since that is checked before the weights are read.
    requests = sorted((run.request for run in runs), key=lambda each: each.config is None)
    session = Session.start(argparse.Namespace(**{**vars(args), "device": device}), requests[0])
    for each in runs:
        try:
            check_preset(each.request.preset, session.model)
            session.model.causalmm_plan(each.request.config)
        except ValueError as error:
            raise RequestError(f"{each.name}: {error}".removeprefix(": ")) from error
    words = choice_tokens(session.processor.tokenizer, runs[0].questions)
    if missing := [word for word, tokens in words.items() if not tokens]:
        tell(f"the tokenizer has no token {missing[0]!r}: answers come without probabilities")
    about = run_record.surroundings(benchmark.question_files(args), session.model)
    about[question_flags.FIELD] = question_flags.to_record(args, benchmark)
    for share in shares:
        if share.units:
            named = {"name": share.run.name or None, **about}
            answer_share(session, share, words, processes, named)
        _report(share.run, processes)


def _report(run: Run, processes: Processes) -> None:
    """What there is now; of several processes, the first and the last to end say it."""
    several = len(parts(run.folder)) > 1
    answers = finish(run.folder, run.questions)
    if answers is None:
        if processes.index == 0:
            tell(
                f"{run.folder}: not every question has an answer yet; once no other process is at "
                "work on the rest, give the command again"
            )
    elif several or processes.index == 0:
        failed = sum(answer.error is not None for answer in answers.values())
        tell(f"{run.folder}: {outcome(len(answers) - failed, failed)}")
