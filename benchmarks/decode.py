"""Time and memory of answers: plain, in every mode, and with branches one after another.

python benchmarks/decode.py --preset cpu-small
python benchmarks/decode.py --preset llava-1.5-7b --device cuda --batch 1 8
python benchmarks/decode.py --preset cpu-small --presets

All run in one process and take turns: upstream's model (plain), ours in each of `--modes`, each
mode's branches in sequence (benchmarks/sequential.py), and the two branches of `mitigv` where that
is installed. Greedy, random weights, no end token. The time of a step runs from an answer's first
token to its last. A prefill, from the call of `generate` to the first token, is short and once in
an answer, so each takes turns with plain's alone: on a shared machine the speed changes within a
round of all. Beside them stand the ratios of FLOPs and bytes by benchmarks/work.py.
`--presets`: published methods (causalmm/presets) in the place of modes, also as ratios to `mitigv`.
`--compile`: a static cache, which transformers compiles the forward for, for plain and ours alike.
Tests: tests/measuring/test_benchmarks.py.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import measure
import mitigv_vcd
import models
import torch
import work
from measure import Bar
from memory import Peak, peak_memory
from sequential import SequentialBranches
from torch import Tensor

from causalmm import CausalMMConfig
from causalmm.cli.flags import at_least
from causalmm.counterfactual.methods import LANGUAGE_METHODS, VISION_METHODS
from causalmm.decoding.plan import BranchPlan
from causalmm.errors import RequestError
from causalmm.presets.registry import PRESETS

MODES = {
    "vision": {"mode": "vision"},
    "language-third": {"mode": "language", "language_layers": "-third:"},
    "language": {"mode": "language"},
    "language-image": {"mode": "language", "language_scope": "image"},
    "multimodal": {"mode": "multimodal"},
    "joint": {"mode": "joint"},
}
"""Settings that differ from the configuration's defaults."""
PLAIN, SEQUENTIAL, VCD = "plain", "sequential ", "mitigv vcd"
_CPU_LIMITS = {
    "language-third": [("step_ratio", "a step, to plain", 1.15)],
    "multimodal": [
        ("step_ratio", "a step, to plain", 1.4),
        ("step_to_sequential", "a step, to branches in sequence", 0.5),
        ("prefill_ratio", "prefill, to plain and FLOPs", 1.1),
    ],
}
_GPU_LIMITS = [
    ("step_ratio", "a step, to plain", 1.15),
    ("prefill_ratio", "prefill, to plain", 2.7),
]


class Timing(NamedTuple):
    """One answer: seconds to the first token, those from each to the next, all tokens [B, T]."""

    prefill: float
    steps: list[float]
    tokens: Tensor


class Timings(NamedTuple):
    """Every round of a contender."""

    answers: list[Timing]
    """In turns with all others."""
    prefills: list[float]
    """Seconds, in turns with plain's alone."""
    plain_prefills: list[float]

    @property
    def steps(self) -> list[float]:
        """Mean seconds of a step, of every answer."""
        return [statistics.fmean(each.steps) for each in self.answers]


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


class Contenders:
    """The models that take turns, and what each does with a prompt."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.static = {"cache_implementation": "static"} if args.compile else {}
        self.with_sequential = args.sequential and args.presets is None
        self.ours, self.upstream = models.build_pair(
            args.preset, measure.DTYPES[args.dtype], device, args.image_tokens
        )
        self.sequential = SequentialBranches(models.twin(self.upstream))
        self.plans: dict[str, BranchPlan] = {
            name: self.ours.causalmm_plan(config) for name, config in configurations(args).items()
        }

    def calls(self, inputs: dict[str, Tensor], new: int) -> dict[str, Callable[[], Timing]]:
        """Each contender's answer of `new` tokens."""
        length = inputs["input_ids"].shape[1]
        settings = {**inputs, **self.static, "do_sample": False, "max_new_tokens": new}

        def generate(model: Any, **extra: Any) -> Callable[[Clock], Tensor]:
            return lambda clock: model.generate(**settings, **extra, streamer=clock)[:, length:]

        runs = {PLAIN: generate(self.upstream)}
        for mode, plan in self.plans.items():
            runs[mode] = generate(self.ours, causalmm=plan)
        for mode, plan in self.plans.items() if self.with_sequential else ():
            runs[SEQUENTIAL + mode] = partial(self.sequential.generate, inputs, plan, new)
        if mitigv_vcd.available(self.upstream.config.model_type):
            runs[VCD] = partial(mitigv_vcd.generate, self.upstream, inputs, new)

        def timing(run: Callable[[Clock], Tensor]) -> Timing:
            clock = Clock()
            tokens = run(clock)
            steps = [later - stamp for stamp, later in pairwise(clock.stamps)]
            return Timing(clock.stamps[0] - clock.begun, steps, tokens.cpu())

        return {name: partial(timing, run) for name, run in runs.items()}


def configurations(args: argparse.Namespace) -> dict[str, CausalMMConfig]:
    """By name: those of the modes, or of the presets."""
    if args.presets is not None:
        return {name: CausalMMConfig.preset(name) for name in args.presets or PRESETS}
    methods = {"language_method": args.language_method, "vision_method": args.vision_method}
    return {mode: CausalMMConfig(**MODES[mode], **methods) for mode in args.modes}


def run(argv: list[str]) -> None:
    """Measure, write and print. Raises RequestError for what cannot be measured."""
    args = parse_args(argv)
    device = measure.pick_device(args.device)
    if args.compile and device.type != "cuda":
        raise RequestError("--compile needs --device cuda: elsewhere transformers compiles nothing")
    try:
        contenders = Contenders(args, device)
    except ValueError as error:  # a preset on a model that lacks what it needs
        raise RequestError(str(error)) from error
    ours = contenders.ours
    prompts = {
        batch: models.prompt(
            ours, batch=batch, image_tokens=args.image_tokens, text_tokens=args.text_tokens
        )
        for batch in args.batch
    }
    timings = {batch: take_timings(contenders, each, args) for batch, each in prompts.items()}
    rows = []
    for batch, inputs in prompts.items():
        # Memory last: reading it changes the allocator's habits.
        calls = contenders.calls(inputs, args.new_tokens)
        peaks = {name: peak_memory(call, device) for name, call in calls.items()}
        prompt = work.Prompt.of(ours, inputs)
        for name in calls:
            row = {"batch": batch, "way": name} | row_of(name, batch, timings[batch], peaks)
            if name == PLAIN or name in contenders.plans:
                row |= work_of(ours, contenders.plans.get(name), prompt, args.new_tokens)
            rows.append(row)
    results = {
        "weights_bytes": sum(part.nbytes for part in ours.parameters()),
        "prompt_tokens": prompt.length,
        "rows": rows,
    }
    measure.finish("decode", argv, args, results, bars_of(args, device, rows))


def take_timings(
    contenders: Contenders, inputs: dict[str, Tensor], args: argparse.Namespace
) -> dict[str, Timings]:
    """Of whole answers, and of first tokens; plain's first tokens are those of all its rounds."""
    calls, first = (contenders.calls(inputs, new) for new in (args.new_tokens, 1))
    answers = measure.take_turns(calls, args.rounds, warm_up=3 if args.compile else 1)
    found = {}
    for name in calls:
        if name != PLAIN:
            pair = measure.take_turns({PLAIN: first[PLAIN], name: first[name]}, args.prefills)
            mine, plain = ([each.prefill for each in pair[key]] for key in (name, PLAIN))
            found[name] = Timings(answers[name], mine, plain)
    plain = [seconds for each in found.values() for seconds in each.plain_prefills]
    return {PLAIN: Timings(answers[PLAIN], plain, plain)} | found


def row_of(
    name: str, batch: int, timings: dict[str, Timings], peaks: dict[str, Peak]
) -> dict[str, Any]:
    """What was measured of a contender, and its ratios to plain, to mitigv and to the same in
    sequence."""
    mine = timings[name]
    step = measure.spread(mine.steps)
    row = {
        "peak_bytes": peaks[name].total,
        "peak_extra_bytes": peaks[name].extra,
        "prefill_s": measure.spread(mine.prefills),
        "step_s": step,
        "tokens_per_s": batch / step["median"],
        "prefill_ratio": measure.ratios(mine.prefills, mine.plain_prefills),
        "step_ratio": measure.ratios(mine.steps, timings[PLAIN].steps),
        "peak_ratio": peaks[name].total / peaks[PLAIN].total,
    }
    if (vcd := timings.get(VCD)) is not None and name != VCD:
        row["step_to_vcd"] = measure.ratios(mine.steps, vcd.steps)
    if (other := timings.get(SEQUENTIAL + name)) is not None:
        row["step_to_sequential"] = measure.ratios(mine.steps, other.steps)
        same = mine.answers[0].tokens == other.answers[0].tokens
        # Rounding may turn a near tie, and everything after it.
        row["first_tokens_as_sequential"] = int(same.all(dim=0).cumprod(dim=0).sum())
    return row


def work_of(
    model: Any, plan: BranchPlan | None, prompt: work.Prompt, new_tokens: int
) -> dict[str, float]:
    """FLOPs and bytes under a plan, and their ratios to plain's."""
    step = partial(work.decode, keys=prompt.length + new_tokens // 2)
    found = {}
    for what, count in (("prefill", work.prefill), ("step", step)):
        mine, plain = (count(model, each, prompt) for each in (plan, None))
        found |= {
            f"{what}_flops": mine.flops,
            f"{what}_bytes": mine.read,
            f"{what}_flops_ratio": mine.flops / plain.flops,
            f"{what}_bytes_ratio": mine.read / plain.read,
        }
    return found


def bars_of(
    args: argparse.Namespace, device: torch.device, rows: list[dict[str, Any]]
) -> list[Bar]:
    """The bars of the presets that have some; they are about bfloat16."""
    bars = []
    for row in rows if args.dtype == "bfloat16" else ():
        limits: list[tuple[str, str, float]] = []
        if (args.preset, device.type, row["batch"]) == ("cpu-small", "cpu", 1):
            limits = _CPU_LIMITS.get(row["way"], [])
        elif (args.preset, device.type, row["way"]) == ("llava-1.5-7b", "cuda", "multimodal"):
            # Without compilation a step is the time of launching kernels.
            limits = _GPU_LIMITS if args.compile else _GPU_LIMITS[1:]
        for field, what, limit in limits:
            if field in row:
                value = row[field]["median"]
                value /= row["prefill_flops_ratio"] if what.endswith("FLOPs") else 1
                bars.append(Bar(f"{row['way']}, batch {row['batch']}: {what}", value, limit))
    return bars


def parse_args(argv: list[str]) -> argparse.Namespace:
    defaults = CausalMMConfig()
    counts = {"rounds": 7, "prefills": 15, "image_tokens": 576, "text_tokens": 64}
    parser = measure.make_parser(__doc__, **counts)
    add = parser.add_argument
    add("--preset", choices=models.PRESETS, default="cpu-small")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    which.add_argument("--presets", nargs="*", choices=PRESETS, help="without names: all")
    add("--language-method", choices=LANGUAGE_METHODS, default=defaults.language_method)
    add("--vision-method", choices=VISION_METHODS, default=defaults.vision_method)
    add("--batch", type=at_least(1), nargs="+", default=[1], metavar="N")
    add("--new-tokens", type=at_least(2), default=32, metavar="N")
    add("--compile", action="store_true", help="static cache and compiled forward (cuda)")
    add("--no-sequential", dest="sequential", action="store_false")
    return parser.parse_args(argv)


main = measure.command(run)

if __name__ == "__main__":
    raise SystemExit(main())
