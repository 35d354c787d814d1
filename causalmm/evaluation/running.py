"""Runs answered with one load of the model, by one process or by several.

What is in a run's folder already is continued. Tests: tests/evaluation/test_evaluation_run.py and
tests/evaluation/test_evaluation_processes.py.
"""

import argparse
import contextlib
from collections.abc import Sequence

from causalmm.cli.batch import outcome
from causalmm.cli.session import Session, memory_guard
from causalmm.cli.sole_writer import sole_writer
from causalmm.cli.terminal import tell
from causalmm.errors import RequestError
from causalmm.evaluation import question_flags, run_record
from causalmm.evaluation.answers_file import finish, part_file, parts
from causalmm.evaluation.processes import Processes, meeting
from causalmm.evaluation.runner import Run, Share, answer_share, open_runs, take_share


def answer_runs(args: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Answer the questions of runs of one model and one benchmark that have no answer yet.

    `args` has the flags of `cli.flags.add_running`, `retry_failed` and `batch_size`. Raises
    RequestError for what this model cannot do, FailureError where something goes wrong.
    """
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


def _answer(args: argparse.Namespace, shares: Sequence[Share], processes: Processes) -> None:
    from causalmm.evaluation.probabilities import choice_tokens
    from causalmm.families.loading import check_preset

    runs = [share.run for share in shares]
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
    for run, share in zip(runs, shares, strict=True):
        if share.units:
            about = run_record.surroundings(run.sources, session.model)
            about |= {"name": run.name or None, question_flags.FIELD: run.question_flags}
            answer_share(session, share, words, processes, about)
        _report(run, processes)


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
