"""The tokens of an answer as one page of HTML that needs nothing beside it: no file, no script.

The template is page.html.jinja. Tests: tests/figures/test_figures_tokens.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from causalmm.figures import colours
from causalmm.figures.templates import png_address, template
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
    return template("causalmm.figures", "page.html.jinja").render(
        steps=steps,
        prompt=prompt,
        pictures=[png_address(picture) for picture in pictures],
        model=model,
        settings=settings,
        colours=colours,
    )
