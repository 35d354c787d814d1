"""AMBER's discriminative part: yes-or-no questions about objects (arXiv 2311.07397)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.benchmark import Benchmark, Flag, Images
from causalmm.evaluation.benchmarks.yes_no import CHOICES, yes_no_tally
from causalmm.evaluation.question_files import check_unique, field, identifier
from causalmm.evaluation.records import Question
from causalmm.evaluation.tally import Pair, Tally, readings
from causalmm.evaluation.yesno import strict
from causalmm.inputs.json_lines import read_json


def read(
    queries: Annotated[Path, Flag("FILE", "JSON list of questions")],
    *,
    annotations: Annotated[Path, Flag("FILE", "JSON list of right answers")],
    images: Images = Path("."),
) -> list[Question]:
    """The questions that have a right answer. Raises RequestError for a file of another form."""
    truths = {str(row.get("id")): row.get("truth") for row in _rows(annotations)}
    questions = []
    for number, row in enumerate(_rows(queries), 1):
        where = f"{queries} question {number}"
        id, image = identifier(row, "id", where), field(row, "image", where)
        if truths.get(id) not in CHOICES:
            raise RequestError(f"{where}: {annotations} has truth {truths.get(id)!r} for it")
        questions.append(
            Question(
                id=id,
                image=image,
                path=str(images / image),
                prompt=field(row, "query", where),
                choices=CHOICES,
                label=truths[id],
            )
        )
    check_unique(questions)
    return questions


def tally(pairs: Sequence[Pair]) -> list[Tally]:
    """All questions together, read by the first yes or no."""
    return [yes_no_tally("all", "strict", readings(pairs, strict))]


def _rows(path: Path) -> list[dict]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError(f"{path} is not a JSON list of objects")
    return rows


BENCHMARK = Benchmark(
    name="amber",
    title="AMBER: yes-or-no questions about objects",
    read=read,
    files=lambda queries, annotations, **_: [queries, annotations],
    tally=tally,
)
