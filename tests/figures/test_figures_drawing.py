"""Figures as pictures: nothing is drawn that the numbers do not say."""

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from causalmm.counterfactual.methods import LANGUAGE_METHODS, VISION_METHODS
from causalmm.figures import colours
from causalmm.figures.canvas import tinted
from causalmm.figures.language import Matrices, Place
from causalmm.figures.language_figure import language_figure
from causalmm.figures.pictures import Picture
from causalmm.figures.tokens import Step, TokenCandidate
from causalmm.figures.tokens_figure import tokens_figure
from causalmm.figures.vision import Overlay, QueryRow
from causalmm.figures.vision_figure import vision_figure

WHITE = (1.0, 1.0, 1.0)
TRAPS = ["$x_1", "a$b$", "\\frac", "_", "%", "{", "漢字", "←", "x" * 40]
"""Tokens that a typesetter might take for something else."""


def opened(figure):
    """The figure as a reader gets it, RGB."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert image.width == 1800
        return np.asarray(image.convert("RGB"))


def has(pixels, colour):
    return (pixels == np.round(np.array(to_rgb(colour)) * 255)).all(-1).any()


def texts(axes):
    return [label.get_text() for label in (*axes.get_yticklabels(), *axes.get_xticklabels())]


def titles(figure):
    return [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes]


# -- colours of ratios -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1, (0.2, 0.4, 0.6)),
        (8, to_rgb(colours.MORE)),
        (1000, to_rgb(colours.MORE)),
        (math.inf, to_rgb(colours.MORE)),
        (1 / 8, to_rgb(colours.LESS)),
        (0, to_rgb(colours.LESS)),
        (-1e-9, to_rgb(colours.LESS)),
        (math.nan, to_rgb(colours.UNSEEN)),
        (2, np.array([0.2, 0.4, 0.6]) * 2 / 3 + np.array(to_rgb(colours.MORE)) / 3),
        (1 / 4, np.array([0.2, 0.4, 0.6]) / 3 + np.array(to_rgb(colours.LESS)) * 2 / 3),
    ],
)
def test_the_colour_of_a_ratio(ratio, expected):
    found = tinted(np.array([[0.2, 0.4, 0.6]]), np.array([ratio]))
    np.testing.assert_allclose(found[0], expected)


# -- over a picture ----------------------------------------------------------------------------


def a_picture(summary):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Picture(pixels, torch.arange(6).view(2, 3), summary)


def rows_of(queries, summary):
    ratios = torch.tensor([[8.0, 1, 1], [1, 1, 0.125]])
    maps = {"factual": Overlay(ratios, summary)}
    maps |= {name: Overlay(torch.ones(2, 3), summary) for name in VISION_METHODS}
    return [QueryRow(query, maps) for query in queries]


@pytest.mark.parametrize("summary", [None, 0.125])
def test_a_picture_is_tinted_where_attention_prefers(summary):
    picture = a_picture(None if summary is None else 0)
    figure = vision_figure(picture, rows_of(["mean", (1, 2)], summary), "title")
    pixels = opened(figure)
    assert pixels.std() > 10
    first, second = figure.axes[:6], figure.axes[6:12]
    assert [axes.get_title() for axes in first] == ["picture", "factual", *VISION_METHODS]
    assert [axes.get_ylabel() for axes in (first[0], second[0])] == [
        "mean over patches",
        "patch 1,2",
    ]
    said = "" if summary is None else "class token 12%"
    assert [axes.get_xlabel() for axes in first] == ["", *[said] * 5]
    shown, factual, *edited = (axes.images[0].get_array() for axes in first)
    assert np.array_equal(shown, picture.pixels)
    grey = edited[0]
    # No preference, no colour; patches of 4 x 4 pixels.
    assert (grey[..., 0] == grey[..., 1]).all()
    assert all(np.array_equal(each, grey) for each in edited)
    np.testing.assert_allclose(factual[:4, :4], np.broadcast_to(to_rgb(colours.MORE), (4, 4, 3)))
    np.testing.assert_allclose(factual[4:, 8:], np.broadcast_to(to_rgb(colours.LESS), (4, 4, 3)))
    np.testing.assert_allclose(factual[:4, 4:], grey[:4, 4:])
    # The patch in question is framed in every panel of its row.
    assert [len(axes.patches) for axes in first] == [0] * 6
    for axes in second:
        frame = axes.patches[0]
        assert (frame.get_x(), frame.get_y()) == (7.5, 3.5)
        assert (frame.get_width(), frame.get_height()) == (4, 4)


# -- over a prompt -----------------------------------------------------------------------------


def matrices_of(labels):
    places = [Place("image", 0, 9, picture=True)]
    places += [Place(label, 9 + n, 10 + n) for n, label in enumerate(labels)]
    size = len(places)
    hidden = torch.ones(size, size).triu(1).bool()
    names = ("factual", *LANGUAGE_METHODS)
    ratios = {name: torch.full((size, size), 2.0**n) for n, name in enumerate(names)}
    return Matrices(
        places, {name: each.masked_fill(hidden, math.nan) for name, each in ratios.items()}
    )


@pytest.mark.parametrize("count", [3, 40, 60])
def test_matrices_are_labelled_and_coloured(count):
    matrices = matrices_of([f"w{n}" for n in range(count)])
    figure = language_figure(matrices, "title")
    pixels = opened(figure)
    assert has(pixels, colours.UNSEEN)
    *panels, _ = figure.axes  # the key comes last
    assert [axes.get_title() for axes in panels] == ["factual", *LANGUAGE_METHODS]
    expected = ["image ×9", *(f"w{n}" for n in range(count))]
    assert texts(panels[0])[: count + 1] == expected
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == expected
    for axes, ratios in zip(panels, matrices.ratios.values(), strict=True):
        cells = axes.collections[0].get_array()
        np.testing.assert_allclose(cells, tinted(np.ones((*ratios.shape, 3)), ratios.numpy()))
        # Lines before and after the picture, across and down.
        assert len(axes.lines) == 4
    # Labels do not touch: a line of text is about 1.2 times its size.
    box = panels[0].get_window_extent()
    cell = box.height / (count + 2.5) / figure.dpi * 72
    assert panels[0].get_yticklabels()[0].get_fontsize() < cell


# -- tokens ------------------------------------------------------------------------------------


def candidate(token, label, factual, adjusted, dropped=False):
    return TokenCandidate(
        token, label, factual, {"vision": 0.25, "language": 0.5}, adjusted, dropped
    )


RED, BLUE = candidate(1, "red", 0.6, 0.0, dropped=True), candidate(2, "blue", 0.4, 1.0)
CHANGED = Step([RED, BLUE], BLUE, RED, BLUE)
KEPT = Step([BLUE], BLUE, BLUE, BLUE)


def test_a_panel_marks_what_its_token_was():
    figure = tokens_figure([CHANGED, KEPT], "title")
    pixels = opened(figure)
    for colour in (colours.FACTUAL, colours.BRANCHES["vision"], colours.BRANCHES["language"]):
        assert has(pixels, colour)
    assert has(pixels, colours.CHANGED)
    assert not has(pixels, colours.BRANCHES["joint"])
    assert titles(figure) == ["1  red → blue", "2  blue"]
    first, second = figure.axes
    labels = first.get_yticklabels()
    assert [label.get_text() for label in labels] == ["red", "blue"]
    assert [label.get_fontweight() for label in labels] == ["normal", "bold"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        "factual",
        "vision counterfactual",
        "language counterfactual",
        "adjusted",
        "dropped as implausible",
    ]
    # For each candidate its move, then the marks of vision, language, factual, adjusted.
    drawn = [(line.get_marker(), *np.ravel(line.get_xdata())) for line in first.lines]
    assert drawn == [
        ("None", 0.6, 0.0),
        ("D", 0.25),
        ("D", 0.5),
        ("o", 0.6),
        ("x", 0.0),
        ("None", 0.4, 1.0),
        ("D", 0.25),
        ("D", 0.5),
        ("o", 0.4),
        ("o", 1.0),
    ]
    assert len(second.lines) == 5


def test_without_a_change_nothing_is_marked():
    assert not has(opened(tokens_figure([KEPT] * 5, "title")), colours.CHANGED)


def test_a_change_that_chance_did_not_follow_is_framed_and_no_more():
    figure = tokens_figure([Step([RED, BLUE], RED, RED, BLUE)], "title")
    assert titles(figure) == ["1  red"]
    assert has(opened(figure), colours.CHANGED)


# -- all ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Glyph")
def test_tokens_are_no_formulas():
    title = "$what$ is $this"
    steps = [Step([each], each, each, each) for each in (candidate(1, t, 1, 1) for t in TRAPS)]
    assert opened(tokens_figure(steps, title)).std() > 5
    assert opened(language_figure(matrices_of(TRAPS), title)).std() > 5
    rows = rows_of(["mean"], None)
    assert opened(vision_figure(a_picture(None), rows, title)).std() > 5


def test_the_same_numbers_give_the_same_picture():
    assert np.array_equal(*(opened(tokens_figure([CHANGED], "title")) for _ in range(2)))


def test_a_long_title_is_cut():
    figure = tokens_figure([KEPT], "word " * 100)
    title = figure.texts[0]
    assert title.get_text().endswith("…")
    figure.canvas.draw()
    assert title.get_window_extent().x1 < figure.bbox.x1
