"""Figures by matplotlib, for the width of a README: 900 pixels, at twice that density.

Each function takes the numbers of one figure and returns it, ready to be saved. Without pyplot:
nothing outlives a figure. Held by tests/test_figures_drawing.py.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from causalmm.figures import colours
from causalmm.figures.language import Matrices, Place
from causalmm.figures.pictures import Picture
from causalmm.figures.queries import MEAN, SUMMARY, Query
from causalmm.figures.tokens import BRANCHES, Candidate, Step
from causalmm.figures.vision import METHODS, Row

WIDTH, DENSITY = 9.0, 200  # inches; pixels an inch
OCTAVES = 3
"""Colours end at 2^3 = 8 even shares and at an eighth of one."""
SMALL, NORMAL, LARGE = 7, 8, 10  # points
PICTURE_CELLS = 2.5
"""Side of a picture's cell in a matrix, in those of a word's."""
READABLE_CELL = 0.1  # inches
LEGEND = 1.2  # inches


def vision_figure(picture: Picture, rows: Sequence[Row], title: str) -> Figure:
    """The picture, and over it a row a query: its factual attention, then each counterfactual."""
    names = ("factual", *METHODS)
    left, right, gap, head, foot = 0.32, 0.06, 0.08, 0.62, 0.62
    side = (WIDTH - left - right - gap * len(names)) / (1 + len(names))
    height = side * picture.pixels.shape[0] / picture.pixels.shape[1]
    below = 0.22 if picture.summary is not None else gap
    figure = _figure(head + len(rows) * (height + below) + foot, title)
    shade = _grey(picture.pixels)
    for number, row in enumerate(rows):
        bottom = figure.get_figheight() - head - (number + 1) * height - number * below
        for column, name in enumerate(("picture", *names)):
            where = (left + column * (side + gap), bottom, side, height)
            axes = _axes(figure, where)
            if number == 0:
                axes.set_title(name, fontsize=NORMAL + 1, pad=4)
            if name == "picture":
                axes.imshow(picture.pixels)
                axes.set_ylabel(_query_label(row.query), fontsize=NORMAL, labelpad=4)
            else:
                overlay = row.overlays[name]
                ratios = _enlarged(overlay.ratios.numpy(), picture)
                axes.imshow(_tinted(shade, ratios))
                if overlay.summary is not None:
                    text = f"class token {overlay.summary:.0%}"
                    axes.set_xlabel(text, fontsize=SMALL, color=colours.FAINT, labelpad=2)
            if isinstance(row.query, tuple):
                _mark_patch(axes, picture, row.query)
    _ratio_bar(figure, middle=WIDTH / 2, bottom=0.36)
    return figure


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
    figure = _figure(head + rows * (side + below) + foot, title)
    for number, (name, ratios) in enumerate(matrices.ratios.items()):
        row, column = divmod(number, columns)
        bottom = figure.get_figheight() - head - (row + 1) * side - row * below
        axes = _axes(figure, (left + column * (side + gap), bottom, side, side))
        axes.set_title(name, fontsize=NORMAL + 1, pad=4)
        _matrix(axes, ratios.numpy(), edges, matrices)
        middles = (edges[1:] + edges[:-1]) / 2
        if column == 0:
            axes.set_yticks(middles, labels, fontsize=size, parse_math=False)
        if number + columns >= len(matrices.ratios):
            axes.set_xticks(middles, labels, fontsize=size, rotation=90, parse_math=False)
        axes.tick_params(length=0, pad=2)
    _matrix_legend(
        figure,
        middle=left + (columns - 1) * (side + gap) + side / 2,
        bottom=foot + side / 2 if columns > 1 else LEGEND - 0.2,
    )
    return figure


def _matrix(axes: Any, ratios: np.ndarray, edges: np.ndarray, matrices: Matrices) -> None:
    axes.pcolormesh(edges, edges, _tinted(np.ones((*ratios.shape, 3)), ratios))
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(edges[-1], 0)
    for place, start, stop in zip(matrices.places, edges, edges[1:], strict=False):
        if place.picture:
            for edge in (start, stop):
                axes.axhline(edge, color=colours.ADJUSTED, linewidth=0.5)
                axes.axvline(edge, color=colours.ADJUSTED, linewidth=0.5)


def _matrix_legend(figure: Figure, middle: float, bottom: float) -> None:
    _ratio_bar(figure, middle, bottom)
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
    return _shortened(place.label)


def tokens_figure(steps: Sequence[Step], title: str) -> Figure:
    """A panel a token: how far the adjustment moves each candidate, and what it is moved from."""
    columns = min(4, len(steps))
    rows = [steps[start : start + columns] for start in range(0, len(steps), columns)]
    left, gap, label, head, foot = 0.1, 0.16, 0.78, 0.98, 0.25
    line, caption = 0.2, 0.5
    width = (WIDTH - left - (columns - 1) * gap - 0.1) / columns
    heights = [max(len(step.candidates) for step in row) * line for row in rows]
    # Without a caption below the last row: its numbers stand in the foot.
    figure = _figure(head + sum(heights) + (len(rows) - 1) * caption + foot, title)
    _branch_legend(figure, steps[0])
    top = figure.get_figheight() - head
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, step in enumerate(row):
            high = len(step.candidates) * line
            place = left + column * (width + gap) + label
            axes = _axes(figure, (place, top - high, width - label - 0.08, high))
            _step_panel(axes, step, number * columns + column)
        top -= height + caption
    return figure


def _step_panel(axes: Any, step: Step, number: int) -> None:
    axes.set_xlim(-0.06, 1.06)
    axes.set_ylim(len(step.candidates) - 0.5, -0.5)
    axes.set_axisbelow(True)
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"], fontsize=SMALL, color=colours.FAINT)
    axes.grid(axis="x", linewidth=0.4, color=colours.UNSEEN)
    labels = [_shortened(each.label) for each in step.candidates]
    axes.set_yticks(range(len(labels)), labels, fontsize=NORMAL, parse_math=False)
    axes.tick_params(length=0, pad=3)
    colour = colours.CHANGED if step.changed else colours.ADJUSTED
    for candidate, label in zip(step.candidates, axes.get_yticklabels(), strict=True):
        if candidate.id == step.chosen.id:
            label.set_fontweight("bold")
            label.set_color(colour)
    name = _shortened(step.chosen.label)
    if step.changed:
        name = f"{_shortened(step.factual_best.label)} → {_shortened(step.adjusted_best.label)}"
        for spine in axes.spines.values():
            spine.set_color(colours.CHANGED)
            spine.set_linewidth(1.2)
    heading = {"fontsize": NORMAL + 1, "color": colour, "loc": "left", "pad": 3}
    axes.set_title(f"{number + 1}  {name}", parse_math=False, **heading)
    for position, candidate in enumerate(step.candidates):
        _candidate(axes, position, candidate)


def _candidate(axes: Any, position: int, candidate: Candidate) -> None:
    marks = {"linestyle": "none"}
    axes.annotate(
        "",
        xy=(candidate.adjusted, position),
        xytext=(candidate.factual, position),
        arrowprops={
            "arrowstyle": "-",
            "color": colours.ADJUSTED,
            "linewidth": 0.8,
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )
    for name, probability in candidate.branches.items():
        axes.plot(
            probability, position, marker="D", markersize=3.6, color=colours.BRANCHES[name], **marks
        )
    axes.plot(
        candidate.factual,
        position,
        marker="o",
        markersize=5.5,
        markerfacecolor="white",
        markeredgewidth=1.3,
        color=colours.FACTUAL,
        **marks,
    )
    shape = "x" if candidate.dropped else "o"
    axes.plot(
        candidate.adjusted, position, marker=shape, markersize=4, color=colours.ADJUSTED, **marks
    )


def _branch_legend(figure: Figure, step: Step) -> None:
    entries = [("factual", {"marker": "o", "markerfacecolor": "white", "color": colours.FACTUAL})]
    for name in BRANCHES:
        if name in step.chosen.branches:
            entries.append(
                (f"{name} counterfactual", {"marker": "D", "color": colours.BRANCHES[name]})
            )
    entries += [
        ("adjusted", {"marker": "o", "color": colours.ADJUSTED}),
        ("dropped as implausible", {"marker": "x", "color": colours.ADJUSTED}),
    ]
    handles = [
        Line2D([], [], linestyle="none", markersize=5, label=label, **look)
        for label, look in entries
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 1 - 0.3 / figure.get_figheight()),
        ncols=len(handles),
        fontsize=NORMAL,
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    figure.text(
        0.13 / WIDTH,
        1 - 0.62 / figure.get_figheight(),
        "bold: the token chosen; red frame: the adjustment put another token first",
        fontsize=SMALL,
        color=colours.FAINT,
        va="center",
    )


def _shortened(label: str) -> str:
    return label if len(label) <= 12 else f"{label[:11]}…"


def _figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DENSITY, facecolor="white")
    FigureCanvasAgg(figure)
    text = {"fontsize": LARGE, "va": "top", "parse_math": False}
    figure.text(0.08 / WIDTH, 1 - 0.08 / height, title, **text)
    return figure


def _axes(figure: Figure, where: tuple[float, float, float, float]) -> Any:
    """Axes without ticks at left, bottom, width and height in inches."""
    width, height = figure.get_size_inches()
    left, bottom, wide, high = where
    axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
        spine.set_color(colours.FAINT)
    return axes


def _tinted(base: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Colours [..., 3] of ratios [...] over a base [..., 3]: the base itself where a ratio is 1."""
    with np.errstate(divide="ignore"):
        octaves = np.clip(np.log2(np.maximum(ratios, 0)), -OCTAVES, OCTAVES)[..., None]
    strength = np.abs(octaves) / OCTAVES
    ends = np.where(octaves > 0, to_rgb(colours.MORE), to_rgb(colours.LESS))
    mixed = (1 - strength) * base + strength * ends
    return np.where(np.isnan(octaves), to_rgb(colours.UNSEEN), mixed).clip(0, 1)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """A pale grey copy, as RGB in [0, 1]: there to be recognised under colours."""
    grey = pixels @ np.array([0.299, 0.587, 0.114]) / 255
    return np.repeat((0.4 + 0.6 * grey)[..., None], 3, axis=-1)


def _enlarged(ratios: np.ndarray, picture: Picture) -> np.ndarray:
    """Ratios of patches [rows, columns] as ratios of pixels."""
    height, width = (
        size // count for size, count in zip(picture.pixels.shape, ratios.shape, strict=False)
    )
    return ratios.repeat(height, axis=0).repeat(width, axis=1)


def _mark_patch(axes: Any, picture: Picture, query: tuple[int, int]) -> None:
    rows, columns = picture.places.shape
    height, width = picture.pixels.shape[0] / rows, picture.pixels.shape[1] / columns
    corner = query[1] * width - 0.5, query[0] * height - 0.5
    for colour, thickness in (("white", 2.2), ("black", 1.0)):
        axes.add_patch(
            Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=thickness)
        )


def _query_label(query: Query) -> str:
    if isinstance(query, tuple):
        return f"patch {query[0]},{query[1]}"
    return {MEAN: "mean over patches", SUMMARY: "class token"}[query]


def _ratio_bar(figure: Figure, middle: float, bottom: float) -> None:
    octaves = np.linspace(-OCTAVES, OCTAVES, 240)
    axes = _axes(figure, (middle - 1.3, bottom, 2.6, 0.12))
    strip = _tinted(np.ones((1, octaves.size, 3)), 2.0 ** octaves[None])
    axes.imshow(strip, extent=(-OCTAVES, OCTAVES, 0, 1), aspect="auto")
    ticks = range(-OCTAVES, OCTAVES + 1)
    names = [f"1/{2**-tick}" if tick < 0 else f"{2**tick}" for tick in ticks]
    axes.set_xticks(list(ticks), names, fontsize=SMALL)
    axes.tick_params(length=2, pad=1)
    text = "attention in even shares: 1 is no preference"
    axes.set_xlabel(text, fontsize=SMALL, color=colours.FAINT, labelpad=2)
