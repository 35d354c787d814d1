"""Uploaded files are bounded in size and pixels, and sentences do not tell where they are."""

import pytest
from PIL import Image

from causalmm.app.limits import Limits
from causalmm.app.uploads import open_picture, stored
from causalmm.errors import RequestError


def test_a_picture_is_opened_in_rgb_and_called_by_its_name_alone(tmp_path):
    path = tmp_path / "cup.png"
    Image.new("L", (30, 20), 7).save(path)
    assert open_picture(str(path), Limits(pixels=600)).getpixel((0, 0)) == (7, 7, 7)
    size = path.stat().st_size
    for limits, sentence in (
        (Limits(pixels=599), "cup.png is 30 x 20 pixels: expected at most 599 in all"),
        (
            Limits(file_bytes=size - 1),
            f"cup.png has {size} bytes: expected at most {size - 1}",
        ),
    ):
        with pytest.raises(RequestError) as refused:
            open_picture(str(path), limits)
        assert str(refused.value) == sentence
    path.write_bytes(b"no picture")
    with pytest.raises(RequestError) as refused:
        open_picture(str(path), Limits())
    assert str(refused.value) == "cup.png is not an image that Pillow can read"
    path.unlink()
    with pytest.raises(RequestError) as refused:
        open_picture(str(path), Limits(kept_seconds=120))
    assert str(refused.value) == (
        "cup.png is not here any more (files are deleted after 2 minutes): upload it again"
    )


def test_what_is_stored_counts_every_file(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"45")
    assert stored(tmp_path) == 5
