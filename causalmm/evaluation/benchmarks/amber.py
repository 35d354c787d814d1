"""AMBER: captions, and yes-or-no questions about what is there, how it is and what touches what.

arXiv 2311.07397. The folder is `data/` of its repository (junyangwang0410/AMBER): annotations.json,
relation.json, safe_words.txt and query/. Captions are measured by amber_words.py. Of a yes-or-no
question "no" is the positive class, as in its inference.py: precision is of the answers that were
no, recall of the questions whose right answer is no. There F1 is made of rounded precision and
recall, and an answer counts only where it is exactly Yes or No; here it is the first yes or no.
Tests: tests/evaluation/test_amber.py.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.amber_words import METRICS, WordLists, read_word_lists
from causalmm.evaluation.benchmarks.benchmark import Benchmark, Export, Flag, Images
from causalmm.evaluation.benchmarks.yes_no import CHOICES, strict, yes_no_tally
from causalmm.evaluation.question_files import check_unique, field, identifier
from causalmm.evaluation.records import Question
from causalmm.evaluation.statistics import ImageCounts, Table
from causalmm.evaluation.tally import Pair, Tally, has_failed, readings
from causalmm.inputs.json_lines import read_json

_QUERIES = {
    "all": "query_all.json",
    "generative": "query_generative.json",
    "discriminative": "query_discriminative.json",
    "existence": "query_discriminative-existence.json",
    "attribute": "query_discriminative-attribute.json",
    "relation": "query_discriminative-relation.json",
}
GENERATIVE = "generative"
KINDS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    # Those whose right answer is yes, and those whose is no.
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""What yes-or-no questions ask about, by the type that annotations.json has."""
SETS = {
    "discriminative": ("existence", "state", "number", "action", "relation"),
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "state": ("state",),
    "number": ("number",),
    "action": ("action",),
    "relation": ("relation",),
}
"""Rows of a report, by the kinds in them."""


def read(
    data: Annotated[
        Path, Flag("FOLDER", "AMBER's data folder: annotations.json, word lists and query/")
    ],
    *,
    part: Annotated[str, Flag(None, "which of its questions", tuple(_QUERIES))] = "all",
    images: Images = Path("."),
    suffix: Annotated[str, Flag("TEXT", "put after every yes-or-no question")] = "",
) -> list[Question]:
    """The questions of a part, in the order of its file.

    Raises RequestError for a file that cannot be read or is of another form.
    """
    annotations, queries = _annotations_file(data), _query_file(data, part)
    known = {identifier(row, "id", f"{annotations} row"): row for row in _rows(annotations)}
    lists: WordLists | None = None
    questions = []
    for number, row in enumerate(_rows(queries), 1):
        where = f"{queries} question {number}"
        id, image = identifier(row, "id", where), field(row, "image", where)
        asked, about = field(row, "query", where), known.get(id)
        if about is None:
            raise RequestError(f"{where}: {annotations} has no id {id}")
        common = {"id": id, "image": image, "path": str(images / image)}
        where = f"{annotations} id {id}"
        kind = field(about, "type", where)
        if kind == GENERATIVE:
            lists = lists or read_word_lists(*_word_files(data))
            facts = {name: _objects(about, name, where, lists) for name in ("truth", "hallu")}
            facts |= {"kind": GENERATIVE, "lists": lists}
            questions.append(Question(**common, prompt=asked, facts=facts))
            continue
        if kind not in KINDS:
            expected = ", ".join((GENERATIVE, *KINDS))
            raise RequestError(f"{where} has type {kind!r}: expected one of {expected}")
        if (label := about.get("truth")) not in CHOICES:
            raise RequestError(f"{where} has truth {label!r}: expected yes or no")
        facts = {"kind": KINDS[kind], "text": asked}
        questions.append(
            Question(**common, prompt=asked + suffix, choices=CHOICES, label=label, facts=facts)
        )
    check_unique(questions)
    return questions


def tally(pairs: Sequence[Pair]) -> list[Tally]:
    """The captions, all yes-or-no questions, and these by what they ask about."""
    captions = [pair for pair in pairs if pair.question.facts["kind"] == GENERATIVE]
    tallies = [_captions(captions)] if captions else []
    asked = [pair for pair in pairs if pair.question.facts["kind"] != GENERATIVE]
    there = {pair.question.facts["kind"] for pair in asked}
    # Sets that hold the same of these questions are one, under the narrowest name.
    names = {frozenset(there.intersection(kinds)): name for name, kinds in SETS.items()}
    for kinds, name in names.items():
        if part := [pair for pair in asked if pair.question.facts["kind"] in kinds]:
            tallies.append(yes_no_tally(name, "strict", readings(part, strict), positive="no"))
    return tallies


def _captions(pairs: Sequence[Pair]) -> Tally:
    """A caption is right that invents nothing; one that failed is left out."""
    rows, right = [], {}
    for question, answer in pairs:
        if has_failed(answer):
            rows.append(ImageCounts(question.image, {"failed": 1}))
            continue
        facts = question.facts
        counts = facts["lists"].counts(answer.answer, facts["truth"], facts["hallu"])
        rows.append(ImageCounts(question.image, counts))
        right[question.id] = not counts["invented"]
    failed = len(rows) - len(right)
    note = f"failed captions are left out: {failed} of {len(rows)}"
    return Tally(
        name=GENERATIVE,
        rule="word lists",
        table=Table.of(rows, _COLUMNS),
        metrics=METRICS,
        counted=("captions", "mentions", "invented", "failed"),
        right=right,
        notes=(note,) * bool(failed),
    )


_COLUMNS = (
    *("captions", "mentions", "invented", "inventing captions", "covered", "there"),
    *("likely invented", "likely", "words", "failed"),
)


def _objects(row: Mapping[str, Any], name: str, where: str, lists: WordLists) -> tuple[str, ...]:
    given = row.get(name)
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise RequestError(f"{where} has {name} {given!r}: expected a list of objects")
    if unknown := [each for each in given if each not in lists.stands_for]:
        raise RequestError(f"{where} has {unknown[0]!r} in {name}, which relation.json lacks")
    return tuple(given)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise RequestError(f"{path} is not a JSON list of objects")
    return rows


def _annotations_file(data: Path) -> Path:
    return data / "annotations.json"


def _query_file(data: Path, part: str) -> Path:
    return data / "query" / _QUERIES[part]


def _word_files(data: Path) -> tuple[Path, Path]:
    return data / "relation.json", data / "safe_words.txt"


def _files(data: Path, part: str, **_: Any) -> list[Path]:
    words = _word_files(data) if part in ("all", GENERATIVE) else ()
    return [_query_file(data, part), _annotations_file(data), *words]


def _export(pairs: Sequence[Pair], model: str) -> str:
    """A JSON list of id and response, as inference.py reads it: of a yes-or-no question Yes or No
    as read here, which it wants exactly, and else the answer, which it counts as wrong."""
    rows = []
    for question, answer in pairs:
        said = strict(answer.answer) if question.choices else None
        number = int(question.id) if question.id.isdecimal() else question.id
        rows.append({"id": number, "response": said.capitalize() if said else answer.answer})
    return json.dumps(rows, indent=2)


BENCHMARK = Benchmark(
    name="amber",
    title="AMBER: captions, and yes-or-no questions about objects, attributes and relations",
    read=read,
    files=_files,
    tally=tally,
    max_new_tokens=512,
    export=Export(
        form="a JSON list of id and response, as AMBER's inference.py reads it", write=_export
    ),
)
