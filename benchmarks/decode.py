"""Time and memory of answers: plain, in every mode, and with branches one after another.

python benchmarks/decode.py --preset cpu-small
python benchmarks/decode.py --preset llava-1.5-7b --device cuda --batch 1 8

All run in one process and take turns: upstream's model (plain), ours in each of `--modes`, each
mode's branches in sequence (benchmarks/sequential.py), and the two branches of `mitigv` where that
is installed. Greedy, random weights, no end token. The time of a step runs from an answer's first
token to its last. A prefill, from the call of `generate` to the first token, is short and once in
an answer, so each takes turns with plain's alone: on a shared machine the speed changes within a
round of all. Beside them stand the bounds of benchmarks/work.py.
`--compile`: a static cache, which transformers compiles the forward for, for plain and ours alike.
Held by tests/measuring/test_benchmarks.py.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import mitigv_vcd
import models
import table
import torch
import work
from measure import (
    DTYPES,
    RESULTS,
    Bar,
    pick_device,
    ratios,
    run_command,
    spread,
    take_turns,
    write_record,
)
from memory import Peak, peak_memory
from sequential import SequentialBranches
from torch import Tensor

from causalmm import CausalMMConfig
from causalmm.counterfactual.methods import LANGUAGE_METHODS, VISION_METHODS
from causalmm.errors import RequestError

MODES = {
    "vision": {"mode": "vision"},
    "language-third": {"mode": "language", "language_layers": "-third:"},
    "language": {"mode": "language"},
    "multimodal": {"mode": "multimodal"},
    "joint": {"mode": "joint"},
}
"""Settings that differ from the configuration's defaults."""
PLAIN, SEQUENTIAL, VCD = "plain", "sequential ", "mitigv vcd"


class DecodedAnswer(NamedTuple):
    """One contestant's turn: seconds to the first token, those from each to the next, all tokens
    [B, T]."""

    prefill: float
    steps: list[float]
    tokens: Tensor

    @property
    def step(self) -> float:
        """Mean seconds of a step."""
        return statistics.fmean(self.steps)


class Turns(NamedTuple):
    """What every contestant did: answers in turns of all, first tokens in turns with plain."""

    answers: dict[str, list[DecodedAnswer]]
    duels: dict[str, dict[str, list[DecodedAnswer]]]
    """Of each contestant but plain: its first tokens and those of plain."""

    def prefills(self, name: str) -> list[float]:
        """Seconds; of plain, those of all its rounds."""
        duels = self.duels.values() if name == PLAIN else [self.duels[name]]
        return [each.prefill for duel in duels for each in duel[name]]

    def prefill_ratios(self, name: str) -> dict[str, float]:
        """Spread of the ratios to plain."""
        mine = self.prefills(name)
        if name == PLAIN:
            return ratios(mine, mine)
        return ratios(mine, [each.prefill for each in self.duels[name][PLAIN]])

    def steps(self, name: str) -> list[float]:
        """Seconds."""
        return [each.step for each in self.answers[name]]


class Clock:
    """Takes the time of every token, in the place of a streamer."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.stamps: list[float] = []

    def put(self, tokens: Tensor) -> None:
        if tokens.ndim == 1 or tokens.shape[1] == 1:  # else the prompt
            self.stamps.append(time.perf_counter())

    def end(self) -> None:
        """Of the protocol."""

    def answer(self, tokens: Tensor) -> DecodedAnswer:
        steps = [later - stamp for stamp, later in pairwise(self.stamps)]
        return DecodedAnswer(self.stamps[0] - self.begun, steps, tokens.cpu())


class Contestants:
    """The models that take turns, and what each does with a prompt."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args = args
        self.pair = models.build_pair(
            args.preset,
            dtype=DTYPES[args.dtype],
            device=device,
            attn=args.attn,
            image_tokens=args.image_tokens,
        )
        self.sequential = SequentialBranches(models.twin(self.pair.upstream))
        self.vcd = mitigv_vcd.VisualContrast(self.pair.upstream)
        methods = {"language_method": args.language_method, "vision_method": args.vision_method}
        self.plans = {
            mode: self.pair.ours.causalmm_plan(CausalMMConfig(**MODES[mode], **methods))
            for mode in args.modes
        }

    def calls(self, inputs: dict[str, Tensor], new: int) -> dict[str, Callable[[], DecodedAnswer]]:
        """Each contestant's answer of `new` tokens."""
        static = {"cache_implementation": "static"} if self.args.compile else {}

        def generate(model: Any, **extra: Any) -> Callable[[], DecodedAnswer]:
            def call() -> DecodedAnswer:
                clock = Clock()
                tokens = model.generate(
                    **inputs, **static, **extra,
                    do_sample=False, max_new_tokens=new, streamer=clock,
                )  # fmt: skip
                return clock.answer(tokens[:, inputs["input_ids"].shape[1] :])

            return call

        def loop(run: Callable[..., Tensor], *arguments: Any) -> Callable[[], DecodedAnswer]:
            def call() -> DecodedAnswer:
                clock = Clock()
                return clock.answer(run(inputs, *arguments, new, clock))

            return call

        calls = {PLAIN: generate(self.pair.upstream)}
        calls |= {
            mode: generate(self.pair.ours, causalmm=plan) for mode, plan in self.plans.items()
        }
        if self.args.sequential:
            calls |= {
                SEQUENTIAL + mode: loop(self.sequential.generate, plan)
                for mode, plan in self.plans.items()
            }
        if mitigv_vcd.available(self.pair.upstream):
            calls[VCD] = loop(self.vcd.generate)
        return calls


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_command(run, argv)


def run(argv: list[str]) -> None:
    """Measure, write and print. Raises RequestError for what cannot be measured."""
    args = parse_args(argv)
    device = pick_device(args.device)
    if args.compile and device.type != "cuda":
        raise RequestError("--compile needs --device cuda: elsewhere transformers compiles nothing")
    contestants = Contestants(args, device)
    ours = contestants.pair.ours
    prompts = {
        batch: models.prompt(
            args.preset, ours,
            batch=batch, image_tokens=args.image_tokens, text_tokens=args.text_tokens,
        )
        for batch in args.batch
    }  # fmt: skip
    speed = work.measure_speed(ours, args.image_tokens + args.text_tokens)
    turns: dict[int, Turns] = {}
    for batch, inputs in prompts.items():
        calls = contestants.calls(inputs, args.new_tokens)
        answers = take_turns(calls, args.rounds, warm_up=3 if args.compile else 1)
        first = contestants.calls(inputs, 1)
        duels = {
            name: take_turns({PLAIN: first[PLAIN], name: first[name]}, args.prefills)
            for name in first
            if name != PLAIN
        }
        turns[batch] = Turns(answers, duels)
    # Memory last: reading it changes the allocator's habits.
    peaks = {
        batch: {
            name: peak_memory(call, device)
            for name, call in contestants.calls(inputs, args.new_tokens).items()
        }
        for batch, inputs in prompts.items()
    }
    rows = []
    for batch, inputs in prompts.items():
        prompt = work.Prompt.of(ours, inputs)
        rows += [
            row_of(name, batch, turns[batch], peaks[batch])
            | bounds_of(contestants, name, prompt, speed, turns[batch])
            for name in turns[batch].answers
        ]
    results = {"speed": speed._asdict(), "weights_bytes": _weights(ours), "rows": rows}
    out = (
        args.out or RESULTS / f"decode-{args.preset}-{device.type}{'-compiled' * args.compile}.json"
    )
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    bars = bars_of(args, device, rows)
    record = write_record(out, "decode", argv, device, settings, results, bars)
    print(table.show(record))


def row_of(name: str, batch: int, turns: Turns, peaks: dict[str, Peak]) -> dict[str, Any]:
    """What was measured of a contestant, and its ratios to plain and to the same in sequence."""
    prefill, step = turns.prefills(name), turns.steps(name)
    row = {"batch": batch, "way": name, "peak_bytes": peaks[name].total}
    row |= {"peak_extra_bytes": peaks[name].extra, "prefill_s": spread(prefill)}
    row |= {"step_s": spread(step), "tokens_per_s": batch / spread(step)["median"]}
    row["prefill_ratio"] = turns.prefill_ratios(name)
    row["step_ratio"] = ratios(step, turns.steps(PLAIN))
    row["peak_ratio"] = peaks[name].total / peaks[PLAIN].total
    if (other := SEQUENTIAL + name) in turns.answers:
        row["step_to_sequential"] = ratios(step, turns.steps(other))
        same = turns.answers[name][0].tokens == turns.answers[other][0].tokens
        # Rounding may turn a near tie, and everything after it.
        row["first_tokens_as_sequential"] = int(same.all(dim=0).cumprod(dim=0).sum())
    return row


def bounds_of(
    contestants: Contestants,
    name: str,
    prompt: work.Prompt,
    speed: work.Speed,
    turns: Turns,
) -> dict[str, Any]:
    """Work and bounds of plain and ours, and how far from them the measurement is."""
    if name != PLAIN and name not in contestants.plans:
        return {}
    ours, plan = contestants.pair.ours, contestants.plans.get(name)
    keys = prompt.length + contestants.args.new_tokens // 2
    found = {
        "prefill": (
            turns.prefills(name),
            work.prefill(ours, plan, prompt),
            work.prefill(ours, None, prompt),
        ),
        "step": (
            turns.steps(name),
            work.decode(ours, plan, prompt, keys),
            work.decode(ours, None, prompt, keys),
        ),
    }
    row: dict[str, Any] = {}
    for what, (seconds, mine, plain) in found.items():
        measured = spread(seconds)["median"]
        row |= {
            f"{what}_flops": mine.flops,
            f"{what}_bytes": mine.read,
            f"{what}_flops_ratio": mine.flops / plain.flops,
            f"{what}_bytes_ratio": mine.read / plain.read,
            f"{what}_bound_s": speed.bound(mine),
            f"{what}_gap": measured / speed.bound(mine),
        }
    return row


def bars_of(
    args: argparse.Namespace, device: torch.device, rows: list[dict[str, Any]]
) -> list[Bar]:
    """The bars of the presets that have some; they are about bfloat16."""
    found = {(row["batch"], row["way"]): row for row in rows}
    bars = []
    if args.dtype != "bfloat16":
        return bars
    if (args.preset, device.type) == ("cpu-small", "cpu"):
        if (third := found.get((1, "language-third"))) is not None:
            bars.append(_bar(third, "step_ratio", "a step", 1.15))
        if (both := found.get((1, "multimodal"))) is not None:
            bars.append(_bar(both, "step_ratio", "a step", 1.4))
            if "step_to_sequential" in both:
                bars.append(
                    _bar(both, "step_to_sequential", "a step, to branches in sequence", 0.5)
                )
            beyond = both["prefill_ratio"]["median"] / both["prefill_flops_ratio"]
            bars.append(Bar("multimodal, batch 1: prefill, to plain and FLOPs", beyond, 1.1))
    if (args.preset, device.type) == ("llava-1.5-7b", "cuda"):
        for (_, way), row in found.items():
            if way == "multimodal":
                if args.compile:  # else it is the time of launching kernels
                    bars.append(_bar(row, "step_ratio", "a step", 1.15))
                bars.append(_bar(row, "prefill_ratio", "prefill", 2.7))
    return bars


def _bar(row: dict[str, Any], field: str, what: str, limit: float) -> Bar:
    to = "" if "to " in what else ", to plain"
    return Bar(f"{row['way']}, batch {row['batch']}: {what}{to}", row[field]["median"], limit)


def _weights(model: Any) -> int:
    return sum(part.nbytes for part in model.parameters())


def parse_args(argv: list[str]) -> argparse.Namespace:
    defaults = CausalMMConfig()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--preset", choices=models.PRESETS, default="cpu-small")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--language-method", choices=LANGUAGE_METHODS, default=defaults.language_method)
    add("--vision-method", choices=VISION_METHODS, default=defaults.vision_method)
    add("--dtype", choices=DTYPES, default="bfloat16")
    add("--device", default="cpu")
    add("--attn", default="sdpa", help="attention of plain and ours")
    add("--batch", type=int, nargs="+", default=[1])
    add("--image-tokens", type=int, default=576)
    add("--text-tokens", type=int, default=64)
    add("--new-tokens", type=int, default=32)
    add("--rounds", type=int, default=7, help="of answers, for the time of a step")
    add("--prefills", type=int, default=15, help="rounds of each one's prefill and plain's")
    add("--compile", action="store_true", help="static cache and compiled forward (cuda)")
    add("--no-sequential", dest="sequential", action="store_false")
    add("--out", type=Path, help="JSON file; otherwise one in benchmarks/results")
    args = parser.parse_args(argv)
    if args.new_tokens < 2 or min(args.rounds, args.prefills, *args.batch) < 1:
        parser.error(
            "expected --new-tokens of at least 2, --rounds, --prefills and --batch of at least 1"
        )
    return args


if __name__ == "__main__":
    raise SystemExit(main())
