"""Calls that take turns, medians with quartiles, and the record of a benchmark.

A *contender* is a name and a call. All of them run once a round, each round begins with another
one, and ratios are taken within a round: what slows the machine down for a while slows all of them.
A *bar* is a limit for a measured number.
Tests: tests/measuring/test_benchmarks.py.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import table
import torch
from tqdm import tqdm

from causalmm.cli.flags import Parser, at_least, flag_name
from causalmm.cli.terminal import exit_code
from causalmm.errors import RequestError
from causalmm.evaluation.run_record import git_commit
from causalmm.families.loading import find_device

T = TypeVar("T")

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LEAST_ROUNDS = 3
"""Rounds that are run however long they take: fewer have no quartiles worth the name."""


# -- measuring ---------------------------------------------------------------------------------


def take_turns(
    contenders: Mapping[str, Callable[[], T]],
    rounds: int,
    *,
    warm_up: int = 1,
    seconds: float = float("inf"),
) -> dict[str, list[T]]:
    """What each contender returned in each round; unmeasured rounds come first.

    After `seconds` no further round is begun, once there are enough.
    """
    names = list(contenders)
    results: dict[str, list[T]] = {name: [] for name in names}
    for _ in range(warm_up):
        for call in contenders.values():
            call()
    begun = time.perf_counter()
    for number in tqdm(range(rounds), desc="rounds", unit="round", leave=False):
        if number >= LEAST_ROUNDS and time.perf_counter() - begun > seconds:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(contenders[name]())
    return results


def timed(call: Callable[[], Any], device: torch.device, repeats: int = 1) -> float:
    """Seconds that one call takes, of `repeats` in a row."""
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - begun) / repeats


def repeats_for(call: Callable[[], Any], device: torch.device, seconds: float = 0.02) -> int:
    """How many calls in a row take about so long that the clock's own time does not matter."""
    if timed(call, device) > 1:
        return 1  # what else a first call does is little of that
    return max(1, min(1000, round(seconds / max(timed(call, device), 1e-9))))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and number of some measurements."""
    low = high = median = statistics.median(samples)
    if len(samples) > 1:
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high, "rounds": len(samples)}


def ratios(samples: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """The spread of the ratios to another contender, each taken within one round."""
    return spread([one / other for one, other in zip(samples, base, strict=True)])


class Bar(NamedTuple):
    """A limit, and the measured value."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


# -- commands and records ----------------------------------------------------------------------


def command(run: Callable[[list[str]], None]) -> Callable[..., int]:
    """The `main` of a benchmark: runs it and returns its exit code."""

    def main(argv: Sequence[str] | None = None) -> int:
        return exit_code(lambda: run(list(sys.argv[1:] if argv is None else argv)))

    return main


def make_parser(doc: str, **counts: int) -> argparse.ArgumentParser:
    """A parser with the flags of all benchmarks, and one for each count, with its default.

    `doc` is the benchmark's docstring.
    """
    parser = Parser(description=doc.partition("\n")[0])
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file; otherwise one in benchmarks/results")
    for name, default in counts.items():
        parser.add_argument(flag_name(name), type=at_least(1), default=default, metavar="N")
    return parser


def pick_device(name: str) -> torch.device:
    """The device of a name. Raises RequestError for one that is not here or cannot be measured."""
    device = find_device(name)
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"device {name!r}: benchmarks run on cpu and cuda")
    return device


def finish(
    benchmark: str,
    argv: Sequence[str],
    args: argparse.Namespace,
    results: Any,
    bars: Sequence[Bar],
) -> Path:
    """Write what was measured as JSON and print its tables; return the file."""
    record = {
        "benchmark": benchmark,
        "command": ["python", f"benchmarks/{benchmark}.py", *argv],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(torch.device(args.device)),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("causalmm", "torch", "transformers")},
        "git_commit": git_commit(),
        "settings": {name: value for name, value in vars(args).items() if name != "out"},
        "results": results,
        "bars": [bar._asdict() | {"met": bar.met} for bar in bars],
    }
    words = [benchmark, vars(args).get("preset"), torch.device(args.device).type]
    words.append("compiled" if vars(args).get("compile") else None)
    words.append("presets" if vars(args).get("presets") is not None else None)
    out = args.out or table.RESULTS / f"{'-'.join(filter(None, words))}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table.show(table.read(out)))
    return out


def _machine(device: torch.device) -> dict[str, Any]:
    """The processor, and the graphics card where that is what was measured."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line for line in info.read_text("utf-8").splitlines() if "model name" in line]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu,
        "cores": os.cpu_count() if affinity is None else len(affinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.system(),
    }
