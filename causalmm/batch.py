"""Many questions from a JSON lines file, answered some at a time into another one.

The answers stand in the order of the questions, so what is there already tells where to go on; a
file beside them, `OUT.settings.json`, tells what they were made with. A question that cannot be
asked gets an `error` in the place of an answer and stops no other.
Held by tests/test_batch_command.py.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from causalmm.errors import RequestError
from causalmm.json_lines import difference, read_bytes, to_line, to_object, whole_lines
from causalmm.messages import check_prompt

SUFFIX = ".settings.json"


class Row(NamedTuple):
    """A question as it was given; `error` says in a sentence why it is none."""

    id: Any
    image: Any
    prompt: Any
    error: str | None = None

    @property
    def images(self) -> list[str]:
        """Paths of the pictures."""
        return [self.image] if isinstance(self.image, str) else self.image


class Batch(NamedTuple):
    """Questions, and how far the file of their answers is."""

    rows: list[Row]
    size: int
    """How many to ask at a time."""
    settings: dict[str, Any]
    out: Path
    done: int
    """Rows answered already,"""
    length: int
    """in so many bytes; what comes after them is a line cut short."""


def open_batch(questions: str, out: str, size: int, settings: dict[str, Any]) -> Batch:
    """The rows of a file and what of them is still to be answered.

    Raises RequestError where a file cannot be read, or `out` holds anything but answers to these
    rows under these settings.
    """
    rows = read_rows(Path(questions))
    if settings["sampling"]["do_sample"]:
        settings = settings | {"batch_size": size}
    batch = Batch(rows, size, settings, Path(out), 0, 0)
    if not batch.out.parent.is_dir():
        raise RequestError(f"--out {out}: there is no folder {batch.out.parent}")
    written = read_bytes(batch.out) if batch.out.exists() else b""
    if not written:
        return batch
    _check_settings(batch)
    lines = whole_lines(written)
    for row, line in zip(rows, lines, strict=False):
        if _key(to_object(line)) != _key(_asked(row)):
            raise RequestError(
                f"--out {out} holds answers to other rows than {questions} (first: row {row.id}): "
                "give another file"
            )
    if len(lines) > len(rows):
        raise RequestError(f"--out {out} holds more rows than {questions}: give another file")
    return batch._replace(done=len(lines), length=sum(len(line) + 1 for line in lines))


def read_rows(path: Path) -> list[Row]:
    """The questions of a JSON lines file, numbered by line where they have no id.

    Raises RequestError for a file that cannot be read, has no rows or one id twice.
    """
    # Of bytes: str.splitlines ends a line at other characters too.
    lines = enumerate(read_bytes(path).splitlines(), 1)
    rows = [_row(number, line) for number, line in lines if line.strip()]
    if not rows:
        raise RequestError(f"{path} holds no rows")
    seen = set()
    for row in rows:
        if row.id in seen:
            raise RequestError(f"{path} has two rows of id {row.id!r}")
        seen.add(row.id)
    return rows


def write_answers(
    batch: Batch, ask: Callable[[Sequence[Row], int], Sequence[dict[str, str]]]
) -> int:
    """Answer what is left, and return how many rows of the file have an error.

    `ask` gets rows and the number of the first, and returns for each {"answer"} or {"error"}. A
    group of rows is always asked whole, even where its first were answered before: what is sampled
    for one depends on the others.
    """
    if not batch.length:
        settings = json.dumps(batch.settings, indent=2) + "\n"
        _settings_file(batch.out).write_text(settings, encoding="utf-8")
    with open(batch.out, "ab") as file:
        file.truncate(batch.length)
        with tqdm(
            total=len(batch.rows), initial=batch.done, unit="row", file=sys.stderr
        ) as progress:
            for start, rows in groups(batch.rows, batch.size):
                if start + len(rows) <= batch.done:
                    continue
                said = ask(rows, start)
                new = list(zip(rows, said, strict=True))[max(0, batch.done - start) :]
                file.write(b"".join(to_line(_asked(row) | answer) for row, answer in new))
                file.flush()
                progress.update(len(new))
    return sum("error" in to_object(line) for line in read_bytes(batch.out).splitlines())


def groups(rows: Sequence[Row], size: int) -> Iterator[tuple[int, Sequence[Row]]]:
    """Up to `size` rows at a time, and the number of the first.

    Questions in a row about the same pictures make groups of their own: they can share the work on
    those.
    """
    runs = [len(list(run)) for _, run in groupby(rows, key=lambda row: json.dumps(row.image))]
    start = 0
    while runs:
        length = runs.pop(0)
        if length == 1:
            while runs and runs[0] == 1 and length < size:
                length += runs.pop(0)
        for first in range(start, start + length, size):
            yield first, rows[first : min(first + size, start + length)]
        start += length


def _row(number: int, line: bytes) -> Row:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(number, None, None, f"line {number} is not JSON ({error})")
    if not isinstance(given, dict):
        return Row(number, None, None, f"line {number} is not a JSON object")
    row = Row(given.get("id", number), given.get("image"), given.get("prompt"))
    if not isinstance(row.id, str | int) or isinstance(row.id, bool):
        return row._replace(id=number, error=f"id {row.id!r}: expected text or a whole number")
    images = row.images
    if not isinstance(images, list) or not all(isinstance(each, str) for each in images):
        return row._replace(error="image: expected a path or a list of paths")
    if not images:
        return row._replace(error="the row has no image")
    if not isinstance(row.prompt, str):
        return row._replace(error="prompt: expected text")
    try:
        check_prompt(row.prompt)
    except RequestError as error:
        return row._replace(error=str(error))
    return row


def _asked(row: Row) -> dict[str, Any]:
    return {"id": row.id, "image": row.image, "prompt": row.prompt}


def _key(record: dict[str, Any]) -> str:
    # As text, because a NaN equals nothing.
    return json.dumps([record.get(name) for name in ("id", "image", "prompt")])


def _check_settings(batch: Batch) -> None:
    path = _settings_file(batch.out)
    if not path.exists():
        raise RequestError(
            f"--out {batch.out} is there already and was not written by --batch: give another file"
        )
    if (what := difference(to_object(read_bytes(path)), batch.settings)) is not None:
        raise RequestError(
            f"--out {batch.out} was written with other settings ({what}): give another file"
        )


def _settings_file(out: Path) -> Path:
    return out.with_name(out.name + SUFFIX)
