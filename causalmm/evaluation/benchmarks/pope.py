"""POPE: is there a thing of this name in the image, yes or no (arXiv 2305.10355).

A question file is JSON lines with `question_id`, `image`, `text` and `label`; ids restart in every
file, so a question is known by dataset, split and id. Tests: tests/evaluation/test_pope.py.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.benchmark import Benchmark, Export, Flag, Images
from causalmm.evaluation.benchmarks.yes_no import CHOICES, POPE_RULES, yes_no_tally
from causalmm.evaluation.question_files import check_unique, field, identifier
from causalmm.evaluation.records import Question
from causalmm.evaluation.tally import Pair, Tally, readings
from causalmm.inputs.json_lines import read_json_lines

SUFFIX = " Please answer this question with one word."
"""What the released CausalMM and VCD scripts put after a question."""
HEADLINE = "strict"
"""The rule that comparisons go by."""
_UNTOLD = Flag(None, "of files whose name does not say it")
NAME = re.compile(r"(?P<dataset>.+)_pope_(?P<split>.+)\.jsonl?", re.IGNORECASE)
"""Of a question file that says what it holds."""


def read(
    questions: Annotated[
        list[Path],
        Flag("FILE", "question files; DATASET_pope_SPLIT.json says its dataset and split"),
    ],
    *,
    dataset: Annotated[str | None, _UNTOLD] = None,
    split: Annotated[str | None, _UNTOLD] = None,
    images: Images = Path("."),
    suffix: Annotated[str, Flag("TEXT", 'put after every question; "" for none')] = SUFFIX,
) -> list[Question]:
    """The questions of one or several files, in their order.

    Raises RequestError for a file that cannot be read or is no question file.
    """
    found: list[Question] = []
    for file in questions:
        if named := NAME.fullmatch(file.name):
            name = f"{named['dataset']}/{named['split']}"
        elif dataset and split:
            name = f"{dataset}/{split}"
        else:
            raise RequestError(
                f"{file.name} is not named DATASET_pope_SPLIT.json: say --dataset and --split"
            )
        found += _read_file(file, images, suffix, name)
    check_unique(found)
    return found


def _read_file(file: Path, images: Path, suffix: str, name: str) -> list[Question]:
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
                id=f"{name}/{number_there}",
                image=image,
                path=str(images / image),
                prompt=text + suffix,
                choices=CHOICES,
                label=label,
                facts={"set": name, "question_id": number_there, "text": text},
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
            headline = rule == HEADLINE
            tallies.append(yes_no_tally(name, rule, readings(part, reading), headline))
    return tallies


def _export(pairs: Sequence[Pair], model: str) -> dict[str, str]:
    """JSON lines for each question file, with the fields of POPE's own answers (question, answer)
    and of those of LLaVA's, VCD's and CausalMM's scripts (question_id, prompt, text, model_id,
    image). Both scorers join by line: `label` lets the file stand for its question file, too."""
    files: dict[str, str] = {}
    for question, answer in pairs:
        facts, text = question.facts, answer.answer
        number = facts["question_id"]
        row = {
            "question_id": int(number) if number.isdecimal() else number,
            "image": question.image,
            "question": facts["text"],
            "answer": text,
            "label": question.label,
            "prompt": facts["text"],
            "text": text,
            "model_id": model,
            "metadata": {},
        }
        name = "_pope_".join(facts["set"].rsplit("/", 1)).replace("/", "_") + "_answers.jsonl"
        files[name] = files.get(name, "") + json.dumps(row) + "\n"
    return files


BENCHMARK = Benchmark(
    name="pope",
    title="POPE: is a thing of this name in the image",
    read=read,
    files=lambda questions, **_: questions,
    tally=tally,
    export=Export(
        form="a folder with JSON lines for each question file, as POPE's evaluate.py and the "
        "released eval_pope.py read them",
        write=_export,
    ),
)
