"""Parquet files in the form in which hub data sets hold pictures, made of a folder's benchmarks."""

import json
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(path):
    return {"bytes": Path(path).read_bytes(), "path": Path(path).name}


def write_table(path, rows, group=20):
    """Rows as dictionaries, so many in a row group; "image" is a picture, the rest is as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        name: pa.array([row[name] for row in rows], type=PICTURE if name == "image" else None)
        for name in rows[0]
    }
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


def write_shards(folder, rows, split="test", shards=2):
    """The files of a data set's split, rows in their order."""
    length = -(-len(rows) // shards)
    for number in range(shards):
        part = rows[number * length : (number + 1) * length]
        write_table(folder / f"data/{split}-{number:05}-of-{shards:05}.parquet", part)


def pope_rows(files, pictures):
    """As in lmms-lab/POPE, of question files by the name of their split."""
    rows = []
    for split, file in files.items():
        for line in file.read_text("utf-8").splitlines():
            asked = json.loads(line)
            rows.append(
                {
                    "id": str(len(rows)),
                    "question_id": str(asked["question_id"]),
                    "question": asked["text"],
                    "answer": asked["label"],
                    "image_source": asked["image"].removesuffix(".jpg"),
                    "image": picture(pictures / asked["image"]),
                    "category": split,
                }
            )
    return rows


def mme_rows(folder, tasks):
    """As in lmms-lab/MME, of the files TASK/TASK.txt."""
    return [
        {
            "question_id": f"{task}/{name}",
            "image": picture(folder / task / name),
            "question": question,
            "answer": answer,
            "category": task,
        }
        for task in tasks
        for line in (folder / task / f"{task}.txt").read_text("utf-8").splitlines()
        for name, question, answer in [line.split("\t")]
    ]


def vlind_rows(folder):
    """As in MM-Hallu/VLind-Bench: the best counterfactual picture and the factual one."""
    rows = []
    for number, each in enumerate(json.loads((folder / "data.json").read_text("utf-8"))):
        for kind, context, image in (
            ("counterfactual", each["context"], each["best_img_id"]),
            ("factual", each["factual_context"], "0"),
        ):
            place = folder / "images" / kind / each["concept"] / f"{each['context_id']}_{context}"
            rows.append(
                {
                    "global_id": str(number),
                    "context_id": str(each["context_id"]),
                    **{
                        name: each[name]
                        for name in (
                            *("context", "true_statement", "false_statement", "concept"),
                            *("factual_context", "existent_noun"),
                        )
                    },
                    "image_type": kind,
                    "non_existent_noun": each["non-existent_noun"],
                    "best_img_id": each["best_img_id"],
                    "prompt": "",
                    "image": picture(place / f"{image}.jpg"),
                }
            )
    return rows


def caption_rows(pictures, captions=None):
    """As in lmms-lab/COCO-Caption, of a folder of pictures and their captions by name."""
    return [
        {
            "question_id": path.name,
            "image": picture(path),
            "question": "Describe the image.",
            "answer": (captions or {}).get(path.name, []),
            "file_name": path.name,
        }
        for path in sorted(Path(pictures).iterdir())
    ]
