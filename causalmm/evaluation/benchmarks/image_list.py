"""A list of images read from a file: by name, or by COCO's number.

Papers report CHAIR on 500 images of COCO's val2014 that each draws for itself, so a comparison
needs their list. Tests: tests/evaluation/test_image_list.py.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from causalmm.errors import RequestError
from causalmm.inputs.json_lines import read_json, read_lines


def read_image_list(path: Path, known: Iterable[str]) -> list[str]:
    """The images that a file lists, in its order, as `known` names them.

    The file is a JSON list, or a text file with an image a line. An image is a name, folders before
    it or not, or a whole number: 139 is COCO_val2014_000000000139.jpg, and any name of `known` that
    ends in this number. Raises RequestError for another file, and for images that `known` lacks,
    has twice, or the file lists twice.
    """
    by_name: dict[str, list[str]] = {}
    names = set(known)
    for name in names:
        for key in {PurePosixPath(name).name, _number(PurePosixPath(name).stem)} - {None}:
            by_name.setdefault(key, []).append(name)
    asked = _entries(path)
    found = [[each] if each in names else by_name.get(_key(each), []) for each in asked]
    if missing := [each for each, meant in zip(asked, found, strict=True) if not meant]:
        raise RequestError(
            f"{path}: {len(missing)} of {len(asked)} images are not annotated (first: {missing[0]})"
        )
    for each, meant in zip(asked, found, strict=True):
        if len(meant) > 1:
            first, second, *_ = sorted(meant)
            raise RequestError(f"{path}: {each} may be {first} or {second}: give its whole name")
    images = [name for [name] in found]
    if twice := [name for name, count in Counter(images).items() if count > 1]:
        raise RequestError(f"{path} lists {len(twice)} images twice (first: {twice[0]})")
    return images


def image_number(name: str) -> int | None:
    """The number at the end of an image's name, COCO's id of it; None where there is none."""
    number = _number(PurePosixPath(name).stem)
    return None if number is None else int(number)


def _entries(path: Path) -> Sequence[str]:
    if path.suffix.lower() == ".json":
        given = read_json(path)
        if not isinstance(given, list):
            raise RequestError(f"{path} is not a JSON list of images")
        for each in given:
            if isinstance(each, bool) or not isinstance(each, str | int) or not str(each).strip():
                raise RequestError(f"{path} lists {each!r}: expected a name or a whole number")
    else:
        given = [line.strip() for _, line in read_lines(path)]
    if not given:
        raise RequestError(f"{path} lists no images")
    return [str(each) for each in given]


def _key(entry: str) -> str:
    return str(int(entry)) if re.fullmatch("[0-9]+", entry) else PurePosixPath(entry).name


def _number(stem: str) -> str | None:
    """Without leading zeros, so that no image's whole name is taken for it."""
    found = re.search("[0-9]+$", stem)
    return str(int(found[0])) if found else None
