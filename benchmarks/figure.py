"""The figure of benchmarks/attention.py: time and memory against length. Needs matplotlib."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANELS = (("language", "prefill"), ("language", "decode"), ("vision", "prefill"))
COLOURS = {
    "sdpa": "#1a1a1a",
    "uniform": "#0072b2",
    "reverse": "#e69f00",
    "reverse_and_normalize": "#d55e00",
    "reversed": "#d55e00",
    "random": "#009e73",
    "shuffle": "#cc79a7",
}
"""Told apart by the colour-blind too; densely computed is the same colour, dashed."""
OTHER = "#999999"
"""Of a method that has no colour of its own."""


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Write the figure of a record as PNG."""
    figure = Figure(figsize=(10, 9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    machine = record["machine"]
    settings = record["settings"]
    figure.suptitle(
        f"{machine['gpu'] or machine['cpu']}, {settings['dtype']}, {settings['heads']} heads of "
        f"{settings['head_size']}, batch {settings['batch']}",
        fontsize=10,
    )
    axes = figure.subplots(len(PANELS), 2, sharex=True)
    for (tower, step), (left, right) in zip(PANELS, axes, strict=True):
        rows = [row for row in record["results"] if (row["tower"], row["step"]) == (tower, step)]
        for way in dict.fromkeys(row["way"] for row in rows):
            mine = [row for row in rows if row["way"] == way and "time_s" in row]
            if not mine:
                continue
            base = way.removeprefix("dense ")
            dense = way != base
            style = {
                "color": COLOURS.get(base, OTHER),
                "linestyle": "--" if dense else "-",
                "linewidth": 1 if dense else 1.6,
                "marker": "o",
                "markersize": 2.5,
                "label": way,
            }
            keys = [row["keys"] for row in mine]
            times = [row["time_s"] for row in mine]
            left.plot(keys, [time["median"] * 1e3 for time in times], **style)
            bounds = [[time[end] * 1e3 for time in times] for end in ("low", "high")]
            left.fill_between(
                keys, *bounds, color=COLOURS.get(base, OTHER), alpha=0.15, linewidth=0
            )
            sizes = {row["keys"]: row["extra_bytes"] / 2**20 for row in mine if row["extra_bytes"]}
            right.plot(list(sizes), list(sizes.values()), **style)
        for panel, what in ((left, "time, ms"), (right, "peak extra memory, MB")):
            panel.set_xscale("log", base=2)
            # Memory too little to be seen is left out, which may leave nothing to scale.
            if any(len(line.get_ydata()) for line in panel.lines):
                panel.set_yscale("log")
            panel.set_title(f"{tower}, {step}: {what}", fontsize=9)
            panel.grid(True, which="major", linewidth=0.3)
            panel.tick_params(which="both", labelsize=8)
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    lengths = sorted({row["keys"] for row in record["results"]})
    for panel in axes[-1]:
        panel.set_xlabel("keys", fontsize=8)
        panel.set_xticks(lengths, [_short(length) for length in lengths])
    figure.savefig(path)


def _short(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)
