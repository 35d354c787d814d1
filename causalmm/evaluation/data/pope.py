"""POPE's data: its question files (JSON lines) and COCO's or GQA's pictures in folders, or parquet
files with a question and its picture a row, as in the data set lmms-lab/POPE of the hub.

Such a row has `question_id`, `question`, `answer`, `image_source` (the name of the picture, without
its suffix), `category` (the split) and `image`. Of which data set it is, it does not say.
Tests: tests/evaluation/test_data_command.py.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.pope import NAME
from causalmm.evaluation.data.prepared import (
    Place,
    Preparation,
    Prepared,
    listed,
    picture_files,
    tables_with,
)
from causalmm.evaluation.data.published import difference, published
from causalmm.evaluation.data.sources import PICTURES, Source
from causalmm.evaluation.question_files import field, identifier
from causalmm.inputs.json_lines import read_json_lines

_COLUMNS = ("question_id", "question", "answer", "image_source", "category")


class _Row(NamedTuple):
    file: str
    """That it came from."""
    set: str
    """DATASET/SPLIT."""
    id: str
    line: bytes
    """Of the published form."""
    image: str
    place: Place | None


def prepare(sources: Sequence[Source], dataset: str) -> Prepared:
    """The question files of all sources, and their pictures; `dataset` is that of parquet files.

    Raises RequestError where there are no questions, or two files have different ones of one id.
    """
    found: dict[str, dict[str, _Row]] = {}
    places = picture_files(sources)
    different: list[tuple[_Row, _Row]] = []
    for row in (*_of_json(sources), *_of_parquet(sources, dataset)):
        first = found.setdefault(row.set, {}).setdefault(row.id, row)
        if first.line != row.line:
            different.append((first, row))
        if row.place is not None:
            places.setdefault(row.image, row.place)
    if different:
        one, other = different[0]
        ids = [row.id for _, row in different if row.set == one.set]
        raise RequestError(
            f"{one.file} and {other.file} have different questions of {one.set}: {listed(ids)}"
        )
    if not found:
        raise RequestError(
            f"{listed([each.name for each in sources])} holds no questions of POPE: expected "
            "DATASET_pope_SPLIT.json or parquet files"
        )
    lines = {name: {id: row.line for id, row in rows.items()} for name, rows in found.items()}
    files = {_file(name): b"".join(each.values()) for name, each in lines.items()}
    problems, notes = _compared(lines)
    return Prepared(
        files=files,
        places=places,
        flags={"questions": list(files), "images": "."},
        counts={name: len(each) for name, each in lines.items()},
        problems=problems,
        notes=notes,
    )


def _of_json(sources: Sequence[Source]) -> Iterator[_Row]:
    for file in (each for source in sources for each in source.named(r".+_pope_.+\.jsonl?")):
        name = "/".join(NAME.fullmatch(file.name).groups())
        for number, row in read_json_lines(file):
            where = f"{file} line {number}"
            id, image = identifier(row, "question_id", where), field(row, "image", where)
            line = _line(id, image, field(row, "text", where), field(row, "label", where))
            yield _Row(str(file), name, id, line, image, None)


def _of_parquet(sources: Sequence[Source], dataset: str) -> Iterator[_Row]:
    for table in tables_with(sources, (*_COLUMNS, "image")):
        for number, row in table.rows(_COLUMNS):
            where = f"{table.path} row {number}"
            id, image = identifier(row, "question_id", where), field(row, "image_source", where)
            if not image.lower().endswith(PICTURES):
                image += ".jpg"
            text, label = field(row, "question", where), field(row, "answer", where).lower()
            name = f"{dataset}/{field(row, 'category', where)}"
            place = Place(table, number, "image")
            yield _Row(str(table.path), name, id, _line(id, image, text, label), image, place)


def _line(id: str, image: str, text: str, label: str) -> bytes:
    number = int(id) if id.isdecimal() else id
    row = {"question_id": number, "image": image, "text": text, "label": label}
    return (json.dumps(row) + "\n").encode()


def _file(name: str) -> str:
    return f"{name.replace('/', '_pope_')}.json"


def _compared(sets: Mapping[str, Mapping[str, bytes]]) -> tuple[list[str], list[str]]:
    """What differs from the published files, and what cannot be compared."""
    known: Mapping[str, Any] = published()["pope"]
    problems, notes = [], []
    for name, lines in sets.items():
        if name not in known:
            notes.append(f"{name} is none of POPE's published files: nothing to compare it with")
        elif (sentence := difference(name, lines, known[name])) is not None:
            problems.append(sentence)
        else:
            notes.append(f"{name} is the published file of {len(lines)} questions")
    there = {name.partition("/")[0] for name in sets}
    for name, each in known.items():
        if name not in sets and name.partition("/")[0] in there:
            problems.append(f"{name} is missing ({each['questions']} questions)")
    return problems, notes


PREPARATION = Preparation(
    source="lmms-lab/POPE",
    patterns=("data/*.parquet",),
    prepare=prepare,
    flags={
        "dataset": {
            "default": "coco",
            "metavar": "NAME",
            "help": "the data set of questions in parquet files, which do not say it "
            "(default: %(default)s)",
        }
    },
)
