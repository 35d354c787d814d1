"""A list of images names those that annotations know, or says which it does not."""

import json

import pytest

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.image_list import image_number, read_image_list

KNOWN = [f"COCO_val2014_{number:012d}.jpg" for number in (42, 139, 285, 1390)]


def write(folder, name, text):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.json", "[139, 42]"),
        ("list.json", '["139", "COCO_val2014_000000000042.jpg"]'),
        ("list.txt", "139\n\n42\r\n"),
        ("list.txt", "000000000139\nval2014/COCO_val2014_000000000042.jpg\n"),
        ("list", "COCO_val2014_000000000139.jpg\n 42 \n"),
    ],
)
def test_images_come_in_the_order_of_the_list(tmp_path, name, text):
    assert read_image_list(write(tmp_path, name, text), KNOWN) == [KNOWN[1], KNOWN[0]]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("list.txt", "139\n7\n8\n", r"2 of 3 images are not annotated \(first: 7\)"),
        ("list.txt", "13\n", r"1 of 1 images are not annotated \(first: 13\)"),
        ("list.txt", "42.jpg\n", "1 of 1 images are not annotated"),
        ("list.txt", "139\nCOCO_val2014_000000000139.jpg\n", "lists 1 images twice"),
        ("list.txt", "\n", "lists no images"),
        ("list.json", "[]", "lists no images"),
        ("list.json", '{"139": 1}', "is not a JSON list of images"),
        ("list.json", "[139, 1.5]", "lists 1.5: expected a name or a whole number"),
        ("list.json", "[true]", "lists True: expected a name or a whole number"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, name, text, sentence):
    with pytest.raises(RequestError, match=sentence):
        read_image_list(write(tmp_path, name, text), KNOWN)


def test_a_number_of_two_images_names_neither(tmp_path):
    known = ["a/7.jpg", "b/7.jpg"]
    with pytest.raises(RequestError, match="7 may be a/7.jpg or b/7.jpg: give its whole name"):
        read_image_list(write(tmp_path, "list.txt", "7\n"), known)
    assert read_image_list(write(tmp_path, "list.txt", "b/7.jpg\n"), known) == ["b/7.jpg"]


def test_the_number_of_an_image():
    assert image_number(KNOWN[1]) == image_number("a/000139.png") == 139
    assert image_number("dog.jpg") is None
    assert json.dumps(image_number("12.jpg")) == "12"
