"""The command `export`: a run's answers in the form of the published scripts, for their scorers.

What has no answer is never exported as an empty one. Takes `args` as scoring.py does, of one run.
Tests: tests/evaluation/test_exporting.py.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from causalmm.cli.terminal import tell
from causalmm.errors import FailureError, RequestError
from causalmm.evaluation.benchmarks.benchmark import Export
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.scoring import given_runs
from causalmm.evaluation.tally import Pair, has_failed, join
from causalmm.inputs.json_lines import write_whole


def export_command(args: argparse.Namespace) -> None:
    """Write the answers of one run to --out.

    Raises RequestError for more than one run, and FailureError where answers are missing without
    --partial, none is there, or --out cannot be written.
    """
    runs = given_runs(args)
    if len(runs) > 1:
        raise RequestError(f"{args.answers[0]} holds {len(runs)} runs: give one of them")
    [(name, run)] = runs.items()
    export = BENCHMARKS[args.benchmark].export
    pairs, missing = exportable(export, run.questions, run.answers)
    asked = len(run.questions)
    if missing:
        id, why = next(iter(missing.items()))
        told = f"{len(missing)} of {asked} questions have no answer (first: {id}, {why})"
        if not args.partial:
            raise FailureError(f"{told}: nothing is written; --partial leaves them out")
        tell(told)
    if not pairs:
        raise FailureError("there is no answer to export")
    model = (run.record or {}).get("model")
    written = export.write(pairs, Path(model).name if isinstance(model, str) else name)
    try:
        _write(args.out, written)
    except OSError as error:
        raise FailureError(f"--out {args.out} cannot be written ({error.strerror})") from error
    with_them = asked - len(missing) - len(pairs)
    beside = f"; {with_them} are left out with those that they are scored together with"
    tell(f"{args.out}: {len(pairs)} of {asked} answers" + beside * bool(with_them))


def exportable(
    export: Export, questions: Sequence[Question], answers: Mapping[str, Answer]
) -> tuple[list[Pair], dict[str, str]]:
    """The answers that can be exported, and why others are missing by the question's id.

    Raises RequestError for an answer about another image or prompt.
    """
    given = [each for each in questions if each.id in answers]
    pairs = {each.question.id: each for each in join(given, answers)}
    missing = {
        each.id: (pairs[each.id].answer.error or "no answer") if each.id in pairs else "not asked"
        for each in questions
        if each.id not in pairs or has_failed(pairs[each.id].answer)
    }

    def unit(question: Question) -> str:
        return question.id if export.together is None else question.facts[export.together]

    torn = {unit(each) for each in questions if each.id in missing}
    return [pair for pair in pairs.values() if unit(pair.question) not in torn], missing


def _write(out: Path, written: str | Mapping[str, str]) -> None:
    if isinstance(written, str):
        if out.is_dir():
            raise RequestError(f"--out {out} is a folder, expected a file")
        write_whole(out, written.encode(errors="backslashreplace"))
        return
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file, expected a folder")
    out.mkdir(exist_ok=True)
    if others := sorted({each.name for each in out.iterdir()} - written.keys()):
        raise RequestError(f"--out {out} holds other files (first: {others[0]}): give a new folder")
    for name, text in written.items():
        write_whole(out / name, text.encode(errors="backslashreplace"))
