"""Maps over a picture are those of the figure `attention-vision`."""

from pathlib import Path

import numpy as np
import pytest

from causalmm.app.attention import vision_maps
from causalmm.app.turns import Turns
from causalmm.cli.flags import parse_args
from causalmm.cli.request import check
from causalmm.cli.session import Session
from causalmm.counterfactual.methods import VISION_METHODS
from causalmm.errors import RequestError

pytest.importorskip("matplotlib")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["demo-llava", "demo-qwen2vl"])
def session(request):
    pictures = ["llava_300041_helped.png", "qwen2vl_300028_helped.png"]
    images = [flag for name in pictures for flag in ("--image", str(EXAMPLES / name))]
    args = parse_args(["--model", request.param, *images, "--prompt", "What is this?"])
    return Session.start(args, check(args))


def test_there_is_a_map_of_every_method(session):
    request = session.request
    first, second = (
        vision_maps(session, request.messages, number, request.config, Turns(1))
        for number in (1, 2)
    )
    for maps in (first, second):
        assert list(maps.pixels) == ["factual", *VISION_METHODS] == list(maps.notes)
        for pixels in maps.pixels.values():
            assert pixels.shape[2] == 3
            assert 0 <= pixels.min() <= pixels.max() <= 1
    assert not np.array_equal(first.pixels["factual"], first.pixels["uniform"])
    # An even share is the picture itself, in grey.
    grey = first.pixels["uniform"]
    np.testing.assert_allclose(grey[..., 0], grey[..., 1], atol=1e-6)
    noted = request.model == "demo-llava"
    assert all(note.startswith("class token ") == noted for note in first.notes.values())


def test_a_picture_that_is_not_there_is_refused(session):
    request = session.request
    with pytest.raises(RequestError, match="^picture 3: the question shows 2, counted from 1"):
        vision_maps(session, request.messages, 3, request.config, Turns(1))
