"""Time and memory of counterfactual attention against length, beside SDPA and the dense formulas.

python benchmarks/attention.py
python benchmarks/attention.py --device cuda --dtype bfloat16 --heads 32 --kv-heads 32 \\
    --head-size 128

Prefill (as many queries as keys) in both towers, and one decoding step in the language model. The
contenders of benchmarks/contenders.py take turns in one process; then the peak extra memory of one
call of each is read, its output included, on a CPU in a fresh process each (benchmarks/memory.py).
A contender that builds maps stops where they would take more than `--map-memory`. Scope "image"
edits an image of 576 tokens after five of text; its base is SDPA and one more over the image keys
alone ("sdpa, image"). Writes a JSON
file and beside it a figure.
Tests: tests/measuring/test_benchmarks.py.
"""

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import measure
import table
from contenders import DENSE, IMAGE, SDPA, Case, Inputs, call, cases, map_bytes
from measure import Bar
from memory import fresh_processes, peak_memory, settle_heap
from tqdm import tqdm

from causalmm.cli.flags import at_least

KINDS = (("language", "prefill"), ("language", "decode"), ("vision", "prefill"))
LEAST_BYTES = 2**20
"""Less is not looked at: memory on a CPU is read to some pages."""
MEMORY_LENGTH, TIME_LENGTH = 8192, 4096
"""Keys at which the bars look."""
SHORT_LENGTH = 700
"""The same for the time of scope "image": a prompt of LLaVA-1.5, most of it the image."""


def run(argv: list[str]) -> None:
    """Measure, write, draw and print. Raises RequestError for what cannot be measured."""
    args = parse_args(argv)
    device = measure.pick_device(args.device)
    sizes = (args.batch, args.heads, args.kv_heads, args.head_size)
    inputs = Inputs(*sizes, measure.DTYPES[args.dtype], device)
    calls = [
        cases(tower, length, 1 if step == "decode" else length)
        for tower, step in KINDS
        for length in sorted(args.lengths)
    ]
    rows: list[dict[str, Any]] = []
    for each in tqdm(calls, desc="time", unit="call"):
        rows += times_of(each, inputs, args)
    add_memory(rows, inputs)
    out = measure.finish("attention", argv, args, rows, bars_of(rows))
    if not args.no_figure:
        from figure import draw  # without it there is no need of matplotlib

        draw(table.read(out), out.with_suffix(".png"))


def times_of(
    contenders: Sequence[Case], inputs: Inputs, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row a contender of the same call: its time, or why it was left out."""
    rows = {case.way: case._asdict() | {"step": case.step} for case in contenders}
    calls = {}
    for case in contenders:
        if map_bytes(case, inputs) > args.map_memory * 2**30:
            rows[case.way]["left_out"] = f"maps of more than {args.map_memory:g} GB"
            continue
        ready = call(case, inputs)
        repeats = measure.repeats_for(ready, inputs.device)
        calls[case.way] = partial(measure.timed, ready, inputs.device, repeats)
    # The calls ran when their repeats were found.
    times = measure.take_turns(calls, args.rounds, warm_up=0, seconds=args.seconds)
    for way, samples in times.items():
        rows[way]["time_s"] = measure.spread(samples)
        rows[way]["time_ratio"] = measure.ratios(samples, times[SDPA])
        if way.endswith(IMAGE):
            rows[way]["image_ratio"] = measure.ratios(samples, times[SDPA + IMAGE])
    return list(rows.values())


def add_memory(rows: Sequence[dict[str, Any]], inputs: Inputs) -> None:
    """To every row that was run: bytes that the call holds at most, and their ratio to SDPA's."""
    base = 0
    with fresh_processes() as processes:
        for row in tqdm(rows, desc="memory", unit="call"):
            if "left_out" in row:
                continue
            case = Case(*(row[name] for name in Case._fields))
            if inputs.device.type == "cpu":
                found = processes.submit(extra_bytes, case, inputs).result()
            else:
                found = extra_bytes(case, inputs)
            base = found if case.way == SDPA else base  # the first of each call
            row |= {"extra_bytes": found, "extra_ratio": found / base if base else None}


def extra_bytes(case: Case, inputs: Inputs) -> int:
    """Bytes that a call holds at most, in a process that has done little else."""
    settle_heap()
    keys = min(case.keys, MEMORY_LENGTH)
    smaller = case._replace(keys=keys, queries=min(case.queries, keys))
    peak_memory(call(smaller, inputs), inputs.device)  # libraries set themselves up
    return peak_memory(call(case, inputs), inputs.device).extra


def bars_of(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """The bars of the methods that never build a map, as far as their lengths were measured; and of
    scope "image" those of time."""
    bars = []
    ways = dict.fromkeys(
        (row["tower"], row["way"])
        for row in rows
        if not row["way"].startswith((SDPA, DENSE)) and row["step"] == "prefill"
    )
    for tower, way in ways:
        wanted = (tower, "prefill", way)
        mine = {
            row["keys"]: row
            for row in rows
            if (row["tower"], row["step"], row["way"]) == wanted and "left_out" not in row
        }
        formula = Case(tower, 1, 1, way).formula
        name = f"{tower} {way}"
        if not formula.builds_a_map:
            bars += _memory_bars(name, mine)
        if way.endswith(IMAGE):
            bars += [
                Bar(
                    f"{name}: time at {keys}, to SDPA and one over the image keys",
                    mine[keys]["image_ratio"]["median"],
                    1.5,
                )
                for keys in (SHORT_LENGTH, TIME_LENGTH)
                if keys in mine
            ]
        elif TIME_LENGTH in mine and not formula.builds_a_map:
            ratio = mine[TIME_LENGTH]["time_ratio"]["median"]
            limit = 2.5 if formula.softmax_stats else 1.3
            bars.append(Bar(f"{name}: time at {TIME_LENGTH}, to SDPA", ratio, limit))
    return bars


def _memory_bars(name: str, mine: Mapping[int, dict[str, Any]]) -> list[Bar]:
    bars = []
    sizes = {keys: row["extra_bytes"] for keys, row in mine.items()}
    sizes = {keys: size for keys, size in sizes.items() if size >= LEAST_BYTES}
    if len(sizes) > 2:
        growth = exponent(list(sizes), list(sizes.values()))
        bars.append(Bar(f"{name}: exponent of memory's growth", growth, 1.1))
    if MEMORY_LENGTH in mine:
        ratio = mine[MEMORY_LENGTH]["extra_ratio"]
        bars.append(Bar(f"{name}: memory at {MEMORY_LENGTH}, to SDPA", ratio, 1.5))
    return bars


def exponent(lengths: Sequence[int], sizes: Sequence[float]) -> float:
    """b of the least-squares fit of sizes by a * lengths^b."""
    x, y = ([math.log(number) for number in numbers] for numbers in (lengths, sizes))
    return statistics.linear_regression(x, y).slope


def parse_args(argv: list[str]) -> argparse.Namespace:
    sizes = {"batch": 1, "heads": 8, "kv_heads": 8, "head_size": 64}
    parser = measure.make_parser(__doc__, rounds=9, **sizes)
    lengths = [SHORT_LENGTH, *(2**n for n in range(10, 16))]
    add = parser.add_argument
    add("--lengths", type=at_least(1), nargs="+", default=lengths, metavar="N")
    add("--seconds", type=float, default=60, help="at a length: begin no further round after that")
    add("--map-memory", type=float, default=2, help="GB that maps may take")
    add("--no-figure", action="store_true")
    args = parser.parse_args(argv)
    if args.heads % args.kv_heads:
        parser.error(f"--heads {args.heads}: expected a multiple of --kv-heads {args.kv_heads}")
    return args


main = measure.command(run)

if __name__ == "__main__":
    raise SystemExit(main())
