"""POPE: is there a thing of this name in the image, yes or no (arXiv 2305.10355).

A question file is JSON lines with `question_id`, `image`, `text` and `label`; ids restart in every
file, so a question is known by dataset, split and id. Held by tests/test_pope.py.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from causalmm.errors import RequestError
from causalmm.evaluation.question_files import check_unique, field, identifier, read_json_lines
from causalmm.evaluation.records import Question

CHOICES = ("yes", "no")
SUFFIX = " Please answer this question with one word."
"""What the released CausalMM and VCD scripts put after a question."""
_NAME = re.compile(r"(?P<dataset>.+)_pope_(?P<split>.+)\.jsonl?")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which questions."""
    parser.add_argument(
        "--questions",
        required=True,
        nargs="+",
        type=Path,
        metavar="FILE",
        help="question files; DATASET_pope_SPLIT.json says its dataset and split",
    )
    parser.add_argument("--dataset", help="of files whose name does not say it")
    parser.add_argument("--split", help="of files whose name does not say it")
    parser.add_argument(
        "--images", type=Path, default=Path("."), metavar="FOLDER", help="where the images lie"
    )
    parser.add_argument(
        "--suffix",
        default=SUFFIX,
        metavar="TEXT",
        help='put after every question; "" for none (default: "%(default)s")',
    )


def from_args(args: argparse.Namespace) -> list[Question]:
    """The questions that the flags ask for."""
    return read(
        args.questions,
        images=args.images,
        suffix=args.suffix,
        dataset=args.dataset,
        split=args.split,
    )


def sources(args: argparse.Namespace) -> list[Path]:
    """The files that the questions are read from."""
    return args.questions


def read(
    files: Sequence[Path],
    *,
    images: Path = Path("."),
    suffix: str = SUFFIX,
    dataset: str | None = None,
    split: str | None = None,
) -> list[Question]:
    """The questions of one or several files, in their order.

    Raises RequestError for a file that cannot be read or is no question file.
    """
    questions: list[Question] = []
    for file in files:
        questions += _read_file(file, images, suffix, *_dataset_and_split(file, dataset, split))
    check_unique(questions)
    return questions


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
        image = field(row, "image", where)
        label = field(row, "label", where)
        if label not in CHOICES:
            raise RequestError(f"{where} has label {label!r}: expected yes or no")
        questions.append(
            Question(
                id=f"{dataset}/{split}/{identifier(row, 'question_id', where)}",
                image=image,
                path=str(images / image),
                prompt=field(row, "text", where) + suffix,
                choices=CHOICES,
                label=label,
                facts={"set": f"{dataset}/{split}"},
            )
        )
    if not questions:
        raise RequestError(f"{file} holds no questions")
    return questions
