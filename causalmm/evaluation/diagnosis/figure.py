"""The heat map of `diagnose`: layers along, a lane for each method and kind of window.

Numbers are those of the held-out half, see report.py. Windows that overlap
are drawn around their middles, next to each other. Tests: tests/evaluation/test_diagnose.py.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from causalmm.evaluation.diagnosis.measurement import Candidate, Configuration
from causalmm.evaluation.diagnosis.report import Diagnosis
from causalmm.figures import colours
from causalmm.figures.canvas import NORMAL, SMALL, WIDTH, new_axes, new_figure

LANE, _BETWEEN = 0.2, 0.08  # inches
NARROWEST = 0.24
"""Inches of a cell that is wide enough for its number."""


class Cell(NamedTuple):
    """Where a window is drawn, in layers, and what is."""

    start: float
    end: float
    configuration: Configuration


class Lane(NamedTuple):
    """The windows of one kind under one method, scope and choice of heads."""

    name: str
    kind: str
    cells: list[Cell]
    top: float
    """Inches from the top of its panel."""


def lanes(wanted: Sequence[Candidate], tower: str) -> list[Lane]:
    """Of a tower, in the order of what was asked for."""
    found: dict[tuple[str, str], list[Configuration]] = {}
    for each in wanted:
        if each.configuration.tower == tower:
            key = each.configuration.name, each.kind
            found.setdefault(key, []).append(each.configuration)
    drawn: list[Lane] = []
    for (name, kind), windows in found.items():
        top = drawn[-1].top + LANE if drawn else 0.0
        if drawn and name != drawn[-1].name:
            top += _BETWEEN
        drawn.append(Lane(name, kind, _cells(windows), top))
    return drawn


def _cells(windows: Sequence[Configuration]) -> list[Cell]:
    spans = [(each.layers[0], each.layers[-1] + 1) for each in windows]
    # Between two that only touch, this is where they do.
    edges = [(one[1] + other[0]) / 2 for one, other in zip(spans, spans[1:], strict=False)]
    starts, ends = [spans[0][0], *edges], [*edges, spans[-1][1]]
    return [Cell(*each) for each in zip(starts, ends, windows, strict=True)]


def diagnosis_figure(
    found: Diagnosis, wanted: Sequence[Candidate], layers: Mapping[str, int], model: str
) -> Figure:
    """What each branch says alone and what the adjusted model gains, a panel each."""
    title = f"{model}: what branches say alone, and what is gained"
    alone = [name for name in found.ranked[0].held_out if name.startswith("alone")]
    panels = {name: f"branch alone\n% right{name.removeprefix('alone')}" for name in alone}
    panels |= {"unreadable": "branch alone\n% unreadable", "gain": "adjusted\npoints gained"}
    panels["AUC gain"] = "adjusted\nAUC gained"
    by_tower = {tower: each for tower in layers if (each := lanes(wanted, tower))}
    heights = {tower: each[-1].top + LANE for tower, each in by_tower.items()}
    left, gap, head, foot, below = 0.55, 0.12, 0.62, 0.4, 0.5
    left += label_width(
        [f"{lane.name}  {lane.kind}" for each in by_tower.values() for lane in each]
    )
    figure = new_figure(head + sum(heights.values()) + below * (len(heights) - 1) + foot, title)
    wide = (WIDTH - left - 0.1 - gap * (len(panels) - 1)) / len(panels)
    top = figure.get_figheight() - head
    for tower, each in by_tower.items():
        for column, (name, heading) in enumerate(panels.items()):
            where = (left + column * (wide + gap), top - heights[tower], wide, heights[tower])
            axes = new_axes(figure, where)
            axes.set_xlim(0, layers[tower])
            axes.set_ylim(heights[tower], 0)
            if tower == next(iter(by_tower)):
                axes.set_title(heading, fontsize=NORMAL, pad=4)
            values = {each.configuration: each.held_out[name].value for each in found.ranked}
            gains, digits = name.endswith("gain"), int(name == "AUC gain")
            scale = largest(found, name) if gains else 100.0
            narrowest = NARROWEST * layers[tower] / wide
            _draw_lanes(axes, each, values, scale, gains, digits, narrowest)
            ticks = list(range(0, layers[tower] + 1, max(1, math.ceil(layers[tower] / 8))))
            axes.set_xticks(ticks, map(str, ticks), fontsize=SMALL - 1, color=colours.FAINT)
            axes.tick_params(length=2, pad=1)
            if column == 0:
                _label_lanes(axes, each, tower)
        top -= heights[tower] + below
    return figure


def _draw_lanes(
    axes: Any,
    each: Sequence[Lane],
    values: Mapping[Configuration, float],
    scale: float,
    diverging: bool,
    digits: int,
    narrowest: float,
) -> None:
    """`scale` is the value of the full colour; cells below `narrowest` layers have no number."""
    for lane in each:
        for start, end, configuration in lane.cells:
            value = values[configuration]
            text = rounded(value, diverging, digits) if end - start >= narrowest else ""
            where = (start, lane.top + 0.01, end - start, LANE - 0.02)
            draw_cell(axes, where, shade(value / scale, diverging), text)


def draw_cell(
    axes: Any, where: tuple[float, float, float, float], colour: np.ndarray, text: str
) -> None:
    """A cell at x, y, width and height, and a number on it."""
    x, y, width, height = where
    axes.add_patch(
        Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", linewidth=0.6)
    )
    if text:
        # The eye sees green most and blue least.
        light = float(np.dot(colour, (0.299, 0.587, 0.114)))
        axes.text(
            x + width / 2,
            y + height / 2,
            text,
            fontsize=SMALL - 1,
            color="black" if light > 0.55 else "white",
            ha="center",
            va="center_baseline",
        )


def rounded(value: float, signed: bool, digits: int = 0) -> str:
    """A number for a cell; nothing for NaN."""
    if math.isnan(value):
        return ""
    # Adding 0 turns -0.0 into 0.0.
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"


def largest(found: Diagnosis, name: str) -> float:
    """The largest gain or loss, which has the full colour; 1 where there is none."""
    values = (abs(each.held_out[name].value) for each in found.ranked)
    return max((value for value in values if not math.isnan(value)), default=0) or 1.0


def label_width(labels: Sequence[str]) -> float:
    """Inches that the longest of some labels takes."""
    return 0.052 * max(map(len, labels))


def shade(share: float, diverging: bool = False) -> np.ndarray:
    """The colour of a share of the whole, RGB; diverging: of a share from -1 to 1."""
    if math.isnan(share):
        return np.array(to_rgb(colours.UNSEEN))
    strong = colours.FACTUAL
    if diverging:
        strong = colours.MORE if share > 0 else colours.LESS
    strength = min(1.0, abs(share))
    return (1 - strength) * np.ones(3) + strength * np.array(to_rgb(strong))


def _label_lanes(axes: Any, each: Sequence[Lane], tower: str) -> None:
    axes.set_xlabel("layer", fontsize=SMALL, color=colours.FAINT, labelpad=1)
    axes.set_ylabel(tower, fontsize=NORMAL + 1)
    names, before = [], None
    for lane in each:
        names.append(f"{lane.name}  {lane.kind}" if lane.name != before else lane.kind)
        before = lane.name
    axes.set_yticks([lane.top + LANE / 2 for lane in each], names, fontsize=SMALL)
    axes.tick_params(axis="y", length=0, pad=3)
