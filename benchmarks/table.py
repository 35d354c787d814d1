"""Tables of what benchmarks wrote, as Markdown.    python benchmarks/table.py [FILE.json ...]

Without files: all of benchmarks/results. So no number in a text is typed by hand. Ratios are
medians of the ratios within rounds; brackets hold quartiles. Imports no torch.
Tests: tests/measuring/test_benchmarks.py.
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


def read(file: Path) -> Record:
    """What a benchmark wrote."""
    return json.loads(file.read_text(encoding="utf-8"))


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
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(f"| {line} |" for line in lines)


# -- numbers -----------------------------------------------------------------------------------


def _time(seconds: Mapping[str, float]) -> str:
    """The median of a spread."""
    return _scaled(seconds["median"], {"s": 1, "ms": 1e-3, "us": 1e-6})


def _size(count: float) -> str:
    return _scaled(count, {"GB": 2**30, "MB": 2**20, "kB": 2**10})


def _scaled(value: float, units: Mapping[str, float]) -> str:
    """In the first unit of which there is at least one, or else in the last."""
    unit = next((unit for unit, scale in units.items() if value >= scale), list(units)[-1])
    return f"{value / units[unit]:.3g} {unit}"


def _times(ratio: float | Mapping[str, float]) -> str:
    """A ratio, or the median of a spread of ratios."""
    return f"{ratio['median'] if isinstance(ratio, Mapping) else ratio:.2f}x"


def _spread(ratio: Mapping[str, float]) -> str:
    return f"{_times(ratio)} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


# -- one function a benchmark ------------------------------------------------------------------


# The heading of a column, the field of a contender's row, how its value is shown.
Column = tuple[str, str, Callable[[Any], str]]
_DECODE: tuple[Column, ...] = (
    ("prefill", "prefill_s", _time),
    ("to plain", "prefill_ratio", _spread),
    ("FLOPs to plain", "prefill_flops_ratio", _times),
    ("a token", "step_s", _time),
    ("to plain", "step_ratio", _spread),
    ("bytes to plain", "step_bytes_ratio", _times),
    ("tokens/s", "tokens_per_s", "{:.1f}".format),
    ("to mitigv", "step_to_vcd", _spread),
    ("to sequential", "step_to_sequential", _times),
    ("peak memory", "peak_bytes", _size),
    ("to plain", "peak_ratio", _times),
)
_QUESTIONS: tuple[Column, ...] = (
    ("time", "time_s", _time),
    ("questions/s", "questions_per_s", "{:.2f}".format),
    ("speed to plain one by one", "speed_to_plain", _spread),
    ("speed to CausalMM one by one", "speed_to_causalmm", _spread),
    ("same tokens as one by one", "same_tokens", "{:.0%}".format),
)


def _cell(row: Record, field: str, show: Callable[[Any], str]) -> str:
    return "" if row.get(field) is None else show(row[field])


def _contenders(heading: str, columns: Sequence[Column], rows: Sequence[Record]) -> str:
    columns = [each for each in columns if any(row.get(each[1]) is not None for row in rows)]
    cells = [[row["way"], *(_cell(row, *column[1:]) for column in columns)] for row in rows]
    return grid([heading, *(column[0] for column in columns)], cells)


def attention(record: Record) -> list[str]:
    """Times, then memory, of each tower and step: a contender a row, a length a column."""
    tables = []
    for tower, step in dict.fromkeys((row["tower"], row["step"]) for row in record["results"]):
        mine = [row for row in record["results"] if (row["tower"], row["step"]) == (tower, step)]
        lengths = dict.fromkeys(row["keys"] for row in mine)
        for what, value, show, ratio in (
            ("time, to SDPA's", "time_s", _time, "time_ratio"),
            ("peak extra memory", "extra_bytes", _size, "extra_ratio"),
        ):
            rows: dict[str, list[str]] = {}
            for row in mine:
                cell = filter(None, (_cell(row, value, show), _cell(row, ratio, _times)))
                rows.setdefault(row["way"], [row["way"]]).append(", ".join(cell))
            headings = [f"{tower} {step}: {what}", *(f"{length:,} keys" for length in lengths)]
            tables.append(grid(headings, list(rows.values())))
    return tables


def decode(record: Record) -> list[str]:
    """Prefill, step and memory, each as a ratio to plain, beside those of FLOPs and bytes."""
    results, settings = record["results"], record["settings"]
    tokens = settings["image_tokens"] + settings["text_tokens"]  # not so where there are tiles
    tables = [
        f"{settings['preset']}, {settings['dtype']}, prompts of "
        f"{results.get('prompt_tokens', tokens)} tokens, "
        f"{settings['new_tokens']} new tokens; weights {_size(results['weights_bytes'])}"
    ]
    for batch in settings["batch"]:
        rows = [row for row in results["rows"] if row["batch"] == batch]
        tables.append(_contenders(f"batch {batch}", _DECODE, rows))
    return tables


def questions(record: Record) -> list[str]:
    """Questions a second, and how much faster than one by one."""
    settings = record["settings"]
    heading = f"{settings['questions']} questions, {settings['preset']}, {settings['dtype']}"
    return [_contenders(heading, _QUESTIONS, record["results"])]


def loading(record: Record) -> list[str]:
    """Memory of loading and of branches."""
    results = record["results"]
    size = results["checkpoint_bytes"]
    rows = [["checkpoint", _size(size)]]
    rows += [
        [
            f"loading it as {dtype}: peak memory, to the checkpoint",
            f"{_size(found['extra_bytes'])}, {_times(found['extra_bytes'] / size)}",
        ]
        for dtype, found in results["load"].items()
    ]
    rows += [
        [f"answer of {each['rows']} rows, peak extra memory", _size(each["extra_bytes"])]
        for each in results["branches"]["peaks"]
    ]
    rows.append(["weights held meanwhile", _size(results["branches"]["weights_bytes"])])
    return [grid([f"{record['settings']['preset']}, {record['settings']['dtype']}", ""], rows)]


def serve(record: Record) -> list[str]:
    """Requests a second, and how long they take."""
    results = record["results"]
    rows = [["one by one, without the service", f"{results['alone_per_second']:.1f}", "", ""]]
    names = (("one_client", "1 client"), ("clients", f"{record['settings']['clients']} clients"))
    for key, name in names:
        found = results[key]
        seconds = [f"{found[each]:.2f} s" for each in ("p50_seconds", "p95_seconds")]
        rows.append(
            [f"{name}, {found['requests']} requests", f"{found['per_second']:.1f}", *seconds]
        )
    return [grid(["demo-llava", "answers a second", "p50", "p95"], rows)]


_TABLES = {each.__name__: each for each in (attention, decode, questions, loading, serve)}


def _bars(record: Record) -> list[str]:
    rows = [
        [
            bar["what"],
            f"{bar['value']:.3g}",
            f"{'>=' if bar['at_least'] else '<='} {bar['limit']:g}",
            "met" if bar["met"] else "not met",
        ]
        for bar in record["bars"]
    ]
    return [grid(["bar", "measured", "limit", ""], rows)] if rows else []


def main(argv: list[str] | None = None) -> int:
    """Print the tables and return 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="*", help="JSON files of benchmarks")
    for file in parser.parse_args(argv).files or sorted(RESULTS.glob("*.json")):
        print(f"### {file.stem}\n\n{show(read(file))}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
