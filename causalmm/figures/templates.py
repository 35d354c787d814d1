"""HTML from the templates beside the code that fills them; everything put into it is escaped.

Tests: tests/figures/test_figures_tokens.py and tests/app/test_fragments.py.
"""

import base64
import io
from functools import cache
from importlib.resources import files

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

_ENVIRONMENT = Environment(
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


@cache
def template(package: str, name: str) -> Template:
    """A file of a package, compiled: a page that grows is filled several times a second."""
    return _ENVIRONMENT.from_string(files(package).joinpath(name).read_text(encoding="utf-8"))


def png_address(pixels: np.ndarray) -> str:
    """Pixels uint8 [height, width, 3] as the data: address of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
