"""MME: two questions about each image, one answered yes and one no (arXiv 2306.13394).

A folder holds the tasks, each in one of two forms:

    TASK.txt, or TASK/TASK.txt      lines image<TAB>question<TAB>yes|no, an image's two in a row;
                                    images in TASK/ or TASK/images/
    TASK/questions_answers_YN/      a text file an image, with lines question<TAB>yes|no;
                                    images of the same name in TASK/images/

In the second form the text files and the images may also lie side by side in TASK/. A fourth field,
an answer in a file of results, is not read. Tests: tests/evaluation/test_mme.py.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.benchmark import Benchmark
from causalmm.evaluation.question_files import check_unique
from causalmm.evaluation.records import Question
from causalmm.evaluation.statistics import ImageCounts, Metric, Table, Term
from causalmm.evaluation.tally import Pair, Reading, Tally, outcome, readings
from causalmm.evaluation.yesno import mme as read_answer
from causalmm.inputs.json_lines import read_lines

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark"),
    *("artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = (*PERCEPTION, *COGNITION)
CHOICES = ("yes", "no")
_PER_IMAGE = "questions_answers_YN"
_SUFFIXES = (".jpg", ".png", ".jpeg")


def read(data: Path, *, tasks: Sequence[str] | None = None) -> list[Question]:
    """The questions of a folder, task by task in MME's order.

    Raises RequestError for a folder without tasks or a file that is not as described above.
    """
    questions = []
    for task in _tasks(data, tasks):
        lines = [line for file in _files(data, task) for line in _read_file(data, task, file)]
        questions += _questions(task, lines)
    check_unique(questions)
    return questions


class _Line(NamedTuple):
    where: str
    image: str
    """As the file names it: without a suffix where that is a text file's name."""
    path: Path
    question: str
    label: str


def _tasks(root: Path, wanted: Sequence[str] | None) -> list[str]:
    if not root.is_dir():
        raise RequestError(f"there is no folder {root}")
    there = [task for task in TASKS if _files(root, task)]
    if missing := [task for task in wanted or () if task not in there]:
        raise RequestError(f"{root} has no questions of the task {missing[0]}")
    if not there:
        raise RequestError(f"{root} holds no MME task: no {TASKS[0]}.txt, for example")
    return [task for task in there if wanted is None or task in wanted]


def _files(root: Path, task: str) -> list[Path]:
    for file in (root / f"{task}.txt", root / task / f"{task}.txt"):
        if file.is_file():
            return [file]
    for folder in (root / task / _PER_IMAGE, root / task):
        if files := sorted(folder.glob("*.txt")):
            return files
    return []


def _read_file(root: Path, task: str, file: Path) -> Iterator[_Line]:
    """Lines in the form of a file a task, whichever form they have."""
    an_image_each = file.stem != task
    for number, text in read_lines(file):
        where = f"{file} line {number}"
        fields = [each.strip() for each in text.split("\t")]
        if an_image_each:
            fields.insert(0, file.stem)
        if len(fields) not in (3, 4):
            names = "question and answer" if an_image_each else "image, question and answer"
            raise RequestError(f"{where}: expected {names} with tabs between them")
        if not fields[0] or not fields[1]:
            raise RequestError(f"{where} has no {'question' if fields[0] else 'image'}")
        if fields[2].lower() not in CHOICES:
            raise RequestError(f"{where} has the answer {fields[2]!r}: expected yes or no")
        image = _with_suffix(root, task, file.stem) if an_image_each else fields[0]
        path = _path(root, task, image)
        yield _Line(where, fields[0], path, fields[1], fields[2].lower())


def _questions(task: str, lines: Sequence[_Line]) -> Iterator[Question]:
    asked: dict[str, list[str]] = {}
    for first, second in zip(lines[::2], lines[1::2], strict=False):
        if first.image != second.image:
            raise _unpaired(first)
        earlier = asked.setdefault(first.image, [])
        for line in (first, second):
            if line.question in earlier:
                raise RequestError(f"{line.where} asks the same about {line.image} again")
            earlier.append(line.question)
            yield Question(
                id=f"{task}/{line.image}/{len(earlier)}",
                image=f"{task}/{line.image}",
                path=str(line.path),
                prompt=line.question,
                choices=CHOICES,
                label=line.label,
                facts={"task": task, "pair": f"{task}/{line.image}/{(len(earlier) - 1) // 2}"},
            )
    if len(lines) % 2:
        raise _unpaired(lines[-1])


def _unpaired(line: _Line) -> RequestError:
    return RequestError(f"{line.where}: {line.image} has one question, expected two in a row")


def _path(root: Path, task: str, image: str) -> Path:
    beside, below = root / task / image, root / task / "images" / image
    return below if below.is_file() and not beside.is_file() else beside


def _with_suffix(root: Path, task: str, stem: str) -> str:
    for suffix in _SUFFIXES:
        if _path(root, task, stem + suffix).is_file():
            return stem + suffix
    return stem + _SUFFIXES[0]


def tally(pairs: Sequence[Pair]) -> list[Tally]:
    """Each task, then perception, cognition and their total."""
    by_task: dict[str, list[Reading]] = {}
    for each in readings(pairs, read_answer):
        by_task.setdefault(each.question.facts["task"], []).append(each)
    tallies = [_tally(task, by_task, [task], headline=False) for task in by_task]
    for name, wanted in (("perception", PERCEPTION), ("cognition", COGNITION), ("total", TASKS)):
        if there := [task for task in wanted if task in by_task]:
            missing = len(wanted) - len(there)
            note = f"{name} is without {missing} of its {len(wanted)} tasks" if missing else ""
            tallies.append(_tally(name, by_task, there, note=note))
    return tallies


def _tally(
    name: str,
    by_task: dict[str, list[Reading]],
    tasks: Sequence[str],
    *,
    headline: bool = True,
    note: str = "",
) -> Tally:
    read = [each for task in tasks for each in by_task[task]]
    # Tasks have few images, so a resample takes as many from each as it has.
    rows = [
        ImageCounts(each.question.image, _counts(each, task), task)
        for task in tasks
        for each in by_task[task]
    ]
    pairs: dict[str, list[Reading]] = {}
    for each in read:
        pairs.setdefault(each.question.facts["pair"], []).append(each)
    for both in pairs.values():
        task, right = both[0].question.facts["task"], all(each.right for each in both)
        counts = {"pairs": 1, "both right": right, f"{task} pairs": 1, f"{task} both right": right}
        rows.append(ImageCounts(both[0].question.image, counts, task))
    columns = dict.fromkeys(column for row in rows for column in row.counts)
    return Tally(
        name=name,
        rule="first four characters",
        table=Table.of(rows, columns),
        metrics=_metrics(tasks),
        counted=("questions", "unreadable", "failed"),
        **outcome(read),
        headline=headline,
        notes=(note,) if note else (),
    )


def _metrics(tasks: Sequence[str]) -> dict[str, Metric]:
    """Scores add up over tasks, at most 200 each; acc and acc+ are those of all their questions."""
    acc, acc_plus = Term("right", "questions"), Term("both right", "pairs")
    score = [
        Term(f"{task} {part}", f"{task} {whole}")
        for task in tasks
        for part, whole in (("right", "questions"), ("both right", "pairs"))
    ]
    return {"acc": Metric((acc,)), "acc+": Metric((acc_plus,)), "score": Metric(tuple(score))}


def _counts(each: Reading, task: str) -> dict[str, float]:
    return {
        "questions": 1,
        "right": each.right,
        "unreadable": each.unreadable,
        "failed": each.failed,
        f"{task} questions": 1,
        f"{task} right": each.right,
    }


BENCHMARK = Benchmark(
    name="mme",
    title="MME: two yes-or-no questions about each image",
    read=read,
    flags={
        "data": {"type": Path, "metavar": "FOLDER", "help": "the folder of the tasks"},
        "tasks": {
            "nargs": "+",
            "choices": TASKS,
            "metavar": "TASK",
            "help": f"only these (default: those that are there) of {', '.join(TASKS)}",
        },
    },
    files=lambda data, tasks: [file for task in _tasks(data, tasks) for file in _files(data, task)],
    tally=tally,
)
