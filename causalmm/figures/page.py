"""The tokens of an answer as one page of HTML that needs nothing beside it: no file, no script.

The template is page.html.jinja. Tests: tests/figures/test_figures_tokens.py.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from causalmm.figures import colours
from causalmm.figures.tokens import Step


def page(
    steps: Sequence[Step],
    *,
    prompt: str,
    pictures: Sequence[np.ndarray],
    model: str,
    settings: Mapping[str, Any],
) -> str:
    """The page. Pictures are uint8 [height, width, 3]; settings are listed as they are."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = files("causalmm.figures").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        steps=steps,
        prompt=prompt,
        pictures=[_data(picture) for picture in pictures],
        model=model,
        settings=settings,
        colours=colours,
    )


def _data(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
