"""HallusionBench: yes-or-no questions about illusions, charts, maps and more (arXiv 2310.14566).

A set is a group of figures and questions about them: the original, number 0, and edited ones. In
category VD ("visual dependent") figure 0 is a picture. In VS ("visual supplement") it is none: the
question is asked without a picture, and an answer that is neither yes nor no is right there, too.
Three accuracies: of questions (aAcc), of question pairs, all figures of a set that one question is
asked about (qAcc), and of figures, all questions about one (fAcc), those that show something.
`easy` and `hard` are qAcc over figure 0 alone, and over the edited ones alone. An answer is read by
its first yes or no: the published evaluation asks GPT-4 whether it agrees with the right one.
Tests: tests/evaluation/test_hallusion.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.benchmark import Benchmark, Export, Flag
from causalmm.evaluation.benchmarks.yes_no import CHOICES, strict
from causalmm.evaluation.question_files import check_unique, field, identifier
from causalmm.evaluation.records import Question
from causalmm.evaluation.statistics import ImageCounts, Metric, Table, ratio
from causalmm.evaluation.tally import Pair, Reading, Tally, outcome, readings
from causalmm.inputs.json_lines import read_json

CATEGORIES = ("VD", "VS")
PARTS = ("all", "image")
METRICS: dict[str, Metric] = {
    "aAcc": ratio("right", "questions"),
    "qAcc": ratio("pairs right", "pairs"),
    "fAcc": ratio("figures right", "figures"),
    "easy": ratio("easy pairs right", "easy pairs"),
    "hard": ratio("hard pairs right", "hard pairs"),
}
_LABELS = {"0": "no", "1": "yes"}


def read(
    data: Annotated[Path, Flag("FILE", "HallusionBench.json")],
    *,
    images: Annotated[
        Path, Flag("FOLDER", "where the folder hallusion_bench lies, or that folder itself")
    ] = Path("."),
    part: Annotated[
        str, Flag(None, "all questions, or those that show an image alone", PARTS)
    ] = "all",
    suffix: Annotated[str, Flag("TEXT", "put after every question")] = "",
) -> list[Question]:
    """The questions of a part. Raises RequestError for a file of another form."""
    rows = read_json(data)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError(f"{data} is not a JSON list of objects")
    asked = [_question(row, f"{data} row {at}", images, suffix) for at, row in enumerate(rows, 1)]
    questions = [each for each in asked if part == "all" or each.path]
    if not questions:
        raise RequestError(f"{data} holds no questions of the part {part}")
    if left_out := len(asked) - len(questions):
        questions = [
            replace(each, facts={**each.facts, "left out": left_out}) for each in questions
        ]
    check_unique(questions)
    return questions


def _question(row: Mapping[str, Any], where: str, images: Path, suffix: str) -> Question:
    category, kind = field(row, "category", where), field(row, "subcategory", where)
    if category not in CATEGORIES:
        raise RequestError(f"{where} has category {category!r}: expected VD or VS")
    set_id, figure, number = (
        identifier(row, name, where) for name in ("set_id", "figure_id", "question_id")
    )
    answer = identifier(row, "gt_answer", where)
    if answer not in _LABELS:
        raise RequestError(f"{where} has gt_answer {answer!r}: expected 0 or 1")
    shown = identifier(row, "visual_input", where) != "0"
    group = f"{category}/{kind}/{set_id}"
    text = field(row, "question", where)
    return Question(
        id=f"{group}_{figure}/{number}",
        image=f"{group}_{figure}.png" if shown else f"{group}_{figure} (no image)",
        path=str(_path(images, field(row, "filename", where))) if shown else "",
        prompt=text + suffix,
        choices=CHOICES,
        label=_LABELS[answer],
        facts={
            "category": category,
            "set": group,
            "figure": figure,
            "pair": number,
            "text": text,
            "row": row,
        },
    )


def _path(images: Path, filename: str) -> Path:
    """Where a picture lies; where it would, if it does not lie anywhere."""
    parts = [part for part in PurePosixPath(filename).parts if part not in (".", "/")]
    paths = [images.joinpath(*parts), images.joinpath(*parts[1:])]
    return next((path for path in paths if path.is_file()), paths[0])


def tally(pairs: Sequence[Pair]) -> list[Tally]:
    """All questions, then those of each category."""
    read = readings(pairs, strict)
    there = {each.question.facts["category"] for each in read}
    parts = {"all": read} | {
        category: [each for each in read if each.question.facts["category"] == category]
        for category in CATEGORIES
        if category in there
    }
    left_out = read[0].question.facts.get("left out", 0)
    note = f"{left_out} questions that show no image are left out: qAcc is of the others"
    return [
        _tally(name, part, (note,) * (left_out > 0 and name == "all"))
        for name, part in parts.items()
    ]


def _tally(name: str, read: Sequence[Reading], notes: tuple[str, ...]) -> Tally:
    groups: dict[str, list[Reading]] = {}
    for each in read:
        groups.setdefault(each.question.facts["set"], []).append(each)
    return Tally(
        name=name,
        rule="strict",
        # A question pair is about several figures, so what is resampled is a set.
        table=Table.of([ImageCounts(group, _counts(part)) for group, part in groups.items()]),
        metrics=METRICS,
        counted=("questions", "pairs", "figures", "unreadable", "failed"),
        **outcome(read) | {"right": {each.question.id: _right(each) for each in read}},
        notes=notes,
    )


def _counts(group: Sequence[Reading]) -> dict[str, float]:
    """What one set adds."""
    counts: dict[str, float] = {
        "questions": len(group),
        "right": sum(map(_right, group)),
        "unreadable": sum(each.unreadable for each in group),
        "failed": sum(each.failed for each in group),
    }
    shown = [each for each in group if not _shows_nothing(each)]
    easy = [each for each in group if each.question.facts["figure"] == "0"]
    hard = [each for each in group if each.question.facts["figure"] != "0"]
    for name, fact, part in (
        ("pairs", "pair", group),
        ("figures", "figure", shown),
        ("easy pairs", "pair", easy),
        ("hard pairs", "pair", hard),
    ):
        whole: dict[str, bool] = {}
        for each in part:
            key = each.question.facts[fact]
            whole[key] = whole.get(key, True) and _right(each)
        counts |= {name: len(whole), f"{name} right": sum(whole.values())}
    return counts


def _right(each: Reading) -> bool:
    """Without a picture it is right not to know."""
    return each.right or (each.unreadable and _shows_nothing(each))


def _shows_nothing(each: Reading) -> bool:
    return _category(each) == "VS" and each.question.facts["figure"] == "0"


def _category(each: Reading) -> str:
    return each.question.facts["category"]


def _export(pairs: Sequence[Pair], model: str) -> str:
    """Rows of HallusionBench.json with the answers, as evaluation.py reads them."""
    rows = [
        {**question.facts["row"], "model_prediction": answer.answer} for question, answer in pairs
    ]
    return json.dumps(rows, indent=2)


BENCHMARK = Benchmark(
    name="hallusion",
    title="HallusionBench: yes-or-no questions about original and edited figures",
    read=read,
    files=lambda data, **_: [data],
    tally=tally,
    export=Export(
        form="HallusionBench.json with the answers in it, as its evaluation.py reads it",
        write=_export,
    ),
)
