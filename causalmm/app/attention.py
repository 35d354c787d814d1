"""The vision encoder's attention over one picture of a question, and each counterfactual's.

Of the last layer whose output the model reads, the mean over heads and over the patches that ask.
Tests: tests/app/test_app_attention.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from causalmm.app.turns import Turns
from causalmm.cli.session import Session, memory_guard
from causalmm.config import CausalMMConfig
from causalmm.errors import RequestError
from causalmm.figures import vision
from causalmm.figures.flags import MEAN
from causalmm.figures.pictures import pictures_of
from causalmm.figures.recording import record_vision
from causalmm.figures.vision_figure import overlaid
from causalmm.inputs.prompts import to_model


class Maps(NamedTuple):
    """By the map's name, "factual" or a method."""

    pixels: dict[str, np.ndarray]
    """RGB in [0, 1], [height, width, 3]."""
    notes: dict[str, str]
    """What the class token gets, where there is one."""


def vision_maps(
    session: Session,
    messages: Sequence[Any],
    number: int,
    config: CausalMMConfig,
    turns: Turns,
) -> Maps:
    """Of the picture of this number, counted from 1: images first, then a video's frames.

    Raises RequestError where there is none such or the model cannot take the messages, and
    where too many questions wait, FailureError where memory runs out.
    """
    with turns.turn(), memory_guard("smaller pictures, or fewer of them"):
        model = session.model
        inputs = to_model(session.inputs(messages), model)
        seen = pictures_of(model, session.processor, inputs)
        if not 1 <= number <= len(seen):
            raise RequestError(
                f"picture {number}: the question shows {len(seen)}, counted from 1, frames of a "
                "video after the pictures"
            )
        layer = model.causalmm_towers().vision_layers - 1
        calls = record_vision(model, inputs, layer, [each.size for each in seen])[number - 1]
        picture = seen[number - 1]
        [row] = vision.rows(calls, picture, [MEAN], None, config)
    return Maps(
        {name: overlaid(picture, overlay) for name, overlay in row.overlays.items()},
        {
            name: "" if overlay.summary is None else f"class token {overlay.summary:.0%}"
            for name, overlay in row.overlays.items()
        },
    )
