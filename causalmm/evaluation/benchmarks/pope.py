"""POPE: is there a thing of this name in the image, yes or no (arXiv 2305.10355).

A question file is JSON lines with `question_id`, `image`, `text` and `label`; ids restart in every
file, so a question is known by dataset, split and id. Tests: tests/evaluation/test_pope.py.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.benchmark import IMAGES, Benchmark
from causalmm.evaluation.question_files import check_unique, field, identifier
from causalmm.evaluation.records import Question
from causalmm.evaluation.statistics import ImageCounts, Metric, Table, ratio
from causalmm.evaluation.tally import Pair, Reading, Tally, outcome, readings
from causalmm.evaluation.yesno import POPE_RULES
from causalmm.inputs.json_lines import read_json_lines

CHOICES = ("yes", "no")
SUFFIX = " Please answer this question with one word."
"""What the released CausalMM and VCD scripts put after a question."""
HEADLINE = "strict"
"""The rule that comparisons go by."""
METRICS: dict[str, Metric] = {
    "accuracy": ratio("right", "questions"),
    "precision": ratio("tp", "said yes"),
    "recall": ratio("tp", "positives"),
    "F1": ratio("2 tp", "said yes + positives"),
    "yes ratio": ratio("said yes", "said"),
}
_NAME = re.compile(r"(?P<dataset>.+)_pope_(?P<split>.+)\.jsonl?")


def read(
    questions: Sequence[Path],
    *,
    dataset: str | None = None,
    split: str | None = None,
    images: Path = Path("."),
    suffix: str = SUFFIX,
) -> list[Question]:
    """The questions of one or several files, in their order.

    Raises RequestError for a file that cannot be read or is no question file.
    """
    found: list[Question] = []
    for file in questions:
        found += _read_file(file, images, suffix, *_dataset_and_split(file, dataset, split))
    check_unique(found)
    return found


def _dataset_and_split(file: Path, dataset: str | None, split: str | None) -> tuple[str, str]:
    if told := _NAME.fullmatch(file.name):
        return told["dataset"], told["split"]
    if not dataset or not split:
        raise RequestError(
            f"{file.name} is not named DATASET_pope_SPLIT.json: say --dataset and --split"
        )
    return dataset, split


def _read_file(file: Path, images: Path, suffix: str, dataset: str, split: str) -> list[Question]:
    questions = []
    for number, row in read_json_lines(file):
        where = f"{file} line {number}"
        image, text = field(row, "image", where), field(row, "text", where)
        number_there = identifier(row, "question_id", where)
        label = field(row, "label", where)
        if label not in CHOICES:
            raise RequestError(f"{where} has label {label!r}: expected yes or no")
        questions.append(
            Question(
                id=f"{dataset}/{split}/{number_there}",
                image=image,
                path=str(images / image),
                prompt=text + suffix,
                choices=CHOICES,
                label=label,
                facts={
                    "set": f"{dataset}/{split}",
                    "question_id": number_there,
                    "text": text,
                },
            )
        )
    if not questions:
        raise RequestError(f"{file} holds no questions")
    return questions


def tally(pairs: Sequence[Pair]) -> list[Tally]:
    """Every set by each of the three rules, then all sets together where there are several."""
    names = list(dict.fromkeys(each.question.facts["set"] for each in pairs))
    tallies = []
    for name in names + ["all"] * (len(names) > 1):
        part = [each for each in pairs if name in ("all", each.question.facts["set"])]
        for rule, reading in POPE_RULES.items():
            tallies.append(_tally(name, rule, readings(part, reading)))
    return tallies


def _tally(name: str, rule: str, read: Sequence[Reading]) -> Tally:
    rows = [ImageCounts(each.question.image, _counts(each)) for each in read]
    return Tally(
        name=name,
        rule=rule,
        table=Table.of(rows),
        metrics=METRICS,
        counted=("tp", "fp", "tn", "fn", "unreadable", "failed"),
        **outcome(read),
        headline=rule == HEADLINE,
    )


def _counts(each: Reading) -> dict[str, float]:
    """tp, fp, tn and fn count answers that were read. One that was not is wrong all the same: it
    lowers accuracy and, where yes was right, recall; the yes ratio is of what was read."""
    positive, yes = each.question.label == "yes", each.said == "yes"
    return {
        "tp": yes and positive,
        "fp": yes and not positive,
        "tn": each.said == "no" and not positive,
        "fn": each.said == "no" and positive,
        "unreadable": each.unreadable,
        "failed": each.failed,
        "questions": 1,
        "right": each.right,
        "positives": positive,
        "said": each.said is not None,
        "said yes": yes,
        # F1 in sums: 2 tp / (said yes + positives).
        "2 tp": 2 * (yes and positive),
        "said yes + positives": yes + positive,
    }


BENCHMARK = Benchmark(
    name="pope",
    title="POPE: is a thing of this name in the image",
    read=read,
    flags={
        "questions": {
            "nargs": "+",
            "type": Path,
            "metavar": "FILE",
            "help": "question files; DATASET_pope_SPLIT.json says its dataset and split",
        },
        "dataset": {"help": "of files whose name does not say it"},
        "split": {"help": "of files whose name does not say it"},
        "images": IMAGES,
        "suffix": {"metavar": "TEXT", "help": 'put after every question; "" for none'},
    },
    files=lambda questions, **_: questions,
    tally=tally,
)
