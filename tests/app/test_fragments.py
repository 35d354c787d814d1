"""Pieces of the page say what they were given, and nothing given is markup."""

import base64
import io
import re

import numpy as np
from PIL import Image

from causalmm.app import fragments
from causalmm.figures.tokens import Step, TokenCandidate

SPARROW = TokenCandidate(1, "<sparrow>", 0.75, {"vision": 0.5}, 0.25, False)
GULL = TokenCandidate(2, "gull", 0.25, {"vision": 0.125}, 0.0, True)
FINCH = TokenCandidate(3, "finch", 0.0, {"vision": 0.375}, 0.75, False)


def test_every_token_has_its_probabilities_and_what_was_changed_is_marked():
    kept = Step([SPARROW, GULL], SPARROW, SPARROW, SPARROW)
    changed = Step([SPARROW, FINCH], FINCH, SPARROW, FINCH)
    html = fragments.tokens([kept, changed])
    first, second = re.split(r'(?=<span class="cm-token)', html)[1:]
    assert [each.count("cm-changed") for each in (first, second)] == [0, 1]
    assert [each.count("cm-first") for each in (first, second)] == [0, 1]
    assert "<del>&lt;sparrow&gt;</del> <ins>finch</ins>" in second
    assert "<sparrow>" not in html
    cells = re.findall(r"<td>([^<]*)</td>", first)
    assert cells == ["75.0%", "50.0%", "25.0%", "25.0%", "12.5%", "dropped"]
    assert "counter&shy;factual (vision)" in first
    assert "changed 1 of\n2 tokens" in html
    assert fragments.tokens([]) == ""


def test_an_error_is_a_sentence_that_is_announced():
    assert fragments.error("") == ""
    assert fragments.error("a < b.") == (
        '<p class="cm-error" role="alert"><b>Error:</b> a &lt; b.</p>'
    )


def test_maps_are_pictures_in_the_page():
    pixels = np.zeros((2, 3, 3))
    pixels[0, 0] = 1.0
    html = fragments.attention(
        {"factual": pixels, "random": pixels}, {"factual": "class token 9%", "random": ""}, "random"
    )
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(sources) == 2
    image = Image.open(io.BytesIO(base64.b64decode(sources[0])))
    assert image.size == (3, 2)
    assert [image.getpixel(place) for place in ((0, 0), (1, 0))] == [(255,) * 3, (0,) * 3]
    assert html.count("(set)") == 1
    assert html.count("class token 9%") == 1
