"""The figure `attention-language`: matrices over a prompt. Numbers from language.py.

Tests: tests/figures/test_figures_drawing.py.
"""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from causalmm.figures import colours
from causalmm.figures.canvas import (
    NORMAL,
    SMALL,
    WIDTH,
    new_axes,
    new_figure,
    ratio_bar,
    shortened,
    tinted,
)
from causalmm.figures.language import Matrices, Place

PICTURE_CELLS = 2.5
"""Side of a picture's cell in a matrix, in those of a word's."""
READABLE_CELL = 0.08  # inches
LEGEND = 1.2  # inches


def language_figure(matrices: Matrices, title: str) -> Figure:
    """The matrices of every map: a row a query, a column a key."""
    places = matrices.places
    edges = np.cumsum([0, *(PICTURE_CELLS if place.picture else 1 for place in places)])
    labels = [_place_label(place) for place in places]
    names_width = 0.062 * max(map(len, labels))  # inches, at NORMAL
    left, gap, head, below = 0.2 + names_width, 0.12, 0.62, 0.3
    columns = next((n for n in (3, 2) if (WIDTH - left) / n >= edges[-1] * READABLE_CELL), 1)
    side = (WIDTH - left - gap * columns) / columns
    size = min(NORMAL, 0.86 * 72 * side / edges[-1])
    # The legend has the place of a sixth matrix, or one of its own under a single column.
    slots = len(matrices.ratios) + (columns > 1)
    rows = math.ceil(slots / columns)
    foot = 0.12 + names_width * size / NORMAL + (0 if columns > 1 else LEGEND)
    figure = new_figure(head + rows * (side + below) + foot, title)
    for number, (name, ratios) in enumerate(matrices.ratios.items()):
        row, column = divmod(number, columns)
        bottom = figure.get_figheight() - head - (row + 1) * side - row * below
        axes = new_axes(figure, (left + column * (side + gap), bottom, side, side))
        axes.set_title(name, fontsize=NORMAL + 1, pad=4)
        _matrix(axes, ratios.numpy(), edges, matrices)
        middles = (edges[1:] + edges[:-1]) / 2
        if column == 0:
            axes.set_yticks(middles, labels, fontsize=size, parse_math=False)
        if number + columns >= len(matrices.ratios):
            axes.set_xticks(middles, labels, fontsize=size, rotation=90, parse_math=False)
        axes.tick_params(length=0, pad=2)
    _legend(
        figure,
        middle=left + (columns - 1) * (side + gap) + side / 2,
        bottom=foot + side / 2 if columns > 1 else LEGEND - 0.2,
    )
    return figure


def _matrix(axes: Any, ratios: np.ndarray, edges: np.ndarray, matrices: Matrices) -> None:
    axes.pcolormesh(edges, edges, tinted(np.ones((*ratios.shape, 3)), ratios))
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(edges[-1], 0)
    for place, start, stop in zip(matrices.places, edges, edges[1:], strict=False):
        if place.picture:
            for edge in (start, stop):
                axes.axhline(edge, color=colours.ADJUSTED, linewidth=0.5)
                axes.axvline(edge, color=colours.ADJUSTED, linewidth=0.5)


def _legend(figure: Figure, middle: float, bottom: float) -> None:
    ratio_bar(figure, middle, bottom)
    notes = (
        "row: who attends; column: to whom",
        "grey: may not be seen",
        "the tokens of a picture are summed up in one cell",
    )
    figure.text(
        middle / WIDTH,
        (bottom - 0.42) / figure.get_figheight(),
        "\n".join(notes),
        fontsize=SMALL,
        color=colours.FAINT,
        ha="center",
        va="top",
        linespacing=1.5,
    )


def _place_label(place: Place) -> str:
    if place.picture:
        return f"{place.label} ×{place.stop - place.start}"
    return shortened(place.label)
