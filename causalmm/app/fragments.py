"""Pieces of HTML for the page, from the templates beside this file. Everything in them is escaped.

Tests: tests/app/test_fragments.py.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from causalmm.figures import colours
from causalmm.figures.tokens import Step

_ENVIRONMENT = Environment(
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def tokens(steps: Sequence[Step]) -> str:
    """The tokens of an answer; each one's probabilities show when it is pointed at or tapped."""
    return _render("tokens.html.jinja", steps=steps) if steps else ""


def attention(maps: Mapping[str, np.ndarray], notes: Mapping[str, str], edited: str | None) -> str:
    """Pictures under attention maps by name, RGB in [0, 1], a note each. `edited`: the method that
    the settings have."""
    shown = {name: _data(pixels) for name, pixels in maps.items()}
    return _render("attention.html.jinja", maps=shown, notes=notes, edited=edited)


def error(sentence: str) -> str:
    """A sentence on what is wrong; nothing for an empty one."""
    return _render("error.html.jinja", sentence=sentence) if sentence else ""


def style() -> str:
    """The style sheet of all pieces."""
    return _render("style.css.jinja")


def _render(name: str, **values: object) -> str:
    text = files("causalmm.app").joinpath(name).read_text(encoding="utf-8")
    return _ENVIRONMENT.from_string(text).render(colours=colours, **values)


def _data(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
