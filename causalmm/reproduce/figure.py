"""The forest plot of a recipe's report: every row's paired difference to a base, with its interval.

Tests: tests/reproduce/test_report.py.
"""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from causalmm.evaluation.statistics import LEVEL
from causalmm.figures import colours
from causalmm.figures.canvas import NORMAL, SMALL, WIDTH, new_axes, new_figure
from causalmm.reproduce.report import Cell, TableReport

_LINE, _HEADING, _FOOT, _LEFT = 0.19, 0.3, 0.5, 2.6  # inches


def forest(report: TableReport, base: str, metric: str) -> Figure:
    """The differences to a base in one metric: a panel a set of questions, a line a row."""
    cells = [cell for cell in report.cells if cell.metric == metric and base in cell.differences]
    rule = cells[0].rule
    panels: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.rule == rule:
            panels.setdefault(cell.set, []).append(cell)
    ends = [
        end
        for some in panels.values()
        for cell in some
        for end in (cell.differences[base].low, cell.differences[base].high)
        if not math.isnan(end)
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.05 * (high - low) or 1.0
    height = 0.4 + sum(_HEADING + _LINE * len(some) for some in panels.values()) + _FOOT
    title = f"{report.recipe.title}: {metric} less {base}'s, in points"
    figure = new_figure(height, title)
    top = height - 0.4
    for name, some in panels.items():
        figure.text(0.08 / WIDTH, (top - 0.16) / height, f"{name}, {rule}", fontsize=NORMAL)
        top -= _HEADING
        tall = _LINE * len(some)
        axes = new_axes(figure, (_LEFT, top - tall, WIDTH - _LEFT - 0.15, tall))
        axes.set_xlim(low - margin, high + margin)
        axes.set_ylim(len(some) - 0.5, -0.5)
        axes.axvline(0, color=colours.FAINT, linewidth=0.6)
        for line, cell in enumerate(some):
            found = cell.differences[base]
            axes.plot([found.low, found.high], [line, line], color=colours.FACTUAL, linewidth=1.4)
            axes.plot([found.value], [line], "o", color=colours.FACTUAL, markersize=3.5)
            place = (_LEFT - 0.06) / WIDTH, (top - _LINE * (line + 0.5)) / height
            figure.text(*place, cell.row, fontsize=SMALL, ha="right", va="center", parse_math=False)
        top -= tall
    every = MaxNLocator(6).tick_values(low - margin, high + margin)
    axes.set_xticks([tick for tick in every if low - margin <= tick <= high + margin])
    axes.tick_params(labelsize=SMALL)
    figure.text(
        _LEFT / WIDTH, 0.1 / height, f"lines: {LEVEL} % bootstrap intervals over images, paired",
        fontsize=SMALL, color=colours.FAINT,
    )  # fmt: skip
    return figure
