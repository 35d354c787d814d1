"""MME: two questions about each image, one answered yes and one no (arXiv 2306.13394).

A folder holds the tasks, each in one of two forms:

    TASK.txt, or TASK/TASK.txt      lines image<TAB>question<TAB>yes|no, an image's two in a row;
                                    images in TASK/ or TASK/images/
    TASK/questions_answers_YN/      a text file an image, with lines question<TAB>yes|no;
                                    images of the same name in TASK/images/

In the second form the text files and the images may also lie side by side in TASK/. A fourth field,
an answer in a file of results, is not read. The released CausalMM script for MME puts POPE's suffix
after MME's own question. Tests: tests/evaluation/test_mme.py.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.benchmark import Benchmark, Export, Flag
from causalmm.evaluation.benchmarks.yes_no import CHOICES
from causalmm.evaluation.benchmarks.yes_no import mme as read_answer
from causalmm.evaluation.question_files import check_unique
from causalmm.evaluation.records import Question
from causalmm.evaluation.statistics import ImageCounts, Metric, Table, Term, ratio
from causalmm.evaluation.tally import Pair, Reading, Tally, outcome, readings
from causalmm.inputs.json_lines import read_lines

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark"),
    *("artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = (*PERCEPTION, *COGNITION)
_PER_IMAGE = "questions_answers_YN"
_SUFFIXES = (".jpg", ".png", ".jpeg")


def read(
    data: Annotated[Path, Flag("FOLDER", "the folder of the tasks")],
    *,
    tasks: Annotated[
        list[str] | None,
        Flag("TASK", f"only these (default: those that are there) of {', '.join(TASKS)}", TASKS),
    ] = None,
    suffix: Annotated[
        str, Flag("TEXT", "put after every question, which has MME's own request for yes or no")
    ] = "",
) -> list[Question]:
    """The questions of a folder, task by task in MME's order.

    Raises RequestError for a folder without tasks or a file that is not as described above.
    """
    questions = []
    for task in _tasks(data, tasks):
        lines = [line for file in _files(data, task) for line in _read_file(data, task, file)]
        questions += _questions(task, lines, suffix)
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
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        if files := [file for file in there if file.suffix.lower() == ".txt"]:
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
        image, question, label = fields[0], fields[1], fields[2].lower()
        if not image or not question:
            raise RequestError(f"{where} has no {'question' if image else 'image'}")
        if label not in CHOICES:
            raise RequestError(f"{where} has the answer {fields[2]!r}: expected yes or no")
        yield _Line(where, image, _path(root / task, image, an_image_each), question, label)


def _path(folder: Path, image: str, any_suffix: bool) -> Path:
    """Where an image lies; where it would, if it does not lie anywhere."""
    names = [image]
    if any_suffix:  # also .JPG
        names = [image + form(each) for each in _SUFFIXES for form in (str, str.upper, str.title)]
    paths = [place / name for place in (folder, folder / "images") for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


def _questions(task: str, lines: Sequence[_Line], suffix: str) -> Iterator[Question]:
    asked: dict[str, list[str]] = {}
    for first, second in zip_longest(lines[::2], lines[1::2]):
        if second is None or first.image != second.image:
            raise RequestError(
                f"{first.where}: {first.image} has one question, expected two in a row"
            )
        earlier = asked.setdefault(first.image, [])
        for line in (first, second):
            if line.question in earlier:
                raise RequestError(f"{line.where} asks the same about {line.image} again")
            earlier.append(line.question)
            yield Question(
                id=f"{task}/{line.image}/{len(earlier)}",
                image=f"{task}/{line.image}",
                path=str(line.path),
                prompt=line.question + suffix,
                choices=CHOICES,
                label=line.label,
                facts={
                    "task": task,
                    "pair": f"{task}/{line.image}/{(len(earlier) - 1) // 2}",
                    "text": line.question,
                },
            )


def tally(pairs: Sequence[Pair]) -> list[Tally]:
    """Each task, then perception, cognition and their total."""
    by_task: dict[str, list[Reading]] = {}
    for each in readings(pairs, read_answer):
        by_task.setdefault(each.question.facts["task"], []).append(each)
    tallies = [_tally(task, by_task, [task], headline=False) for task in by_task]
    for name, wanted in (("perception", PERCEPTION), ("cognition", COGNITION), ("total", TASKS)):
        if there := [task for task in wanted if task in by_task]:
            missing = len(wanted) - len(there)
            note = f"{name} is without {missing} of its {len(wanted)} tasks"
            tallies.append(_tally(name, by_task, there, notes=(note,) * bool(missing)))
    return tallies


def _tally(
    name: str, by_task: dict[str, list[Reading]], tasks: Sequence[str], **options: Any
) -> Tally:
    """Scores add up over tasks, at most 200 each; acc and acc+ are those of all their questions."""
    rows = []
    for task in tasks:
        pairs: dict[str, list[Reading]] = {}
        for each in by_task[task]:
            pairs.setdefault(each.question.facts["pair"], []).append(each)
        for both in pairs.values():
            counts = {
                "questions": len(both),
                "right": sum(each.right for each in both),
                "pairs": 1,
                "both right": all(each.right for each in both),
                "unreadable": sum(each.unreadable for each in both),
                "failed": sum(each.failed for each in both),
            }
            counts |= {f"{task} {name}": count for name, count in counts.items()}
            # Tasks have few images, so a resample takes as many from each as it has.
            rows.append(ImageCounts(both[0].question.image, counts, task))
    parts = (("right", "questions"), ("both right", "pairs"))
    score = [Term(f"{task} {part}", f"{task} {whole}") for task in tasks for part, whole in parts]
    return Tally(
        name=name,
        rule="first four characters",
        table=Table.of(rows),
        metrics={
            "acc": ratio("right", "questions"),
            "acc+": ratio("both right", "pairs"),
            "score": Metric(tuple(score)),
        },
        counted=("questions", "unreadable", "failed"),
        **outcome([each for task in tasks for each in by_task[task]]),
        **options,
    )


def _export(pairs: Sequence[Pair], model: str) -> dict[str, str]:
    """A text file a task, as MME's calculation.py reads them: image, question, right answer and
    answer with tabs between them, an image's two questions in a row. Space within an answer, which
    may be a tab or end a line, is written as blanks."""
    tasks: dict[str, str] = {}
    for question, answer in pairs:
        task = question.facts["task"]
        image = question.image.removeprefix(f"{task}/")
        said = " ".join(answer.answer.split())
        line = "\t".join((image, question.facts["text"], question.label.capitalize(), said))
        tasks[f"{task}.txt"] = tasks.get(f"{task}.txt", "") + line + "\n"
    return tasks


BENCHMARK = Benchmark(
    name="mme",
    title="MME: two yes-or-no questions about each image",
    read=read,
    files=lambda data, tasks, **_: [
        file for task in _tasks(data, tasks) for file in _files(data, task)
    ],
    tally=tally,
    export=Export(
        form="a folder with a text file a task, as MME's calculation.py reads them",
        write=_export,
        together="pair",
    ),
)
