"""Answers of VCD, by the package `mitigv`, to a benchmark's questions: a run to score and compare.

python benchmarks/vcd_answers.py pope --questions FILE --images FOLDER --model CHECKPOINT --out DIR
python scripts/evaluate.py pope compare RUN DIR --questions FILE --images FOLDER

Greedy, alpha 1, beta 0.1 and diffusion noise, the package's own settings. It runs LLaVA alone, and
says no probabilities. A run goes on after an interruption.
Tests: tests/measuring/test_vcd_answers.py.
"""

import argparse
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import mitigv_vcd
from measure import command

from causalmm.cli.answer import Reply
from causalmm.cli.flags import Parser, add_model, add_retry_failed, add_running, at_least
from causalmm.cli.request import find_model
from causalmm.cli.session import Session
from causalmm.cli.sole_writer import sole_writer
from causalmm.errors import RequestError
from causalmm.evaluation.answers_file import finish, part_file
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.processes import Processes
from causalmm.evaluation.question_files import limited
from causalmm.evaluation.question_flags import FIELD, add_question_flags, to_record
from causalmm.evaluation.run_record import (
    check_record,
    common_settings,
    decoding_settings,
    surroundings,
)
from causalmm.evaluation.runner import Run, answer_share, open_runs, take_share
from causalmm.inputs.messages import one_turn, open_messages


def run(argv: Sequence[str]) -> None:
    """Answer what has no answer yet. Raises RequestError where VCD cannot be run."""
    args = parse_args(argv)
    benchmark = BENCHMARKS[args.benchmark]
    questions = limited(benchmark.questions(args), args.limit)
    request = find_model(args)
    if not mitigv_vcd.available(request.family):
        raise RequestError("VCD needs the package mitigv and a LLaVA checkpoint")
    settings = common_settings(benchmark.name, questions, request, args)
    settings |= decoding_settings(request, 1)
    settings["vcd"] = mitigv_vcd.SETTINGS | {"mitigv": metadata.version("mitigv")}
    check_record(args.out, settings)
    args.out.mkdir(parents=True, exist_ok=True)
    with sole_writer(part_file(args.out, 0)):
        vcd = Run(
            name="VCD", request=request, folder=args.out, questions=questions, settings=settings
        )
        open_runs([vcd], args.retry_failed)
        share = take_share(vcd, 1, Processes())
        session = VcdSession.start(args, request)
        about = surroundings(benchmark.question_files(args), session.model)
        about |= {"name": vcd.name, FIELD: to_record(args, benchmark)}
        answer_share(session, share, {}, Processes(), about)
    finish(args.out, questions)


class VcdSession(Session):
    """A session that answers by VCD, one row at a time."""

    def ask_rows(self, rows: Sequence[Any], seed: int, trace: Any = None) -> list[Reply | str]:
        """The reply to each row, or a sentence on why it cannot be asked."""
        return [self._ask_row(row) for row in rows]

    def _ask_row(self, row: Any) -> Reply | str:
        try:
            inputs = self.inputs(open_messages(one_turn(row.images, row.prompt)))
        except RequestError as error:
            return str(error)
        tokenizer = self.processor.tokenizer
        [tokens] = mitigv_vcd.generate(
            self.model,
            dict(inputs.to(self.model.device)),
            self.request.max_new_tokens,
            end_token=tokenizer.eos_token_id,
        )
        return Reply(tokenizer.decode(tokens, skip_special_tokens=True).strip(), tokens.tolist())


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags as given. Raises RequestError for flags that cannot be read."""
    parser = Parser(prog="vcd_answers.py", description=__doc__.partition("\n")[0])
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for benchmark in BENCHMARKS.values():
        own = benchmarks.add_parser(benchmark.name, help=benchmark.title)
        own.add_argument("--out", type=Path, required=True, metavar="FOLDER")
        own.add_argument(
            "--max-new-tokens", type=at_least(1), default=benchmark.max_new_tokens, metavar="N"
        )
        add_model(own)
        add_retry_failed(own)
        add_question_flags(own, benchmark, "ask about the first N images only")
        add_running(own)
        own.set_defaults(mode="plain", config=None)
    return parser.parse_args(argv)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(main())
