"""The figure of layers and scopes of `diagnose`: a row a method and scope, a column a window.

What the branch says alone and what the adjusted model gains in AUC are those of the held-out half,
see report.py; perplexity is of plain answers, see fluency.py.
Tests: tests/evaluation/test_diagnose.py.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from causalmm.evaluation.diagnosis.figure import (
    LANE,
    NARROWEST,
    draw_cell,
    label_width,
    largest,
    rounded,
    shade,
)
from causalmm.evaluation.diagnosis.measurement import Candidate, Configuration
from causalmm.evaluation.diagnosis.report import Diagnosis, Finding
from causalmm.figures import colours
from causalmm.figures.canvas import NORMAL, SMALL, WIDTH, new_axes, new_figure


class Grid(NamedTuple):
    """The configurations of a tower."""

    rows: list[str]
    """Scope, heads and method."""
    columns: list[str]
    """Windows, as a setting names them."""
    cells: dict[tuple[int, int], Configuration]
    """By row and column; what overlaps has columns of its own."""


class Panel(NamedTuple):
    """A number of every configuration."""

    heading: str
    values: Mapping[Configuration, float]
    colours: Mapping[Configuration, np.ndarray]
    signed: bool = False
    digits: int = 0


def grid(wanted: Sequence[Candidate], tower: str) -> Grid:
    """Of a tower, in the order of what was asked for."""
    found = [each.configuration for each in wanted if each.configuration.tower == tower]
    rows = list(dict.fromkeys(each.name for each in found))
    columns = list(dict.fromkeys(each.spec for each in found))
    places = {(rows.index(each.name), columns.index(each.spec)): each for each in found}
    return Grid(rows, columns, places)


def scope_figure(
    found: Diagnosis, wanted: Sequence[Candidate], layers: Mapping[str, int], model: str
) -> Figure:
    """What each branch says alone, how improbable it finds plain answers, and what is gained."""
    panels = _panels(found)
    grids = {tower: each for tower in layers if (each := grid(wanted, tower)).rows}
    heights = {tower: LANE * len(each.rows) for tower, each in grids.items()}
    gap, head, foot = 0.12, 0.62, 0.5
    left = 0.55 + label_width([name for each in grids.values() for name in each.rows])
    figure = new_figure(
        head + sum(heights.values()) + foot * len(heights),
        f"{model}: layers and scopes",
    )
    wide = (WIDTH - left - 0.1 - gap * (len(panels) - 1)) / len(panels)
    top = figure.get_figheight() - head
    for tower, each in grids.items():
        for place, panel in enumerate(panels):
            where = (left + place * (wide + gap), top - heights[tower], wide, heights[tower])
            axes = new_axes(figure, where)
            axes.set_xlim(0, len(each.columns))
            axes.set_ylim(len(each.rows), 0)
            if tower == next(iter(grids)):
                axes.set_title(panel.heading, fontsize=NORMAL, pad=4)
            _draw(axes, each, panel, wide / len(each.columns) >= NARROWEST)
            if place == 0:
                rows = [row + 0.5 for row in range(len(each.rows))]
                axes.set_yticks(rows, each.rows, fontsize=SMALL)
                axes.tick_params(axis="y", length=0, pad=3)
                axes.set_ylabel(tower, fontsize=NORMAL + 1)
        top -= heights[tower] + foot
    return figure


def _panels(found: Diagnosis) -> list[Panel]:
    names = [name for name in found.ranked[0].held_out if name.startswith("alone")]
    alone = {
        each.configuration: float(np.mean([each.held_out[name].value for name in names]))
        for each in found.ranked
    }
    tints = {name: shade(value / 100) for name, value in alone.items()}
    panels = [Panel("branch alone\n% right", alone, tints)]
    if all(_improbable(each) for each in (found.plain, *found.ranked)):
        plain = _improbable(found.plain)
        values = {each.configuration: _improbable(each) for each in found.ranked}
        worst = max(math.log(max(values.values()) / plain), 0.0) or 1.0
        tints = {
            name: shade(max(math.log(value / plain) / worst, 0.0)) for name, value in values.items()
        }
        panels.append(
            Panel(f"branch alone\nperplexity (plain {plain:.2g})", values, tints, False, 1)
        )
    gains = {each.configuration: each.held_out["AUC gain"].value for each in found.ranked}
    most = largest(found, "AUC gain")
    tints = {name: shade(value / most, True) for name, value in gains.items()}
    panels.append(Panel("adjusted\nAUC gained", gains, tints, True, 1))
    return panels


def _draw(axes: Any, each: Grid, panel: Panel, numbers: bool) -> None:
    for (row, column), configuration in each.cells.items():
        value = panel.values[configuration]
        text = rounded(value, panel.signed, panel.digits) if numbers else ""
        text = text if len(text) < 6 else f"{value:.0e}"
        draw_cell(axes, (column, row + 0.05, 1, 0.9), panel.colours[configuration], text)
    ticks = [column + 0.5 for column in range(len(each.columns))]
    axes.set_xticks(ticks, each.columns, fontsize=SMALL - 1, color=colours.FAINT, rotation=90)
    axes.tick_params(axis="x", length=0, pad=1)


def _improbable(each: Finding) -> float:
    """Its perplexity of plain answers; 0 where there is none."""
    value = each.fluency.get("perplexity", 0.0)
    return 0.0 if math.isnan(value) else value
