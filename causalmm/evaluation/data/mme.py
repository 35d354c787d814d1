"""MME's data: a folder of its tasks in any form that `evaluate` reads, or parquet files with a
question and its picture a row, as in the data set lmms-lab/MME of the hub.

Such a row has `question_id` (TASK/PICTURE), `question`, `answer`, `category` (the task) and
`image`. Written is a folder a task with TASK.txt, as MME's own evaluation has it, and picture names
with their suffixes, so that questions have the same ids whatever they came from.
Tests: tests/evaluation/test_data_command.py.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks import mme
from causalmm.evaluation.data.prepared import Place, Preparation, Prepared, listed, tables_with
from causalmm.evaluation.data.published import published
from causalmm.evaluation.data.sources import Source
from causalmm.evaluation.question_files import field

_COLUMNS = ("question_id", "question", "answer", "category")


class _Row(NamedTuple):
    file: str
    task: str
    image: str
    question: str
    answer: str
    place: Place


def prepare(sources: Sequence[Source]) -> Prepared:
    """The tasks of all sources, and their pictures.

    Raises RequestError where there are none, or two sources answer a question differently.
    """
    tasks: dict[str, dict[str, dict[str, _Row]]] = {}
    for row in (*_of_folders(sources), *_of_parquet(sources)):
        asked = tasks.setdefault(row.task, {}).setdefault(row.image, {})
        first = asked.setdefault(row.question, row)
        if first.answer != row.answer:
            raise RequestError(
                f"{first.file} and {row.file} answer differently: {row.task}/{row.image}, "
                f"{row.question!r}"
            )
    if not tasks:
        raise RequestError(
            f"{listed([each.name for each in sources])} holds no MME task: expected folders such "
            f"as {mme.TASKS[0]} or parquet files"
        )
    files, places, problems = {}, {}, []
    for task in sorted(tasks, key=mme.TASKS.index):
        rows = [row for asked in tasks[task].values() for row in asked.values()]
        files[f"{task}/{task}.txt"] = "".join(
            f"{row.image}\t{row.question}\t{row.answer}\n" for row in rows
        ).encode()
        places |= {f"{task}/{row.image}": row.place for row in reversed(rows)}
        if other := [image for image, asked in tasks[task].items() if len(asked) != 2]:
            problems.append(f"{task} has not two questions about {listed(other)}")
    counts = {task: sum(map(len, asked.values())) for task, asked in tasks.items()}
    return Prepared(
        files=files,
        places=places,
        flags={"data": "."},
        counts=counts,
        problems=[*problems, *_compared(counts)],
    )


def _of_folders(sources: Sequence[Source]) -> Iterator[_Row]:
    """Questions in text files, of folders at any depth that hold tasks."""
    names = {f"{task}{end}" for task in mme.TASKS for end in (".txt", "")}
    for source in sources:
        places = {
            place
            for file in source.named(r".+\.txt")
            for place in file.parents
            if place.is_relative_to(source.folder)
        }
        for root in sorted(places):
            inside = {each.name for each in root.iterdir()} & names
            if not inside or root.name in mme.TASKS:
                continue
            for each in mme.read(root):
                task, path = each.facts["task"], Path(each.path)
                answer = each.label.capitalize()
                yield _Row(str(root), task, path.name, each.prompt, answer, Place(path))


def _of_parquet(sources: Sequence[Source]) -> Iterator[_Row]:
    for table in tables_with(sources, (*_COLUMNS, "image")):
        for number, row in table.rows(_COLUMNS):
            where = f"{table.path} row {number}"
            task, question = field(row, "category", where), field(row, "question", where).strip()
            image = field(row, "question_id", where).removeprefix(f"{task}/")
            if task not in mme.TASKS:
                raise RequestError(
                    f"{where} has category {task!r}: expected one of {', '.join(mme.TASKS)}"
                )
            answer = field(row, "answer", where).strip().capitalize()
            if any(mark in text for mark in "\t\r\n" for text in (image, question, answer)):
                raise RequestError(f"{where} has a tab or a line break in a field")
            place = Place(table, number, "image")
            yield _Row(str(table.path), task, image, question, answer, place)


def _compared(counts: dict[str, int]) -> list[str]:
    return [
        f"{task} is missing ({wanted} questions)"
        if task not in counts
        else f"{task} has {counts[task]} questions, the published one {wanted}"
        for task, wanted in published()["mme"].items()
        if counts.get(task) != wanted
    ]


PREPARATION = Preparation(source="lmms-lab/MME", patterns=("data/*.parquet",), prepare=prepare)
