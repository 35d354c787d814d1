"""VLind-Bench's data: the folder of its data.json (the data set klee972/VLind-Bench of the hub is
such a folder), or parquet files with an instance and a picture a row, as in MM-Hallu/VLind-Bench.

Such a row has the texts of an instance, `image_type` (factual or counterfactual), `best_img_id` and
`image`. It lacks the votes and all counterfactual pictures but the best one: the language prior,
which the benchmark asks about every good picture, is asked about that one alone.
Tests: tests/evaluation/test_data_command.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks import vlind
from causalmm.evaluation.data.prepared import Place, Preparation, Prepared, listed, tables_with
from causalmm.evaluation.data.sources import Source
from causalmm.evaluation.question_files import field, identifier
from causalmm.inputs.json_lines import read_bytes

_TEXTS = (
    *("concept", "context", "factual_context", "true_statement", "false_statement"),
    "existent_noun",
)
_COLUMNS = ("context_id", *_TEXTS, "non_existent_noun", "best_img_id", "image_type")
_KINDS = ("factual", "counterfactual")


def prepare(sources: Sequence[Source]) -> Prepared:
    """The data.json of the sources, or one made of parquet rows, and the pictures.

    Raises RequestError where there is neither, or more than one data.json.
    """
    found = [each for source in sources for each in source.named(r"data\.json")]
    if len(found) > 1 and len({read_bytes(each) for each in found}) > 1:
        raise RequestError(f"{found[0]} and {found[1]} have different questions: give one of them")
    if found:
        questions = vlind.read(found[0].parent)
        places = {each.image: Place(Path(each.path)) for each in questions}
        return Prepared(
            files={"data.json": read_bytes(found[0])},
            places=places,
            flags={"data": "."},
            counts={"instances": len({each.facts["instance"] for each in questions})},
        )
    return _of_parquet(sources)


def _of_parquet(sources: Sequence[Source]) -> Prepared:
    instances, places = [], {}
    for table in tables_with(sources, (*_COLUMNS, "image")):
        for number, row in table.rows(_COLUMNS):
            where = f"{table.path} row {number}"
            kind, best = field(row, "image_type", where), identifier(row, "best_img_id", where)
            if kind not in _KINDS:
                raise RequestError(f"{where} has image_type {kind!r}: expected {', '.join(_KINDS)}")
            context = f"{field(row, 'concept', where)}/{identifier(row, 'context_id', where)}"
            image = best if kind == "counterfactual" else "0"
            places[f"{kind}/{context}/{image}.jpg"] = Place(table, number, "image")
            if kind == "counterfactual":
                instances.append(_instance(row, best, where))
    if not instances:
        raise RequestError(
            f"{listed([each.name for each in sources])} holds no questions of VLind-Bench: "
            "expected data.json or parquet files"
        )
    data = json.dumps(instances, indent=2, ensure_ascii=False) + "\n"
    return Prepared(
        files={"data.json": data.encode()},
        places=places,
        flags={"data": "."},
        counts={"instances": len(instances)},
        problems=[
            "the parquet files hold one counterfactual picture of each instance: S_LP and LP "
            "accuracy are of that one, not of every good picture as published; "
            f"{PREPARATION.source} has them all"
        ],
    )


def _instance(row: dict[str, Any], best: str, where: str) -> dict[str, Any]:
    """As data.json has it, with votes for the best picture alone."""
    return {
        **{name: field(row, name, where) for name in _TEXTS},
        "context_id": row["context_id"],
        "non-existent_noun": field(row, "non_existent_noun", where),
        "best_img_id": best,
        "aggregated_human_label_good_images": {best: vlind.GOOD_VOTES},
    }


PREPARATION = Preparation(
    source="klee972/VLind-Bench", patterns=("*.json", "*.jpg"), prepare=prepare
)
