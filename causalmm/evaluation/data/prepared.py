"""What a benchmark's module of this package makes of the sources, before it is written.

Nothing here knows a benchmark's form.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from causalmm.evaluation.data.sources import Source
from causalmm.inputs.parquet import ParquetTable


class Place(NamedTuple):
    """Where a picture lies."""

    source: ParquetTable | Path
    """Of a picture file, its own path."""
    row: int = 0
    column: str = ""

    def read(self) -> bytes:
        """Its content. Raises RequestError or OSError where it cannot be read."""
        if isinstance(self.source, Path):
            return self.source.read_bytes()
        return self.source.picture(self.row, self.column)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Question files in the published form, and where each picture may lie."""

    files: Mapping[str, bytes]
    """By their names within --out."""
    places: Mapping[str, Place]
    """By the names of the pictures, as a `Question` has them; others may be among them."""
    flags: Mapping[str, Any]
    """Those of `evaluate` that read the files: names of files and folders within --out; "." is
    --out itself."""
    counts: Mapping[str, int]
    """How many questions, or what else is counted, by set or task."""
    problems: Sequence[str] = field(default=())
    """What is missing or differs from what was published, in sentences."""
    notes: Sequence[str] = field(default=())
    """What else is to be known."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the data of a benchmark are prepared."""

    source: str
    """Of the hub, where --source is not given."""
    patterns: Sequence[str]
    """The files of it that are needed."""
    prepare: Callable[..., Prepared]
    """Takes the sources, and by their names the values of `flags`. Raises RequestError where they
    are not of the benchmark's form."""
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further flags of the command, with their options of argparse."""


def tables_with(sources: Sequence[Source], columns: Sequence[str]) -> list[ParquetTable]:
    """The parquet files of all sources. Raises RequestError where one lacks a column."""
    tables = [table for source in sources for table in source.tables]
    for table in tables:
        table.check_columns(columns)
    return tables


def picture_files(sources: Sequence[Source]) -> dict[str, Place]:
    """The picture files of all sources by their names; of two with one name, the first."""
    return {
        name: Place(path) for source in reversed(sources) for name, path in source.pictures.items()
    }


def listed(items: Sequence[object], most: int = 10) -> str:
    """The first of them in words, and how many more there are."""
    shown = ", ".join(map(str, items[:most]))
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
