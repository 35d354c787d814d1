"""The figure `attention-vision`: a picture under its attention. Numbers from vision.py.

Tests: tests/figures/test_figures_drawing.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from causalmm.figures import colours
from causalmm.figures.canvas import NORMAL, SMALL, WIDTH, new_axes, new_figure, ratio_bar, tinted
from causalmm.figures.flags import MEAN, SUMMARY, Query
from causalmm.figures.pictures import Picture
from causalmm.figures.vision import Overlay, QueryRow


def vision_figure(picture: Picture, rows: Sequence[QueryRow], title: str) -> Figure:
    """The picture, and over it a row a query: its factual attention, then each counterfactual."""
    names = list(rows[0].overlays)
    left, right, gap, head, foot = 0.32, 0.06, 0.08, 0.62, 0.62
    side = (WIDTH - left - right - gap * len(names)) / (1 + len(names))
    height = side * picture.pixels.shape[0] / picture.pixels.shape[1]
    below = 0.22 if picture.summary is not None else gap
    figure = new_figure(head + len(rows) * (height + below) + foot, title)
    for number, row in enumerate(rows):
        bottom = figure.get_figheight() - head - (number + 1) * height - number * below
        for column, name in enumerate(("picture", *names)):
            where = (left + column * (side + gap), bottom, side, height)
            axes = new_axes(figure, where)
            if number == 0:
                axes.set_title(name, fontsize=NORMAL + 1, pad=4)
            if name == "picture":
                axes.imshow(picture.pixels)
                axes.set_ylabel(_query_label(row.query), fontsize=NORMAL, labelpad=4)
            else:
                overlay = row.overlays[name]
                axes.imshow(overlaid(picture, overlay))
                if overlay.summary is not None:
                    text = f"class token {overlay.summary:.0%}"
                    axes.set_xlabel(text, fontsize=SMALL, color=colours.FAINT, labelpad=2)
            if isinstance(row.query, tuple):
                _mark_patch(axes, picture, row.query)
    ratio_bar(figure, middle=WIDTH / 2, bottom=0.36)
    return figure


def overlaid(picture: Picture, overlay: Overlay) -> np.ndarray:
    """A pale grey picture under the colours of an overlay, RGB in [0, 1], [height, width, 3]."""
    return tinted(_grey(picture.pixels), _enlarged(overlay.ratios.numpy(), picture))


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
