"""Examples are pictures that can be asked about, those of examples/ among them."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from causalmm.app.examples import draw_examples

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.slow


def test_every_example_is_one_of_the_repository(tmp_path):
    listed = json.loads((EXAMPLES / "examples.json").read_text("utf-8"))
    drawn = draw_examples(tmp_path / "examples")
    assert len({each.file for each in drawn}) == len(drawn) == 6
    for each in drawn:
        number = Path(each.file).stem.rpartition("-")[2]
        [entry] = {
            (known["image"], known["prompt"])
            for known in listed
            if f"_{number}_" in known["image"] and known["prompt"] == each.question
        }
        with Image.open(each.file) as picture, Image.open(EXAMPLES / entry[0]) as kept:
            assert (
                ImageChops.difference(picture.convert("RGB"), kept.convert("RGB")).getbbox() is None
            )
