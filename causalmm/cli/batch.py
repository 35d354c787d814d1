"""Many questions from a JSON lines file, answered some at a time into another one.

The answers stand in the order of the questions, so what is there already tells where to go on; a
file beside them, `OUT.settings.json`, tells what they were made with. A question that cannot be
asked gets an `error` in the place of an answer and stops no other. Who opens a batch and writes its
answers holds the file meanwhile (`sole_writer`).
Held by tests/cli/test_batch_command.py.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from causalmm.cli.json_lines import (
    difference,
    read_bytes,
    to_line,
    to_object,
    whole_lines,
    write_whole,
)
from causalmm.errors import RequestError
from causalmm.inputs.messages import check_prompt

SUFFIX = ".settings.json"
_SAVED_EVERY = 10.0
"""Seconds between two writings of a whole file, whose lines are answered again."""


class Row(NamedTuple):
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


class Batch(NamedTuple):
    """Questions, and how far the file of their answers is."""

    rows: list[Row]
    size: int
    """How many to ask at a time."""
    settings: dict[str, Any]
    out: Path
    lines: tuple[bytes, ...] = ()
    """What the file says of the first rows, without line ends; after them may come a line cut
    short."""
    again: frozenset[int] = frozenset()
    """Those of them, counted from 0, that failed and are to be asked again."""

    @property
    def left(self) -> int:
        """How many rows are to be asked."""
        return len(self.rows) - len(self.lines) + len(self.again)

    def outcome(self) -> str:
        """How many rows are answered, and how many failed."""
        errors = [to_object(line).get("error") for line in self.lines]
        failed = [number for number, error in enumerate(errors) if error is not None]
        said = f"{self.out}: {outcome(len(self.lines) - len(failed), len(failed))}"
        if failed:
            said += f"; first: row {self.rows[failed[0]].id}, {errors[failed[0]]}"
        return said


def open_batch(
    questions: str, out: str, size: int, settings: dict[str, Any], retry_failed: bool = False
) -> Batch:
    """The rows of a file and what of them is still to be answered; failed ones too, if wanted.

    Raises RequestError where a file cannot be read, or `out` holds anything but answers to these
    rows under these settings.
    """
    rows = read_rows(Path(questions))
    if settings["sampling"]["do_sample"]:
        settings = settings | {"batch_size": size}
    batch = Batch(rows, size, settings, Path(out))
    written = read_bytes(batch.out) if batch.out.exists() else b""
    if not written:
        return batch
    _check_settings(batch)
    lines = whole_lines(written)
    again = set()
    for number, (row, line) in enumerate(zip(rows, lines, strict=False)):
        record = to_object(line)
        if retry_failed and "error" in record:
            again.add(number)  # also where what was wrong with the row is mended
        elif _key(record) != _key(_asked(row)):
            raise RequestError(
                f"--out {out} holds answers to other rows than {questions} (first: row {row.id}): "
                "give another file"
            )
    if len(lines) > len(rows):
        raise RequestError(f"--out {out} holds more rows than {questions}: give another file")
    return batch._replace(lines=tuple(lines), again=frozenset(again))


def read_rows(path: Path) -> list[Row]:
    """The questions of a JSON lines file, numbered by line where they have no id.

    Raises RequestError for a file that cannot be read or has no rows, or where two questions were
    given one id.
    """
    # Of bytes: str.splitlines ends a line at other characters too.
    lines = enumerate(read_bytes(path).splitlines(), 1)
    rows = [_row(number, line) for number, line in lines if line.strip()]
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
    batch: Batch, ask: Callable[[Sequence[Row], int], Sequence[dict[str, str]]]
) -> Batch:
    """Answer what is left; returns the batch with nothing left.

    `ask` gets rows and the number of the first, and returns for each {"answer"} or {"error"}. A
    group of rows is always asked whole, even where some were answered before: what is sampled for
    one depends on the others.
    """
    if not batch.lines:
        settings = json.dumps(batch.settings, indent=2) + "\n"
        _settings_file(batch.out).write_text(settings, encoding="utf-8")
    with tqdm(
        total=len(batch.rows), initial=len(batch.rows) - batch.left, unit="row", file=sys.stderr
    ) as progress:
        lines = _ask_again(batch, ask, progress)
        with open(batch.out, "ab") as file:
            file.truncate(len(_whole(lines)))
            for start, rows in groups(batch.rows, batch.size):
                if start + len(rows) <= len(lines):
                    continue
                said = ask(rows, start)
                new = list(zip(rows, said, strict=True))[max(0, len(lines) - start) :]
                new = [to_line(_asked(row) | answer) for row, answer in new]
                file.write(b"".join(new))
                file.flush()
                lines += [line.removesuffix(b"\n") for line in new]
                progress.update(len(new))
    return batch._replace(lines=tuple(lines), again=frozenset())


def _ask_again(batch: Batch, ask: Callable[..., Any], progress: tqdm) -> list[bytes]:
    """The lines with new ones in the place of `batch.again`, in the file too.

    A new line is of another length, so the file is written whole: not for every group, but a killed
    process loses no more than the work of some seconds.
    """
    lines, saved = list(batch.lines), time.monotonic()
    try:
        for start, rows in groups(batch.rows, batch.size):
            numbers = [each for each in range(start, start + len(rows)) if each in batch.again]
            if not numbers:
                continue
            said = ask(rows, start)
            for number in numbers:
                answered = _asked(batch.rows[number]) | said[number - start]
                lines[number] = to_line(answered).removesuffix(b"\n")
            progress.update(len(numbers))
            if time.monotonic() - saved > _SAVED_EVERY:
                write_whole(batch.out.resolve(), _whole(lines))
                saved = time.monotonic()
    finally:
        if tuple(lines) != batch.lines:
            write_whole(batch.out.resolve(), _whole(lines))
    return lines


def _whole(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def outcome(answered: int, failed: int) -> str:
    """How much was answered, and what can be done about the rest; for --batch and `evaluate`."""
    said = f"{answered} answer" + "s" * (answered != 1)
    return said + f", {failed} failed (--retry-failed asks again)" * bool(failed)


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
        return Row(number, None, None, f"line {number} is not JSON ({error})", named=False)
    if not isinstance(given, dict):
        return Row(number, None, None, f"line {number} is not a JSON object", named=False)
    row = Row(given.get("id"), given.get("image"), given.get("prompt"))
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
