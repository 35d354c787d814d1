"""The figure of benchmarks/attention.py: time and memory against length. Needs matplotlib."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contenders import DENSE, IMAGE
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Told apart by the colour-blind too. SDPA, then the methods in the order of the record; a method
# on dense maps has its colour, dashed, and under scope "image" dotted.
COLOURS = ("#1a1a1a", "#0072b2", "#e69f00", "#d55e00", "#009e73", "#56b4e9", "#cc79a7", "#999999")


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Write the figure of a record as PNG."""
    results, settings = record["results"], record["settings"]
    panels = list(dict.fromkeys((row["tower"], row["step"]) for row in results))
    methods = list(dict.fromkeys(_method(row["way"]) for row in results))
    figure = Figure(figsize=(10, 9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{record['machine']['gpu'] or record['machine']['cpu']}, {settings['dtype']}, "
        f"{settings['heads']} heads of {settings['head_size']}, batch {settings['batch']}",
        fontsize=10,
    )
    axes = figure.subplots(len(panels), 2, sharex=True, squeeze=False)
    for (tower, step), (left, right) in zip(panels, axes, strict=True):
        rows = [row for row in results if (row["tower"], row["step"]) == (tower, step)]
        for way in dict.fromkeys(row["way"] for row in rows if "time_s" in row):
            mine = [row for row in rows if row["way"] == way and "time_s" in row]
            colour = COLOURS[min(methods.index(_method(way)), len(COLOURS) - 1)]
            line, width = ("--", 1) if way.startswith(DENSE) else ("-", 1.6)
            line = ":" if way.endswith(IMAGE) else line
            style = {"color": colour, "linestyle": line, "linewidth": width, "label": way}
            style |= {"marker": "o", "markersize": 2.5}
            keys = [row["keys"] for row in mine]
            low, median, high = (
                [row["time_s"][name] * 1e3 for row in mine] for name in ("low", "median", "high")
            )
            left.plot(keys, median, **style)
            left.fill_between(keys, low, high, color=colour, alpha=0.15, linewidth=0)
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
    lengths = sorted({row["keys"] for row in results})
    for panel in axes[-1]:
        panel.set_xlabel("keys", fontsize=8)
        panel.set_xticks(lengths, [f"{n // 1024}k" if n % 1024 == 0 else str(n) for n in lengths])
    figure.savefig(path)


def _method(way: str) -> str:
    return way.removeprefix(DENSE).removesuffix(IMAGE)
