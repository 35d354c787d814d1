"""CHAIR's data: what is in each picture, by COCO's labels and by what its human captions name.

Of the sources are read: `synonyms.txt`, as CHAIR publishes it; COCO's `instances_*.json` (labels)
and `captions_*.json`; pictures in folders, or in parquet files with a picture a row, as in the data
set lmms-lab/COCO-Caption of the hub, where `question_id` is the name of the picture and `answer`
the list of its captions. Or, in the place of all texts, `annotations.json` and `vocabulary.json` in
the form that `evaluate` reads. Tests: tests/evaluation/test_data_command.py.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.vocabulary import Vocabulary, read_vocabulary
from causalmm.evaluation.data.prepared import (
    Place,
    Preparation,
    Prepared,
    picture_files,
    tables_with,
)
from causalmm.evaluation.data.published import published
from causalmm.evaluation.data.sources import Source
from causalmm.evaluation.question_files import field
from causalmm.inputs.json_lines import read_bytes, read_json

_OURS = ("annotations.json", "vocabulary.json")


def prepare(sources: Sequence[Source]) -> Prepared:
    """The objects of each picture, the vocabulary, and the pictures.

    Raises RequestError where there is no vocabulary or no labels, or an object is in no vocabulary.
    """
    tables = tables_with(sources, ("question_id", "image"))
    places = picture_files(sources)
    captions: dict[str, list[str]] = {}
    for table in tables:
        texts = ["answer"] if "answer" in table.columns else []
        for number, row in table.rows(["question_id", *texts]):
            name = field(row, "question_id", f"{table.path} row {number}")
            places.setdefault(name, Place(table, number, "image"))
            if isinstance(answer := row.get("answer"), list):
                captions.setdefault(name, []).extend(map(str, answer))
    if all(_find(sources, name) for name in _OURS):
        files = {name: read_bytes(_only(sources, name)) for name in _OURS}
        given = read_json(_only(sources, _OURS[0]))
        counts = {"captions": len(given) if isinstance(given, dict) else 0}
        return Prepared(files=files, places=places, flags=_flags(*_OURS), counts=counts)
    words = _only(sources, "synonyms.txt")
    vocabulary = read_vocabulary(words)
    objects = _labels(_some(sources, r"instances_.+\.json"), vocabulary)
    for file in _find(sources, r"captions_.+\.json"):
        for name, text in _captions(file):
            captions.setdefault(name, []).append(text)
    for name, texts in captions.items():
        if name in objects:
            objects[name] |= {thing for text in texts for thing in vocabulary.mentions(text)}
    annotations = {name: sorted(objects[name]) for name in sorted(objects)}
    return Prepared(
        files={
            "annotations.json": (json.dumps(annotations) + "\n").encode(),
            words.name: read_bytes(words),
        },
        places=places,
        flags=_flags("annotations.json", words.name),
        counts={"captions": len(annotations)},
        problems=list(_problems(objects, captions, vocabulary)),
    )


def _flags(annotations: str, vocabulary: str) -> dict[str, Any]:
    return {"annotations": annotations, "vocabulary": vocabulary, "images": "."}


def _find(sources: Sequence[Source], pattern: str) -> list[Path]:
    return [each for source in sources for each in source.named(pattern)]


def _some(sources: Sequence[Source], pattern: str) -> list[Path]:
    if found := _find(sources, pattern):
        return found
    names = " or ".join(each.name for each in sources)
    shown = pattern.replace(".+", "*").replace("\\", "")
    raise RequestError(f"there is no {shown} in {names}: give its folder as a further --source")


def _only(sources: Sequence[Source], name: str) -> Path:
    found = _some(sources, name.replace(".", r"\."))
    if len({read_bytes(each) for each in found}) > 1:
        raise RequestError(f"{found[0]} and {found[1]} differ: give one of them")
    return found[0]


def _labels(files: Sequence[Path], vocabulary: Vocabulary) -> dict[str, set[str]]:
    """By the name of a picture, the objects that COCO's labels say are there."""
    objects: dict[str, set[str]] = {}
    for file in files:
        given = _coco(file, "categories", "name")
        things = {}
        for each in given["categories"]:
            things[each["id"]] = vocabulary.object(each["name"])
            if things[each["id"]] is None:
                raise RequestError(f"{file} has the label {each['name']!r}, which no synonym has")
        images = {each["id"]: each["file_name"] for each in given["images"]}
        for name in images.values():
            objects.setdefault(name, set())
        for each in given["annotations"]:
            thing = _named(file, things, each, "category_id")
            objects[_named(file, images, each, "image_id")].add(thing)
    return objects


def _captions(file: Path) -> Iterator[tuple[str, str]]:
    given = _coco(file, "annotations", "caption")
    images = {each["id"]: each["file_name"] for each in given["images"]}
    for each in given["annotations"]:
        yield _named(file, images, each, "image_id"), each["caption"]


def _named(file: Path, names: Mapping[Any, str], row: Mapping[str, Any], key: str) -> str:
    """What the id in a row stands for. Raises RequestError for one that is not there."""
    if (name := names.get(row.get(key))) is None:
        raise RequestError(
            f"{file} has an annotation of {key} {row.get(key)!r}, which is not there"
        )
    return name


def _coco(file: Path, part: str, name: str) -> dict[str, Any]:
    """A file of COCO's annotations. Raises RequestError where it is of another form."""
    given = read_json(file)
    wanted = {"images": ("id", "file_name"), "annotations": ("image_id",)}
    wanted[part] = (*wanted.get(part, ("id",)), name)
    for key, names in wanted.items():
        rows = given.get(key) if isinstance(given, dict) else None
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and all(each in row for each in names) for row in rows
        ):
            raise RequestError(f"{file} has no {key} with {' and '.join(names)}, as COCO's have")
    return given


def _problems(
    objects: Mapping[str, set[str]], captions: Mapping[str, Sequence[str]], vocabulary: Vocabulary
) -> Iterator[str]:
    if bare := [name for name in objects if not captions.get(name)]:
        yield (
            f"{len(bare)} of {len(objects)} pictures have no human captions (first: {bare[0]}): "
            "objects that these alone name will count as invented"
        )
    known = published()["coco val2014"]
    if len(objects) != known["images"]:
        yield f"the labels are of {len(objects)} pictures, those of val2014 of {known['images']}"
    if len(vocabulary.objects) != known["objects"]:
        yield (
            f"the vocabulary has {len(vocabulary.objects)} objects, the published one "
            f"{known['objects']}"
        )


PREPARATION = Preparation(
    source="lmms-lab/COCO-Caption", patterns=("data/val-*.parquet",), prepare=prepare
)
