"""Several questions about one image: one by one, and together on one prefill of the image.

python benchmarks/questions.py --preset cpu-small

Plain and CausalMM each answer all questions one after another by `generate`, and all at once by
`causalmm.decoding.shared_image.generate_together`, taking turns in one process. Greedy, random
weights, no end token: every answer has `--new-tokens` tokens.
Tests: tests/measuring/test_benchmarks.py.
"""

import argparse
from collections.abc import Callable
from typing import Any

import measure
import models
import torch
from measure import Bar
from torch import Tensor

from causalmm import CausalMMConfig
from causalmm.config import MODES
from causalmm.decoding.shared_image import generate_together

ALONE, TOGETHER = "one by one", "together"
PLAIN, OURS = "plain", "causalmm"


def run(argv: list[str]) -> None:
    """Measure, write and print. Raises RequestError for what cannot be measured."""
    args = parse_args(argv)
    device = measure.pick_device(args.device)
    ours, upstream = models.build_pair(
        args.preset, measure.DTYPES[args.dtype], device, args.image_tokens
    )
    prompts = [
        models.prompt(
            ours, image_tokens=args.image_tokens,
            text_tokens=args.text_tokens + 2 * number, question=number,
        )
        for number in range(args.questions)
    ]  # fmt: skip
    plan = ours.causalmm_plan(CausalMMConfig(mode=args.mode))
    settings = {"do_sample": False, "max_new_tokens": args.new_tokens}

    def alone(model: Any, **extra: Any) -> Callable[[], Tensor]:
        return lambda: torch.cat(
            [
                model.generate(**each, **settings, **extra)[:, each["input_ids"].shape[1] :]
                for each in prompts
            ]
        )

    def together(plan: Any) -> Callable[[], Tensor]:
        return lambda: generate_together(ours, prompts, causalmm=plan, **settings)

    ways = {
        f"{PLAIN}, {ALONE}": alone(upstream),
        f"{PLAIN}, {TOGETHER}": together(None),
        f"{OURS}, {ALONE}": alone(ours, causalmm=plan),
        f"{OURS}, {TOGETHER}": together(plan),
    }
    tokens = {way: call().cpu() for way, call in ways.items()}
    seconds = measure.take_turns(
        {way: lambda call=call: measure.timed(call, device) for way, call in ways.items()},
        args.rounds,
        warm_up=0,
    )
    rows = rows_of(seconds, tokens)
    measure.finish("questions", argv, args, rows, bars_of(rows))


def rows_of(seconds: dict[str, list[float]], tokens: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Each way's time, and its measure.ratios to plain one by one and to CausalMM one by one."""
    rows = []
    for way, mine in seconds.items():
        one_by_one = tokens[f"{way.partition(',')[0]}, {ALONE}"]
        rows.append(
            {
                "way": way,
                "time_s": measure.spread(mine),
                "questions_per_s": len(tokens[way]) / measure.spread(mine)["median"],
                "speed_to_plain": measure.ratios(seconds[f"{PLAIN}, {ALONE}"], mine),
                "speed_to_causalmm": measure.ratios(seconds[f"{OURS}, {ALONE}"], mine),
                # Rounding may turn a near tie.
                "same_tokens": float((tokens[way] == one_by_one).float().mean()),
            }
        )
    return rows


def bars_of(rows: list[dict[str, Any]]) -> list[Bar]:
    """Those of CausalMM together."""
    mine = next(row for row in rows if row["way"] == f"{OURS}, {TOGETHER}")
    return [
        Bar("speed to CausalMM one by one", mine["speed_to_causalmm"]["median"], 3.0, True),
        Bar("speed to plain one by one", mine["speed_to_plain"]["median"], 1.0, True),
    ]


def parse_args(argv: list[str]) -> argparse.Namespace:
    # Of text: the first question; each next has 2 tokens more.
    counts = {"rounds": 7, "questions": 6, "image_tokens": 576, "text_tokens": 24, "new_tokens": 16}
    parser = measure.make_parser(__doc__, **counts)
    parser.add_argument("--preset", choices=models.PRESETS, default="cpu-small")
    parser.add_argument("--mode", choices=MODES, default=CausalMMConfig().mode)
    return parser.parse_args(argv)


main = measure.command(run)

if __name__ == "__main__":
    raise SystemExit(main())
