"""Several questions about one image: one by one, and together on one prefill of the image.

python benchmarks/questions.py --preset cpu-small

Plain and CausalMM each answer all questions one after another by `generate`, and all at once by
`causalmm.decoding.shared_image.generate_together`, taking turns in one process. Greedy, random
weights, no end token: every answer has `--new-tokens` tokens. Held by
tests/measuring/test_benchmarks.py.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import table
import torch
from measure import (
    DTYPES,
    RESULTS,
    Bar,
    pick_device,
    ratios,
    run_command,
    spread,
    synchronize,
    take_turns,
    write_record,
)
from torch import Tensor

from causalmm import CausalMMConfig
from causalmm.config import MODES
from causalmm.decoding.shared_image import generate_together

ALONE, TOGETHER = "one by one", "together"
PLAIN, OURS = "plain", "causalmm"


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_command(run, argv)


def run(argv: list[str]) -> None:
    """Measure, write and print. Raises RequestError for what cannot be measured."""
    args = parse_args(argv)
    device = pick_device(args.device)
    pair = models.build_pair(
        args.preset, dtype=DTYPES[args.dtype], device=device, image_tokens=args.image_tokens
    )
    rows = questions(args, pair.ours)
    plan = pair.ours.causalmm_plan(CausalMMConfig(mode=args.mode))
    settings = {"do_sample": False, "max_new_tokens": args.new_tokens}

    def alone(model: Any, **extra: Any) -> Callable[[], Tensor]:
        def call() -> Tensor:
            said = [model.generate(**row, **settings, **extra) for row in rows]
            new = [
                tokens[0, row["input_ids"].shape[1] :]
                for tokens, row in zip(said, rows, strict=True)
            ]
            return torch.stack(new)

        return call

    def together(plan: Any) -> Callable[[], Tensor]:
        return lambda: generate_together(pair.ours, rows, causalmm=plan, **settings)

    ways = {
        f"{PLAIN}, {ALONE}": alone(pair.upstream),
        f"{PLAIN}, {TOGETHER}": together(None),
        f"{OURS}, {ALONE}": alone(pair.ours, causalmm=plan),
        f"{OURS}, {TOGETHER}": together(plan),
    }
    answers = take_turns(
        {way: lambda call=call: _timed(call, device) for way, call in ways.items()}, args.rounds
    )
    results = rows_of(answers, len(rows))
    out = args.out or RESULTS / f"questions-{args.preset}-{device.type}.json"
    recorded = {name: value for name, value in vars(args).items() if name != "out"}
    record = write_record(out, "questions", argv, device, recorded, results, bars_of(results))
    print(table.show(record))


def questions(args: argparse.Namespace, model: Any) -> list[dict[str, Tensor]]:
    """Prompts about one image that differ in what follows it, each some tokens longer."""
    return [
        models.prompt(
            args.preset, model, image_tokens=args.image_tokens,
            text_tokens=args.text_tokens + 2 * number, question=number,
        )
        for number in range(args.questions)
    ]  # fmt: skip


def _timed(call: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    synchronize(device)
    begun = time.perf_counter()
    tokens = call()
    synchronize(device)
    return time.perf_counter() - begun, tokens.cpu()


def rows_of(answers: dict[str, list[tuple[float, Tensor]]], questions: int) -> list[dict[str, Any]]:
    """Each way's time, and its ratios to plain one by one and to CausalMM one by one."""
    seconds = {way: [each[0] for each in rounds] for way, rounds in answers.items()}
    rows = []
    for way, mine in seconds.items():
        kind = way.partition(",")[0]
        one_by_one = answers[f"{kind}, {ALONE}"][0][1]
        rows.append(
            {
                "way": way,
                "time_s": spread(mine),
                "questions_per_s": questions / spread(mine)["median"],
                "speed_to_plain": ratios(seconds[f"{PLAIN}, {ALONE}"], mine),
                "speed_to_causalmm": ratios(seconds[f"{OURS}, {ALONE}"], mine),
                # Rounding may turn a near tie.
                "same_tokens": float((answers[way][0][1] == one_by_one).float().mean()),
            }
        )
    return rows


def bars_of(rows: list[dict[str, Any]]) -> list[Bar]:
    mine = next(row for row in rows if row["way"] == f"{OURS}, {TOGETHER}")
    return [
        Bar("speed to CausalMM one by one", mine["speed_to_causalmm"]["median"], 3.0, True),
        Bar("speed to plain one by one", mine["speed_to_plain"]["median"], 1.0, True),
    ]


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--preset", choices=models.PRESETS, default="cpu-small")
    add("--mode", choices=MODES, default=CausalMMConfig().mode)
    add("--dtype", choices=DTYPES, default="bfloat16")
    add("--device", default="cpu")
    add("--questions", type=int, default=6)
    add("--image-tokens", type=int, default=576)
    add("--text-tokens", type=int, default=24, help="of the first question; each next has 2 more")
    add("--new-tokens", type=int, default=16)
    add("--rounds", type=int, default=7)
    add("--out", type=Path, help="JSON file; otherwise one in benchmarks/results")
    args = parser.parse_args(argv)
    if min(args.questions, args.new_tokens, args.rounds) < 1:
        parser.error("expected --questions, --new-tokens and --rounds of at least 1")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
