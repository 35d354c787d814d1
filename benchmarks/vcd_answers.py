"""Answers of VCD, by the package `mitigv`, to a benchmark's questions: a run to score and compare.

python benchmarks/vcd_answers.py pope --questions FILE --images FOLDER --model CHECKPOINT --out DIR
python scripts/evaluate.py pope compare RUN DIR --questions FILE --images FOLDER

Greedy, alpha 1, beta 0.1 and diffusion noise, the package's own settings. It runs LLaVA alone, and
says no probabilities. A run goes on after an interruption. Held by
tests/measuring/test_vcd_answers.py.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from measure import run_command
from mitigv_vcd import VisualContrast, available
from tqdm import tqdm

from causalmm.cli.flags import Parser, add_model, add_running, at_least
from causalmm.cli.request import find_model
from causalmm.cli.session import Session
from causalmm.cli.sole_writer import sole_writer
from causalmm.errors import RequestError
from causalmm.evaluation.answers_file import answer_line, finish, gather, part_file
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.question_files import limited
from causalmm.evaluation.records import Answer, Question
from causalmm.inputs.json_lines import cut_torn_line
from causalmm.inputs.messages import one_turn, open_messages


def main(argv: list[str] | None = None) -> int:
    """Answer the questions and return the exit code."""
    return run_command(run, argv)


def run(argv: Sequence[str]) -> None:
    """Answer what has no answer yet. Raises RequestError where VCD cannot be run."""
    args = parse_args(argv)
    questions = limited(BENCHMARKS[args.benchmark].questions(args), args.limit)
    request = find_model(args)
    args.out.mkdir(parents=True, exist_ok=True)
    with sole_writer(part_file(args.out, 0)):
        answer(args, questions, Session.start(args, request))


def answer(args: argparse.Namespace, questions: Sequence[Question], session: Session) -> None:
    """Append what is missing to the answers. Raises RequestError where VCD cannot be run."""
    if not available(session.model):
        raise RequestError("VCD needs the package mitigv and a LLaVA checkpoint")
    file = part_file(args.out, 0)
    cut_torn_line(file)
    done = gather(args.out, questions)
    with open(file, "ab") as answers:
        for question in tqdm(questions, desc="VCD", unit="question"):
            if question.id not in done:
                answers.write(answer_line(ask(session, question)))
                answers.flush()
    finish(args.out, questions)


def ask(session: Session, question: Question) -> Answer:
    """The answer to one question, or why there is none."""
    begun = time.perf_counter()
    text = error = None
    try:
        inputs = session.inputs(open_messages(one_turn([question.path], question.prompt)))
    except RequestError as refused:
        error = str(refused)
    else:
        tokenizer = session.processor.tokenizer
        [tokens] = VisualContrast(session.model).generate(
            dict(inputs.to(session.model.device)),
            session.request.max_new_tokens,
            end_token=tokenizer.eos_token_id,
        )
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    seconds = round(time.perf_counter() - begun, 4)
    return question.answered(text, error=error, seconds=seconds)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags as given. Raises RequestError for flags that cannot be read."""
    parser = Parser(prog="vcd_answers.py", description=__doc__.partition("\n")[0])
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for benchmark in BENCHMARKS.values():
        own = benchmarks.add_parser(benchmark.name, help=benchmark.title)
        own.add_argument("--out", type=Path, required=True, metavar="FOLDER")
        own.add_argument("--limit", type=at_least(1), metavar="N", help="the first N images only")
        own.add_argument(
            "--max-new-tokens", type=at_least(1), default=benchmark.max_new_tokens, metavar="N"
        )
        add_model(own)
        benchmark.add_flags(own.add_argument_group("questions"))
        add_running(own)
        own.set_defaults(mode="plain", config=None)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
