"""Any image file opens as its author saw it; what is no whole image is refused in one sentence."""

import contextlib
import io
import random

import numpy as np
import pytest
from PIL import Image

from causalmm.errors import RequestError
from causalmm.inputs.images import MAX_ASPECT_RATIO, is_picture, open_image

ORANGE = (255, 102, 0)  # in the web palette, which mode P takes
UPRIGHT = 274  # the EXIF tag of the orientation


def saved(image, path, **options):
    image.save(path, **options)
    return path


def corner(path):
    return open_image(path).getpixel((0, 0))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr"])
def test_colour_survives_every_mode(tmp_path, mode):
    image = Image.new("RGB", (6, 4), ORANGE).convert(mode)
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    opened = open_image(saved(image, tmp_path / f"a.{suffix}"))
    assert opened.mode == "RGB"
    assert opened.size == (6, 4)
    assert np.abs(np.subtract(opened.getpixel((0, 0)), ORANGE)).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_stays_grey(tmp_path, mode):
    path = saved(Image.new("L", (3, 3), 255).convert(mode), tmp_path / "a.png")
    assert corner(path) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette"])
def test_transparency_shows_white(tmp_path, kind):
    if kind == "palette":
        path = saved(Image.new("P", (2, 2), 0), tmp_path / "a.png", transparency=0)
    else:
        path = saved(Image.new(kind, (2, 2), (0,) * len(kind)), tmp_path / "a.png")
    assert corner(path) == (255, 255, 255)


def test_transparency_in_an_open_image_shows_white():
    palette = Image.new("P", (2, 2))
    palette.putpalette([*ORANGE, 0], "RGBA")
    premultiplied = Image.new("LA", (2, 2), (0, 0)).convert("La")
    for image in (palette, premultiplied, Image.new("RGBa", (2, 2), (0, 0, 0, 0))):
        assert open_image(image).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_shades(tmp_path, suffix):
    shades = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    opened = open_image(saved(Image.fromarray(shades), tmp_path / f"a.{suffix}"))
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_floating_point_grey_is_stretched(tmp_path):
    values = np.array([[-1.0, 0.0, np.nan, 1.0]], dtype=np.float32)
    opened = open_image(saved(Image.fromarray(values), tmp_path / "a.tif"))
    assert [opened.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 128, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, orientation):
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste(ORANGE, (0, 0, 16, 8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = stored.getexif()
    exif[UPRIGHT] = orientation
    opened = open_image(saved(stored, tmp_path / "a.png", exif=exif))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(upright))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (ORANGE, "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.abs(np.subtract(corner(path), ORANGE)).max() <= 4


def test_one_pixel(tmp_path):
    assert open_image(saved(Image.new("RGB", (1, 1)), tmp_path / "a.png")).size == (1, 1)


@pytest.mark.parametrize("size", [(10_000, 10_000), (14_000, 14_000)], ids=["warned", "refused"])
def test_a_decompression_bomb_is_refused(tmp_path, size):
    path = saved(Image.new("1", size), tmp_path / "a.png")
    with pytest.raises(RequestError, match=r"more than 89,478,485 pixels"):
        open_image(path)


def test_a_splinter_is_refused(tmp_path):
    fits = saved(Image.new("RGB", (MAX_ASPECT_RATIO, 1)), tmp_path / "fits.png")
    assert open_image(fits).size == (MAX_ASPECT_RATIO, 1)
    splinter = saved(Image.new("RGB", (1, MAX_ASPECT_RATIO + 1)), tmp_path / "splinter.png")
    with pytest.raises(RequestError, match="1 x 201 pixels"):
        open_image(splinter)


def test_no_image_is_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    for path, sentence in (
        (tmp_path / "missing.png", "no image file"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.png", "is empty"),
        (tmp_path / "text.png", "is not an image"),
        (tmp_path / ("long" * 100), "long"),
    ):
        with pytest.raises(RequestError, match=sentence):
            open_image(path)


def test_what_is_a_picture_among_other_files(tmp_path):
    """By its name in any case, damaged or not, or else by what it holds."""
    picture = encoded("JPEG")
    for name, content, expected in (
        *(("a.JPG", b"", True), ("a.jpeg", picture, True), ("b.PnG", b"damaged", True)),
        *(("c", picture, True), ("frame.0001", picture, True), ("d.txt", picture, True)),
        *(("Thumbs.db", b"\xd0\xcf\x11\xe0", False), ("e.txt", b"no picture", False)),
        *(("f.json", b"{}", False), ("g.pdf", b"%PDF-1.4", False), ("h.mp4", b"", False)),
    ):
        (tmp_path / name).write_bytes(content)
        assert is_picture(tmp_path / name) is expected, name


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_is_refused(tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(encoded(kind)[: len(encoded(kind)) // 2])
    with pytest.raises(RequestError, match="damaged or truncated"):
        open_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM", "AVIF", "ICO", "TGA"])
def test_damage_never_escapes_as_anything_else(tmp_path, kind):
    rng = random.Random(kind)
    whole, path = encoded(kind), tmp_path / "a"
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            damaged[rng.randrange(rng.choice([60, len(whole)]))] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(RequestError):
            assert open_image(path).mode == "RGB"


def encoded(kind):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    image, out = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    exif[UPRIGHT] = 6
    image.save(out, kind, **({"exif": exif} if kind in ("JPEG", "PNG") else {}))
    return out.getvalue()
