"""Pieces of HTML for the page, from the templates beside this file. Everything in them is escaped.

Tests: tests/app/test_fragments.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from causalmm.figures import colours
from causalmm.figures.templates import png_address, template
from causalmm.figures.tokens import Step


def tokens(steps: Sequence[Step]) -> str:
    """The tokens of an answer; each one's probabilities show when it is pointed at or tapped."""
    return _render("tokens.html.jinja", steps=steps) if steps else ""


def attention(maps: Mapping[str, np.ndarray], notes: Mapping[str, str], edited: str | None) -> str:
    """Pictures under attention maps by name, RGB in [0, 1], a note each. `edited`: the method that
    the settings have."""
    shown = {
        name: png_address((pixels * 255).round().astype(np.uint8)) for name, pixels in maps.items()
    }
    return _render("attention.html.jinja", maps=shown, notes=notes, edited=edited)


def error(sentence: str) -> str:
    """A sentence on what is wrong; nothing for an empty one."""
    return _render("error.html.jinja", sentence=sentence) if sentence else ""


def style() -> str:
    """The style sheet of all pieces."""
    return _render("style.css.jinja")


def _render(name: str, **values: object) -> str:
    return template("causalmm.app", name).render(colours=colours, **values)
