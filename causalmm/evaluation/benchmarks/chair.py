"""CHAIR: which objects a caption names that are not in the image (arXiv 1809.02156).

The annotations are a JSON file {image: [objects that are in it]}, the vocabulary one of the two
forms of vocabulary.py, which says what counts as a mention. `CHAIR_i published` is the CHAIR_i of
the published evaluator and of papers: of all mentions, those of objects that are not there.
`CHAIR_i` counts an object once a caption, however often it is named. CHAIR_s and recall are the
same either way. Runs are also compared at equal length and at equal recall (caption_cuts.py). In
papers an image's objects are those of COCO's labels and those that its human
captions name. A caption that failed says nothing: it is left out and counted.

Evaluations of OPERA's and later kind take 500 images of COCO's val2014, drawn anew by each, this
prompt and at most 512 new tokens (chair_eval.py in shikiw/OPERA): `image_list` takes their list.
Tests: tests/evaluation/test_chair.py.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.benchmark import Benchmark, Export, Flag, Images
from causalmm.evaluation.benchmarks.caption_cuts import equal_length, equal_recall
from causalmm.evaluation.benchmarks.image_list import image_number, read_image_list
from causalmm.evaluation.benchmarks.vocabulary import Vocabulary, read_vocabulary
from causalmm.evaluation.records import Question
from causalmm.evaluation.statistics import ImageCounts, Metric, Table, ratio
from causalmm.evaluation.tally import Pair, Tally, has_failed
from causalmm.inputs.json_lines import read_json

PROMPT = "Please describe this image in detail."
METRICS: dict[str, Metric] = {
    "CHAIR_i": ratio("invented", "named"),
    "CHAIR_i published": ratio("invented mentions", "mentions"),
    "CHAIR_s": ratio("inventing captions", "captions"),
    "recall": ratio("found", "there"),
    # A caption that says less invents less.
    "words": ratio("words", "captions", scale=1),
}


def read(
    annotations: Annotated[Path, Flag("FILE", "JSON: {image: [objects in it]}")],
    *,
    vocabulary: Annotated[
        Path,
        Flag(
            "FILE",
            "JSON: {object: [synonyms]}; or lines of an object and its synonyms, with commas, as "
            "in CHAIR's synonyms.txt",
        ),
    ],
    images: Images = Path("."),
    image_list: Annotated[
        Path | None,
        Flag(
            "FILE",
            "only these of the annotated images: a JSON list, or a text file with an image a line, "
            "of names or COCO's numbers (default: all)",
        ),
    ] = None,
    prompt: Annotated[str, Flag("TEXT", "asks for a caption")] = PROMPT,
) -> list[Question]:
    """One request for a caption for each image, in the order of the list, if there is one.

    Raises RequestError for a file that cannot be read, an object that the vocabulary lacks, or an
    image of the list that is not annotated.
    """
    if not prompt.strip():
        raise RequestError("the prompt is empty")
    names = read_vocabulary(vocabulary)
    given = read_json(annotations)
    if not isinstance(given, dict) or not all(isinstance(each, list) for each in given.values()):
        raise RequestError(f"{annotations} is not a JSON object of lists of objects by image")
    if not given:
        raise RequestError(f"{annotations} holds no images")
    if image_list is not None:
        given = {image: given[image] for image in read_image_list(image_list, given)}
    return [
        Question(
            id=image,
            image=image,
            path=str(images / image),
            prompt=prompt,
            facts={
                "objects": _objects(annotations, image, objects, names),
                "vocabulary": names,
            },
        )
        for image, objects in given.items()
    ]


def tally(pairs: Sequence[Pair]) -> list[Tally]:
    """All captions together; one is right that names nothing which is not there."""
    rows, right = [], {}
    for question, answer in pairs:
        if has_failed(answer):
            rows.append(ImageCounts(question.image, {"failed": 1}))
            continue
        counts = _counts(answer.answer, question)
        rows.append(ImageCounts(question.image, counts))
        right[question.id] = not counts["invented"]
    notes = [_NOTE]
    if failed := len(rows) - len(right):
        notes.append(f"failed captions are left out: {failed} of {len(rows)}")
    return [
        Tally(
            name="all",
            rule="vocabulary",
            table=Table.of(rows, _COLUMNS),
            metrics=METRICS,
            counted=("captions", "named", "invented", "mentions", "invented mentions", "failed"),
            right=right,
            notes=tuple(notes),
        )
    ]


_COLUMNS = (
    *("captions", "named", "invented", "mentions", "invented mentions", "inventing captions"),
    *("found", "there", "words", "failed"),
)
_NOTE = "CHAIR_i counts an object once a caption, CHAIR_i published every time, as papers do"


def _recall(pairs: Sequence[Pair]) -> float:
    """In per cent, over all images."""
    [captions] = tally(pairs)
    return float(METRICS["recall"].of(captions.table.totals()))


def _counts(caption: str, question: Question) -> dict[str, float]:
    vocabulary: Vocabulary = question.facts["vocabulary"]
    mentions, there = vocabulary.mentions(caption), question.facts["objects"]
    named = set(mentions)
    return {
        "captions": 1,
        "named": len(named),
        "invented": len(named - there),
        "mentions": len(mentions),
        "invented mentions": sum(thing not in there for thing in mentions),
        "inventing captions": bool(named - there),
        "found": len(named & there),
        "there": len(there),
        "words": len(caption.split()),
    }


def _objects(
    file: Path, image: str, objects: Sequence[object], names: Vocabulary
) -> frozenset[str]:
    found = set()
    for each in objects:
        thing = names.object(each) if isinstance(each, str) else None
        if thing is None:
            raise RequestError(f"{file} has {each!r} in {image}, which the vocabulary lacks")
        found.add(thing)
    return frozenset(found)


def _export(pairs: Sequence[Pair], model: str) -> str:
    """A JSON list of image_id and caption, as the chair.py that OPERA's repository has reads it. An
    image without a number has its name as its id."""
    rows = []
    for question, answer in pairs:
        number = image_number(question.image)
        name = PurePosixPath(question.image).stem if number is None else number
        rows.append({"image_id": name, "caption": answer.answer})
    return json.dumps(rows, indent=2)


BENCHMARK = Benchmark(
    name="chair",
    title="CHAIR: which objects of a caption are not in the image",
    read=read,
    files=lambda annotations, vocabulary, image_list=None, **_: [
        *(annotations, vocabulary),
        *([] if image_list is None else [image_list]),
    ],
    tally=tally,
    max_new_tokens=512,
    matchings={
        "equal length": equal_length,
        "equal recall": partial(equal_recall, recall=_recall),
    },
    export=Export(
        form="a JSON list of image_id and caption, as the chair.py in use for captions of "
        "vision-language models reads it",
        write=_export,
    ),
)
