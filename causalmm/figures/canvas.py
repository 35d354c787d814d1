"""What the figures by matplotlib share: a canvas, axes placed in inches, colours for ratios.

For the width of a README, 900 pixels, at twice that density. Without pyplot: nothing outlives a
figure. Tests: tests/figures/test_figures_drawing.py.
"""

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from causalmm.figures import colours

WIDTH, DENSITY = 9.0, 200  # inches; pixels an inch
SMALL, NORMAL, LARGE = 7, 8, 10  # points
OCTAVES = 3
"""Colours end at 2^3 = 8 even shares and at an eighth of one."""


def new_figure(height: float, title: str) -> Figure:
    """An empty figure of this height in inches, its title at the top left."""
    figure = Figure(figsize=(WIDTH, height), dpi=DENSITY, facecolor="white")
    FigureCanvasAgg(figure)
    text = {"fontsize": LARGE, "va": "top", "parse_math": False}
    figure.text(0.08 / WIDTH, 1 - 0.08 / height, shortened(title, 100), **text)
    return figure


def new_axes(figure: Figure, where: tuple[float, float, float, float]) -> Any:
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


def tinted(base: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Colours [..., 3] of ratios [...] over a base [..., 3]: the base itself where a ratio is 1."""
    with np.errstate(divide="ignore"):
        octaves = np.clip(np.log2(np.maximum(ratios, 0)), -OCTAVES, OCTAVES)[..., None]
    strength = np.abs(octaves) / OCTAVES
    ends = np.where(octaves > 0, to_rgb(colours.MORE), to_rgb(colours.LESS))
    mixed = (1 - strength) * base + strength * ends
    return np.where(np.isnan(octaves), to_rgb(colours.UNSEEN), mixed).clip(0, 1)


def ratio_bar(figure: Figure, middle: float, bottom: float) -> None:
    """The key to `tinted`, its middle and bottom in inches."""
    octaves = np.linspace(-OCTAVES, OCTAVES, 240)
    axes = new_axes(figure, (middle - 1.3, bottom, 2.6, 0.12))
    strip = tinted(np.ones((1, octaves.size, 3)), 2.0 ** octaves[None])
    axes.imshow(strip, extent=(-OCTAVES, OCTAVES, 0, 1), aspect="auto")
    ticks = range(-OCTAVES, OCTAVES + 1)
    names = [f"1/{2**-tick}" if tick < 0 else f"{2**tick}" for tick in ticks]
    axes.set_xticks(list(ticks), names, fontsize=SMALL)
    axes.tick_params(length=2, pad=1)
    text = "attention in even shares: 1 is no preference"
    axes.set_xlabel(text, fontsize=SMALL, color=colours.FAINT, labelpad=2)


def shortened(text: str, longest: int = 12) -> str:
    """A text with its end cut off where it is too long."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
