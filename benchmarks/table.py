"""Tables of what benchmarks wrote, as Markdown.    python benchmarks/table.py [FILE.json ...]

Without files: all of benchmarks/results. So no number in a text is typed by hand. Ratios are
medians of the ratios within rounds; brackets hold quartiles. Imports no torch.
Held by tests/measuring/test_benchmarks.py.
"""

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from causalmm.cli.terminal import exit_code

RESULTS = Path(__file__).resolve().parent / "results"
Record = Mapping[str, Any]


def show(record: Record) -> str:
    """The tables of one record, the command and the machine before them, its bars after them."""
    machine = record["machine"]
    place = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    head = [f"`{shlex.join(record['command'])}`", f"{place}; {versions}"]
    if record["git_commit"]:
        head.append(f"commit {record['git_commit']}")
    return "\n\n".join(["  \n".join(head), *_TABLES[record["benchmark"]](record), *_bars(record)])


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns as wide as they need to be."""
    cells = [list(columns), ["---"] * len(columns), *(list(row) for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(f"| {line} |" for line in lines)


# -- one function a benchmark ------------------------------------------------------------------


def attention(record: Record) -> list[str]:
    """Times, then memory, of each tower and step: a way a row, a length a column."""
    tables = []
    kinds = dict.fromkeys((row["tower"], row["step"]) for row in record["results"])
    for tower, step in kinds:
        mine = [row for row in record["results"] if (row["tower"], row["step"]) == (tower, step)]
        lengths = list(dict.fromkeys(row["keys"] for row in mine))
        ways = list(dict.fromkeys(row["way"] for row in mine))
        found = {(row["way"], row["keys"]): row for row in mine}
        for what, cell in (("time, to SDPA's", _time_cell), ("peak extra memory", _memory_cell)):
            rows = [[way, *(cell(found[way, length]) for length in lengths)] for way in ways]
            columns = [f"{tower} {step}: {what}", *(f"{length:,} keys" for length in lengths)]
            tables.append(grid(columns, rows))
    return tables


def _time_cell(row: Record) -> str:
    if "left_out" in row:
        return ""
    return f"{_time(row['time_s']['median'])}, {_ratio(row['time_ratio'])}"


def _memory_cell(row: Record) -> str:
    if "left_out" in row:
        return ""
    ratio = "" if row["extra_ratio"] is None else f", {row['extra_ratio']:.2f}x"
    return f"{_size(row['extra_bytes'])}{ratio}"


def decode(record: Record) -> list[str]:
    """Prefill, step and memory, each as a ratio to plain; and how far the bounds are."""
    results, settings = record["results"], record["settings"]
    speed = results["speed"]
    length = settings["image_tokens"] + settings["text_tokens"]
    note = (
        f"{settings['preset']}, {settings['dtype']}, prompts of {length} tokens, "
        f"{settings['new_tokens']} new tokens; weights {_size(results['weights_bytes'])}; measured "
        f"here: {speed['flops'] / 1e9:,.0f} GFLOP/s in its linear layers, "
        f"{speed['read'] / 1e9:,.1f} GB/s read, {speed['gemv'] / 1e9:,.1f} GB/s in its GEMV"
    )
    tables = [note]
    for batch in settings["batch"]:
        mine = [row for row in results["rows"] if row["batch"] == batch]
        columns = [
            f"batch {batch}", "prefill", "to plain", "FLOPs to plain", "over bound",
            "a token", "to plain", "bytes to plain", "over bound", "tokens/s",
            "to sequential", "peak memory", "to plain",
        ]  # fmt: skip
        rows = [
            [
                row["way"],
                _time(row["prefill_s"]["median"]),
                _spread(row["prefill_ratio"]),
                _times(row.get("prefill_flops_ratio")),
                _times(row.get("prefill_gap")),
                _time(row["step_s"]["median"]),
                _spread(row["step_ratio"]),
                _times(row.get("step_bytes_ratio")),
                _times(row.get("step_gap")),
                f"{row['tokens_per_s']:.1f}",
                _ratio(row["step_to_sequential"]) if "step_to_sequential" in row else "",
                _size(row["peak_bytes"]),
                _times(row["peak_ratio"]),
            ]
            for row in mine
        ]
        tables.append(grid(columns, rows))
    return tables


def questions(record: Record) -> list[str]:
    """Questions a second, and how much faster than one by one."""
    settings = record["settings"]
    columns = [
        f"{settings['questions']} questions, {settings['preset']}, {settings['dtype']}",
        "time", "questions/s", "speed to plain one by one", "speed to CausalMM one by one",
        "same tokens as one by one",
    ]  # fmt: skip
    rows = [
        [
            row["way"],
            _time(row["time_s"]["median"]),
            f"{row['questions_per_s']:.2f}",
            _spread(row["speed_to_plain"]),
            _spread(row["speed_to_causalmm"]),
            f"{row['same_tokens']:.0%}",
        ]
        for row in record["results"]
    ]
    return [grid(columns, rows)]


def loading(record: Record) -> list[str]:
    """Memory of loading and of branches, and imports."""
    results = record["results"]
    size, load, times = results["checkpoint_bytes"], results["load"], results["imports"]
    weights = results["branches"]["weights_bytes"]
    rows = [
        ["checkpoint", _size(size)],
        *(
            [
                f"loading it as {dtype}: peak memory, to the checkpoint",
                f"{_size(found['extra_bytes'])}, {found['extra_bytes'] / size:.2f}x",
            ]
            for dtype, found in load.items()
        ),
    ]
    rows += [
        [f"answer of {each['rows']} rows, peak extra memory", _size(each["extra_bytes"])]
        for each in results["branches"]["peaks"]
    ]
    rows += [
        ["weights held meanwhile", _size(weights)],
        ["import of the upstream modules", _time(times["upstream"]["median"])],
        ["import of ours", f"{_time(times['ours']['median'])}, {_spread(times['ratio'])}"],
        ["heavy packages installed here", ", ".join(results["heavy"]["installed"]) or "none"],
        ["of these imported by an answer", ", ".join(results["heavy"]["imported"]) or "none"],
    ]
    return [grid([f"{record['settings']['preset']}, {record['settings']['dtype']}", ""], rows)]


_TABLES: dict[str, Callable[[Record], list[str]]] = {
    "attention": attention,
    "decode": decode,
    "questions": questions,
    "loading": loading,
}


def _bars(record: Record) -> list[str]:
    if not record["bars"]:
        return []
    rows = [
        [
            bar["what"],
            f"{bar['value']:.3g}",
            f"{'>=' if bar['at_least'] else '<='} {bar['limit']:g}",
            "met" if bar["met"] else "not met",
        ]
        for bar in record["bars"]
    ]
    return [grid(["bar", "measured", "asked", ""], rows)]


# -- numbers -----------------------------------------------------------------------------------


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _size(count: float) -> str:
    for unit, scale in (("GB", 2**30), ("MB", 2**20)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 2**10:.3g} kB"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _ratio(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.2f}x"


def _spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def main(argv: list[str] | None = None) -> int:
    """Print the tables and return 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="*", help="JSON files of benchmarks")
    files = parser.parse_args(argv).files or sorted(RESULTS.glob("*.json"))
    for file in files:
        record = json.loads(file.read_text(encoding="utf-8"))
        print(f"### {file.stem}\n\n{show(record)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
