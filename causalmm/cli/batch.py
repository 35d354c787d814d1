"""Many questions from a JSON lines file, answered some at a time into another one.

Answers are appended, and put in the order of the questions when the last one is there; a file
beside them, `OUT.settings.json`, tells what they were made with. A question that cannot be asked
gets an `error` in the place of an answer and stops no other. Who opens a batch and writes its
answers holds the file meanwhile (`sole_writer`).
Tests: tests/cli/test_batch_command.py.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from causalmm.errors import RequestError
from causalmm.inputs.json_lines import (
    cut_torn_line,
    difference,
    read_bytes,
    read_records,
    to_line,
    to_object,
    whole_lines,
    write_json,
    write_lines,
)
from causalmm.inputs.messages import check_prompt

SUFFIX = ".settings.json"


class BatchRow(NamedTuple):
    """A question as it was given; `error` says in a sentence why it is none."""

    id: Any
    """As given, or else the number of the line."""
    image: Any
    prompt: Any
    error: str | None = None
    named: bool = True
    """Whether the id was given."""

    @property
    def images(self) -> list[str]:
        """Paths of the pictures."""
        return [self.image] if isinstance(self.image, str) else self.image

    @property
    def asked(self) -> dict[str, Any]:
        """What a line of the answers begins with."""
        return {"id": self.id, "image": self.image, "prompt": self.prompt}


class Batch(NamedTuple):
    """Questions, and what of them is answered."""

    rows: list[BatchRow]
    size: int
    """How many to ask at a time."""
    settings: dict[str, Any]
    out: Path
    lines: Mapping[int, bytes] = {}
    """The lines of the file, by the place of their row."""

    @property
    def left(self) -> int:
        """How many rows are to be asked."""
        return len(self.rows) - len(self.lines)

    def outcome(self) -> str:
        """How many rows are answered, and how many failed."""
        errors = {place: to_object(line).get("error") for place, line in self.lines.items()}
        failed = sorted(place for place, error in errors.items() if error is not None)
        said = f"{self.out}: {outcome(len(self.lines) - len(failed), len(failed))}"
        if failed:
            said += f"; first: row {self.rows[failed[0]].id}, {errors[failed[0]]}"
        return said


def open_batch(
    questions: str, out: str, size: int, settings: dict[str, Any], retry_failed: bool = False
) -> Batch:
    """The rows of a file and what of them is answered; what failed is not, if it is retried.

    Raises RequestError where a file cannot be read, or `out` holds anything but answers to these
    rows under these settings.
    """
    rows = read_rows(Path(questions))
    if settings["sampling"]["do_sample"]:
        # What is drawn for a row depends on its place and on those that are asked with it.
        ids = json.dumps([row.id for row in rows]).encode()
        settings = settings | {"batch_size": size, "ids_sha256": hashlib.sha256(ids).hexdigest()}
    batch = Batch(rows, size, settings, Path(out))
    if not batch.out.exists() or not read_bytes(batch.out):
        return batch
    _check_settings(batch)
    # Bad lines may be alike: the first line of a question is that of its first row.
    places: dict[str, list[int]] = {}
    for place, row in reversed(list(enumerate(rows))):
        places.setdefault(_key(row.asked), []).append(place)
    lines = {}
    for line in whole_lines(batch.out):
        record = to_object(line)
        if retry_failed and "error" in record:
            continue  # also where what was wrong with the row is mended
        if not (open_places := places.get(_key(record))):
            raise RequestError(
                f"--out {out} holds answers to other rows than {questions} (first: row "
                f"{record.get('id')}): give another file"
            )
        lines[open_places.pop()] = line
    return batch._replace(lines=lines)


def read_rows(path: Path) -> list[BatchRow]:
    """The questions of a JSON lines file, numbered by line where they have no id.

    Raises RequestError for a file that cannot be read or has no rows, or where two questions were
    given one id.
    """
    rows = [_row(number, record) for number, record in read_records(read_bytes(path))]
    if not rows:
        raise RequestError(f"{path} holds no rows")
    seen = set()
    for row in rows:
        # What is no question stops no other, and the number of a line is no id that was given.
        if row.error or not row.named:
            continue
        if row.id in seen:
            raise RequestError(f"{path} has two rows of id {row.id!r}")
        seen.add(row.id)
    return rows


def write_answers(
    batch: Batch, ask: Callable[[Sequence[BatchRow], int], Sequence[dict[str, str]]]
) -> Batch:
    """Answer what is left; returns the batch with nothing left.

    `ask` gets rows and the number of the first, and returns for each {"answer"} or {"error"}. Rows
    that are asked together are always asked together, even where some were answered before: what is
    sampled for one depends on the others.
    """
    if not batch.lines:
        write_json(_settings_file(batch.out), batch.settings)
    lines = dict(batch.lines)
    if batch.out.exists():
        cut_torn_line(batch.out)
        if len(whole_lines(batch.out)) > len(lines):  # without those that are retried
            write_lines(batch.out, _in_order(lines))
    with (
        open(batch.out, "ab") as file,
        tqdm(total=len(batch.rows), initial=len(lines), unit="row", file=sys.stderr) as progress,
    ):
        for start, rows in question_groups(batch.rows, batch.size):
            places = range(start, start + len(rows))
            if all(place in lines for place in places):
                continue
            new = {
                place: to_line(row.asked | said)
                for place, row, said in zip(places, rows, ask(rows, start), strict=True)
                if place not in lines
            }
            file.write(b"".join(new.values()))
            file.flush()
            lines |= new
            progress.update(len(new))
    write_lines(batch.out, _in_order(lines))
    return batch._replace(lines=lines)


def outcome(answered: int, failed: int) -> str:
    """How much was answered, and what can be done about the rest; for --batch and `evaluate`."""
    said = f"{answered} answer" + "s" * (answered != 1)
    return said + f", {failed} failed (--retry-failed asks again)" * bool(failed)


def question_groups(
    rows: Sequence[BatchRow], size: int
) -> Iterator[tuple[int, Sequence[BatchRow]]]:
    """Up to `size` rows that are asked together, and the number of the first.

    Questions in a row about the same pictures are asked apart from others: they can share the work
    on those.
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


def _row(number: int, given: dict[str, Any] | str) -> BatchRow:
    if isinstance(given, str):
        return BatchRow(number, None, None, f"line {number} {given}", named=False)
    row = BatchRow(given.get("id"), given.get("image"), given.get("prompt"))
    if row.id is None:
        row = row._replace(id=number, named=False)
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


def _key(record: Mapping[str, Any]) -> str:
    # As text, because a NaN equals nothing.
    return json.dumps([record.get(name) for name in ("id", "image", "prompt")])


def _in_order(lines: Mapping[int, bytes]) -> list[bytes]:
    return [lines[place] for place in sorted(lines)]


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
