"""Time and memory of counterfactual attention against length, beside SDPA and the dense formulas.

python benchmarks/attention.py
python benchmarks/attention.py --device cuda --dtype bfloat16 --heads 32 --shared-heads 32 \\
    --head-size 128

Prefill (as many queries as keys) in both towers, and one decoding step in the language model. The
ways of benchmarks/contenders.py take turns in one process; then the peak extra memory of one call
of each is read, its output included, on a CPU in a fresh process each (benchmarks/memory.py). A way
that builds maps stops where they would take more than `--map-memory`. Writes a JSON file and beside
it a figure.
Held by tests/measuring/test_benchmarks.py.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import table
import torch
from contenders import CLOSED, SDPA, Case, Shape, call, cases, map_bytes
from measure import (
    DTYPES,
    RESULTS,
    Bar,
    pick_device,
    ratios,
    repeats_for,
    run_command,
    spread,
    take_turns,
    timed,
    write_record,
)
from memory import fresh_processes, peak_memory, settle_heap
from tqdm import tqdm

from causalmm.counterfactual.methods import find

LENGTHS = [2**n for n in range(10, 16)]
KINDS = (("language", "prefill"), ("language", "decode"), ("vision", "prefill"))
LEAST_BYTES = 2**20
"""Less is not looked at: memory on a CPU is read to some pages."""
MEMORY_LENGTH, TIME_LENGTH = 8192, 4096
"""Keys at which the bars look."""


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_command(run, argv)


def run(argv: list[str]) -> None:
    """Measure, write, draw and print. Raises RequestError for what cannot be measured."""
    args = parse_args(argv)
    device = pick_device(args.device)
    calls = [
        cases(tower, length, 1 if step == "decode" else length)
        for tower, step in KINDS
        for length in sorted(args.lengths)
    ]
    rows = []
    for ways in tqdm(calls, desc="time", unit="call"):
        rows += times_of(ways, args, device)
    add_memory(rows, args, device)
    out = args.out or RESULTS / f"attention-{device.type}.json"
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    record = write_record(out, "attention", argv, device, settings, rows, bars_of(rows))
    print(table.show(record))
    if not args.no_figure:
        from figure import draw  # without it there is no need of matplotlib

        draw(record, out.with_suffix(".png"))


def times_of(
    ways: Sequence[Case], args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """One row a way of the same call: its time, or why it was left out."""
    shape, dtype = shape_of(args), DTYPES[args.dtype]
    rows = {case.way: case._asdict() | {"step": case.step} for case in ways}
    calls: dict[str, Callable[[], float]] = {}
    for case in ways:
        if map_bytes(case, shape, dtype) > args.map_memory * 2**30:
            rows[case.way]["left_out"] = f"maps of more than {args.map_memory:g} GB"
            continue
        ready = call(case, shape, dtype, device)
        repeats = repeats_for(ready, device)
        calls[case.way] = lambda ready=ready, repeats=repeats: timed(ready, device, repeats)
    # The calls ran when their repeats were found.
    times = take_turns(calls, args.rounds, warm_up=0, seconds=args.seconds)
    for way, samples in times.items():
        rows[way] |= {"time_s": spread(samples), "time_ratio": ratios(samples, times[SDPA])}
    return list(rows.values())


def add_memory(
    rows: Sequence[dict[str, Any]], args: argparse.Namespace, device: torch.device
) -> None:
    """To every row that was run: bytes that the call holds at most, and their ratio to SDPA's."""
    shape, dtype = shape_of(args), DTYPES[args.dtype]
    plain: dict[tuple[Any, ...], int] = {}
    with fresh_processes() as processes:
        for row in tqdm(rows, desc="memory", unit="call"):
            if "left_out" in row:
                continue
            case = Case(*(row[name] for name in Case._fields))
            if device.type == "cpu":
                reading = processes.submit(extra_bytes, case, shape, dtype, device)
                row["extra_bytes"] = reading.result()
            else:
                row["extra_bytes"] = extra_bytes(case, shape, dtype, device)
            if case.way == SDPA:  # comes first
                plain[case[:-1]] = row["extra_bytes"]
            base = plain[case[:-1]]
            row["extra_ratio"] = row["extra_bytes"] / base if base else None


def extra_bytes(case: Case, shape: Shape, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes that a call holds at most, in a process that has done little else."""
    settle_heap()
    keys = min(case.keys, MEMORY_LENGTH)
    smaller = case._replace(keys=keys, queries=min(case.queries, keys))
    peak_memory(call(smaller, shape, dtype, device), device)  # libraries set themselves up
    return peak_memory(call(case, shape, dtype, device), device).extra


def bars_of(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """What is asked of the closed forms, as far as their lengths were measured."""
    bars = []
    for tower, methods in CLOSED.items():
        for method in methods:
            mine = {
                row["keys"]: row
                for row in rows
                if (row["tower"], row["step"], row["way"]) == (tower, "prefill", method)
            }
            name = f"{tower} {method}"
            sizes = {keys: row["extra_bytes"] for keys, row in mine.items()}
            sizes = {keys: size for keys, size in sizes.items() if size >= LEAST_BYTES}
            if len(sizes) > 2:
                growth = exponent(list(sizes), list(sizes.values()))
                bars.append(Bar(f"{name}: exponent of memory's growth", growth, 1.1))
            if MEMORY_LENGTH in mine:
                ratio = mine[MEMORY_LENGTH]["extra_ratio"]
                bars.append(Bar(f"{name}: memory at {MEMORY_LENGTH}, to SDPA", ratio, 1.5))
            if TIME_LENGTH in mine:
                ratio = mine[TIME_LENGTH]["time_ratio"]["median"]
                limit = 2.5 if find(tower, method).visible.softmax_stats else 1.3
                bars.append(Bar(f"{name}: time at {TIME_LENGTH}, to SDPA", ratio, limit))
    return bars


def exponent(lengths: Sequence[int], sizes: Sequence[float]) -> float:
    """b of the least-squares fit of sizes by a * lengths^b."""
    x, y = ([math.log(number) for number in numbers] for numbers in (lengths, sizes))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def shape_of(args: argparse.Namespace) -> Shape:
    return Shape(args.batch, args.heads, args.shared_heads, args.head_size)


def parse_args(argv: list[str]) -> argparse.Namespace:
    defaults = Shape()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=LENGTHS)
    add("--device", default="cpu")
    add("--dtype", choices=DTYPES, default="bfloat16")
    add("--batch", type=int, default=defaults.batch)
    add("--heads", type=int, default=defaults.heads)
    add("--shared-heads", type=int, default=defaults.shared_heads)
    add("--head-size", type=int, default=defaults.head_size)
    add("--rounds", type=int, default=9)
    add("--seconds", type=float, default=60, help="at a length: begin no further round after that")
    add("--map-memory", type=float, default=2, help="GB that maps may take")
    add("--out", type=Path, help="JSON file; otherwise one in benchmarks/results")
    add("--no-figure", action="store_true")
    args = parser.parse_args(argv)
    if args.heads % args.shared_heads or min(args.lengths) < 1 or args.rounds < 1:
        parser.error("expected --shared-heads to divide --heads, positive lengths and rounds")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
