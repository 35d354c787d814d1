"""Ask a benchmark's questions, image by image, and write the answers as they come.

A unit is what is decoded together: the questions about one image, at most so many at a time, or
several images with one question each. Units depend on the questions alone, and a unit begun before
an interruption is asked whole again; so an answer, a drawn one too, depends neither on the number
of processes nor on interruptions. Tests: tests/evaluation/test_evaluation_run.py.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from causalmm.cli.batch import BatchRow, question_groups
from causalmm.cli.request import Request
from causalmm.cli.seeds import seed_of
from causalmm.cli.session import Session
from causalmm.evaluation import answers_file
from causalmm.evaluation.processes import Processes
from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.run_record import check_record, write_record
from causalmm.inputs.json_lines import cut_torn_line

Unit = Sequence[Question]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One way of answering the questions, and its folder."""

    name: str
    """That of its folder within the command's, "" where it is the only one."""
    request: Request
    folder: Path
    questions: Sequence[Question]
    settings: Mapping[str, Any]
    sources: Sequence[Path] = ()
    """The files that the questions come from."""
    question_flags: Mapping[str, Any] = field(default_factory=dict)
    """Those that ask for the questions, for run.json."""


class Share(NamedTuple):
    """What one process does of a run."""

    run: Run
    units: list[Unit]
    done: frozenset[str]
    """Ids of questions that had an answer before."""


def units(questions: Sequence[Question], size: int) -> list[Unit]:
    """The questions in portions that are decoded together."""
    by_image: dict[str, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.path, []).append(question)
    ordered = [question for asked in by_image.values() for question in asked]
    return [
        ordered[first : first + len(part)] for first, part in question_groups(_rows(ordered), size)
    ]


def open_runs(runs: Sequence[Run], retry_failed: bool) -> None:
    """Join what other processes left. For the first process alone, holding its files.

    Raises RequestError where a folder is another run's, or another process still writes there.
    """
    for run in runs:
        answers_file.check_unwritten(run.folder)
        check_record(run.folder, run.settings)  # again: now no other process can begin
        if retry_failed:
            answers_file.drop_failed(run.folder)
        answers_file.gather(run.folder, run.questions)


def take_share(run: Run, size: int, processes: Processes) -> Share:
    """The units of this process among those not answered yet, those about one image together."""
    done = frozenset(answers_file.gather(run.folder, run.questions))
    left = [
        unit
        for unit in units(run.questions, size)
        if any(question.id not in done for question in unit)
    ]
    by_image = [list(part) for _, part in groupby(left, key=lambda unit: unit[0].path)]
    return Share(run, [unit for part in processes.share(by_image) for unit in part], done)


def answer_share(
    session: Session,
    share: Share,
    words: Mapping[str, Sequence[int]],
    processes: Processes,
    surroundings: Mapping[str, Any],
) -> None:
    """Answer a share's questions and append them to this process's part.

    `words` are the tokens of the choices, see `probabilities`.
    """
    run = share.run
    session = session._replace(request=run.request)
    write_record(run.folder, run.settings, surroundings)
    file = answers_file.part_file(run.folder, processes.index)
    cut_torn_line(file)
    answered = len(share.done) if processes.count == 1 else 0
    left = sum(question.id not in share.done for unit in share.units for question in unit)
    with (
        open(file, "ab") as part,
        tqdm(
            total=answered + left,
            initial=answered,
            unit="question",
            desc=run.name or None,
            disable=processes.index > 0,
            file=sys.stderr,
        ) as progress,
    ):
        for unit in share.units:
            answers = ask(session, unit, words)
            new = [each for each in answers if each.question_id not in share.done]
            part.write(b"".join(map(answers_file.answer_line, new)))
            part.flush()
            progress.update(len(new))


def ask(session: Session, unit: Unit, words: Mapping[str, Sequence[int]]) -> list[Answer]:
    """The answers to a unit's questions, or why there is none."""
    from causalmm.evaluation.probabilities import WordTrace, deciding_step

    watched = {each.id for each in unit if each.choices and all(map(words.get, each.choices))}
    trace = WordTrace(words) if watched else None
    begun = time.perf_counter()
    replies = list(ask_unit(session, unit, trace))
    seconds = round((time.perf_counter() - begun) / len(unit), 4)
    answers = []
    for question, reply, row in replies:
        if row is None:
            answers.append(question.answered(None, error=reply, seconds=seconds))
            continue
        scores = None
        if question.id in watched:
            step = deciding_step(session.processor.tokenizer, reply.tokens, question.choices)
            scores = trace.scores(row, step, question.choices)
        answers.append(question.answered(reply.text, seconds=seconds, scores=scores))
    return answers


def ask_unit(
    session: Session, unit: Unit, trace: Any
) -> Iterator[tuple[Question, Any, int | None]]:
    """Each question, the reply, or a sentence on why it cannot be asked, and the reply's row in
    what `trace` saw, None for a sentence."""
    replies = session.ask_rows(_rows(unit), unit_seed(session.request.seed, unit), trace)
    row = 0
    for question, reply in zip(unit, replies, strict=True):
        failed = isinstance(reply, str)
        yield question, reply, None if failed else row
        row += not failed


def unit_seed(seed: int, unit: Unit) -> int:
    """Of what is drawn for a unit: by the seed and by what is asked, not by when or where."""
    return seed_of(f"{seed} {unit[0].image} {unit[0].id}")


def _rows(questions: Sequence[Question]) -> list[BatchRow]:
    return [BatchRow(each.id, each.path or [], each.prompt) for each in questions]
