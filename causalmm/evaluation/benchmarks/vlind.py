"""VLind-Bench: does a model believe a counterfactual picture (arXiv 2406.08702).

Every instance asks in four stages, two questions each: common-sense knowledge (CK, factual image),
visual perception (VP) and commonsense bias (CB, the best counterfactual image), and language prior
(LP, every good counterfactual image). An image is good with two votes or more; an instance without
a good image is left out. Two sets of prompts were published, one in the script for InstructBLIP and
one in that for GPT-4o. Tests: tests/evaluation/test_vlind.py.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.benchmark import Benchmark, Export, Flag
from causalmm.evaluation.benchmarks.yes_no import vlind as read_answer
from causalmm.evaluation.question_files import check_unique, field, identifier
from causalmm.evaluation.records import Question
from causalmm.evaluation.statistics import ImageCounts, Metric, Table, ratio
from causalmm.evaluation.tally import Pair, Reading, Tally, outcome, readings
from causalmm.inputs.json_lines import read_json

CHOICES = ("true", "false")
STAGES = ("CK", "VP", "CB", "LP")
TEMPLATES = ("instructblip", "gpt4o")
STYLES = {
    "photorealistic": range(4),
    "illustration": range(4, 8),
    "cartoon": range(8, 12),
    "all": range(12),
}
GOOD_VOTES = 2
METRICS: dict[str, Metric] = {
    "S_CK": ratio("CK", "instances"),
    "S_VP": ratio("VP", "instances"),
    "S_CB": ratio("piped CB", "CK"),
    "S_LP": ratio("piped LP", "piped VP and CB"),
    "CB accuracy": ratio("CB", "instances"),
    "LP accuracy": ratio("LP", "instances"),
}
_STYLE = Flag(None, "count only good images of this style", tuple(STYLES))
_TEXTS = (
    *("concept", "context", "factual_context", "true_statement", "false_statement"),
    *("existent_noun", "non-existent_noun"),
)
_ONLY = "Only respond in True or False."
MODEL_IDENTIFIER = "causalmm"
"""For -mid of score_pipeline.py, of exported answers."""
_EXPORTED = {"CK": "a{}_image", "VP": "b{}", "CB": "c{}_image", "LP": "d{}"}
_GROUND = {"CK": "common sense", "VP": "the image", "CB": "the context", "LP": "the image"}


def read(
    data: Annotated[
        Path,
        Flag("FOLDER", "of data.json, with factual/ and counterfactual/ in it or in its images/"),
    ],
    *,
    templates: Annotated[
        str, Flag(None, "which of the two published sets of prompts", TEMPLATES)
    ] = TEMPLATES[0],
    style: Annotated[str, _STYLE] = "all",
) -> list[Question]:
    """The questions of all instances that have a good image of the style.

    Raises RequestError for a folder or a data.json that is not as described above.
    """
    file = _data_file(data)
    given = read_json(file)
    if not isinstance(given, list):
        raise RequestError(f"{file} is not a list of instances")
    questions: list[Question] = []
    seen: dict[str, list[Any]] = {}
    for number, row in enumerate(given, 1):
        where = f"{file} instance {number}"
        good = [image for image in _good_images(row, where) if image in STYLES[style]]
        if not good:
            # Nothing else of it is looked at: what was left out may be incomplete.
            continue
        for name in _TEXTS:
            field(row, name, where)
        context = f"{row['concept']}/{identifier(row, 'context_id', where)}"
        best = _image_id(identifier(row, "best_img_id", where), where)
        earlier = seen.setdefault(context, [])
        if row in earlier:
            raise RequestError(f"{file} holds the instance {context} twice")
        earlier.append(row)
        # One context may come with several pairs of statements.
        instance = context + (f"-{len(earlier)}" if len(earlier) > 1 else "")
        facts = {"instance": instance, "context": context, "row": row}
        questions += _questions(file.parent, row, facts, best, good, templates)
    if not questions:
        raise RequestError(f"{file} has no instance with a good image of style {style}")
    check_unique(questions)
    return questions


def prompt(templates: str, stage: str, statement: str, context: str) -> str:
    """A question as it is sent."""
    of_gpt4o = templates == "gpt4o"
    ground = "the common sense" if of_gpt4o and stage == "CK" else _GROUND[stage]
    context = f"Context: {context}\n" if stage == "CB" else ""
    asked = f"{context}Statement: {statement}\nBased on {ground}, "
    asked += "is the given statement true or false?"
    if not of_gpt4o:
        return f"{_ONLY}\n{asked}"
    if stage in ("CB", "LP"):
        asked += (
            f" Forget real-world common sense and just follow the information provided in {ground}."
        )
    return f"{asked} {_ONLY}"


def _data_file(root: Path) -> Path:
    for folder in (root, root / "data"):
        if (folder / "data.json").is_file():
            return folder / "data.json"
    raise RequestError(f"there is no data.json in {root}")


def _good_images(row: Any, where: str) -> list[int]:
    if not isinstance(row, dict):
        raise RequestError(f"{where} is not an object")
    votes = row.get("aggregated_human_label_good_images")
    if not isinstance(votes, dict) or not all(
        isinstance(count, int | float) for count in votes.values()
    ):
        raise RequestError(
            f"{where} has aggregated_human_label_good_images {votes!r}: expected votes by image id"
        )
    return sorted(_image_id(image, where) for image, count in votes.items() if count >= GOOD_VOTES)


def _image_id(text: str, where: str) -> int:
    if not text.isdecimal() or int(text) not in STYLES["all"]:
        raise RequestError(f"{where} names an image {text!r}: expected 0 to 11")
    return int(text)


def _questions(
    root: Path,
    row: Mapping[str, Any],
    facts: Mapping[str, Any],
    best: int,
    good: Sequence[int],
    templates: str,
) -> Iterator[Question]:
    true, false = row["true_statement"], row["false_statement"]
    there, absent = (
        f"There is {row[name]} in the given image."
        for name in ("existent_noun", "non-existent_noun")
    )
    # In the factual world the statement that is false of the picture's world is the true one.
    asked = [
        ("CK", "factual", 0, false, true),
        ("VP", "counterfactual", best, there, absent),
        ("CB", "counterfactual", best, true, false),
        *(("LP", "counterfactual", image, true, false) for image in good),
    ]
    contexts = {"factual": row["factual_context"], "counterfactual": row["context"]}
    folders = {kind: _folder(root, kind, facts["context"], text) for kind, text in contexts.items()}
    for stage, kind, image, right, wrong in asked:
        for number, (statement, label) in enumerate(((right, "true"), (wrong, "false")), 1):
            name = f"{facts['instance']}/{stage}{number}"
            yield Question(
                id=f"{name}/{image}" if stage == "LP" else name,
                # The same whether or not the images are there, and whatever their folder's name.
                image=f"{kind}/{facts['context']}/{image}.jpg",
                path=str(folders[kind] / f"{image}.jpg"),
                prompt=prompt(templates, stage, statement, row["context"]),
                choices=CHOICES,
                label=label,
                facts={
                    **facts,
                    "stage": stage,
                    "pair": f"{facts['instance']}/{stage}/{image}",
                    "exported as": _EXPORTED[stage].format(number),
                    "image_id": str(image),
                    "questions": 2 * len(asked),
                },
            )


def _folder(root: Path, kind: str, key: str, context: str) -> Path:
    """Where an instance's images lie; where they would, if they do not lie anywhere.

    Told by the number in front: what follows it is free text, which not every file system keeps.
    """
    concept, _, number = key.rpartition("/")
    for base in (root / kind, root / "images" / kind):
        folder = base / concept
        if (folder / f"{number}_{context}").is_dir():
            return folder / f"{number}_{context}"
        named = (each for each in folder.glob("*") if each.name.startswith(f"{number}_"))
        found = sorted(each for each in named if each.is_dir())
        if len(found) > 1:
            raise RequestError(f"{folder} holds {len(found)} folders that begin with {number}_")
        if found:
            return found[0]
    return root / "images" / kind / concept / f"{number}_{context}"


def tally(pairs: Sequence[Pair]) -> list[Tally]:
    """The six indicators over all instances, those cut by --limit left out.

    Raises RequestError where none is whole.
    """
    instances: dict[str, list[Reading]] = {}
    for each in readings(pairs, read_answer):
        instances.setdefault(each.question.facts["instance"], []).append(each)
    whole = {
        name: part
        for name, part in instances.items()
        if len(part) == part[0].question.facts["questions"]
    }
    if not whole:
        raise RequestError("--limit cuts every instance of VLind-Bench: give a larger one")
    read = [each for part in whole.values() for each in part]
    cut = len(instances) - len(whole)
    # Instances of one context show the same images.
    rows = [
        ImageCounts(part[0].question.facts["context"], _counts(part)) for part in whole.values()
    ]
    return [
        Tally(
            name="all",
            rule="first true or false",
            table=Table.of(rows),
            metrics=METRICS,
            counted=("instances", "questions", "unreadable", "failed"),
            notes=(f"{cut} instances are cut by --limit and left out",) * (cut > 0),
            **outcome(read),
        )
    ]


def _counts(instance: Sequence[Reading]) -> dict[str, float]:
    """What one instance adds. A stage holds where both its answers are right; CB counts only where
    CK holds, and LP only where VP and that CB hold."""
    pairs: dict[tuple[str, str], bool] = {}
    for each in instance:
        key = each.question.facts["stage"], each.question.facts["pair"]
        pairs[key] = pairs.get(key, True) and each.right
    held = {
        name: [right for (stage, _), right in pairs.items() if stage == name] for name in STAGES
    }
    knowledge, perception, bias = (held[name][0] for name in STAGES[:3])
    good_share = sum(held["LP"]) / len(held["LP"])
    before_prior = perception and bias and knowledge
    return {
        "instances": 1,
        "CK": knowledge,
        "VP": perception,
        "CB": bias,
        "piped CB": knowledge and bias,
        "piped VP and CB": before_prior,
        "LP": good_share,
        "piped LP": good_share if before_prior else 0,
        "questions": len(instance),
        "unreadable": sum(each.unreadable for each in instance),
        "failed": sum(each.failed for each in instance),
    }


def _export(pairs: Sequence[Pair], model: str) -> str:
    """The asked instances of data.json with each answer as the published scripts add it, for
    score_pipeline.py."""
    instances: dict[str, dict[str, Any]] = {}
    for question, answer in pairs:
        facts = question.facts
        instance = instances.setdefault(facts["instance"], dict(facts["row"]))
        said = read_answer(answer.answer)
        found = {"response": answer.answer, "answer": said.capitalize() if said else "NA"}
        name = f"{MODEL_IDENTIFIER}_pred_{facts['exported as']}"
        if facts["stage"] == "LP":
            instance.setdefault(name, {})[facts["image_id"]] = found
        else:
            instance[name] = found
    return json.dumps(list(instances.values()), indent=4)


BENCHMARK = Benchmark(
    name="vlind",
    title="VLind-Bench: does the model believe a counterfactual picture",
    read=read,
    files=lambda data, **_: [_data_file(data)],
    tally=tally,
    export=Export(
        form="data.json of the asked instances with the answers in it, as score_pipeline.py -mid "
        f"{MODEL_IDENTIFIER} reads it",
        write=_export,
        together="instance",
    ),
)
