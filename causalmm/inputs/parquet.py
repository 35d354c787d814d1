"""Rows of parquet files in the form of hub data sets, a few at a time, pictures among them.

A picture is a struct {bytes, path} in a column of its own; its bytes are the content of a JPEG or
PNG file. Tests: tests/inputs/test_stored_pictures.py.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from causalmm.errors import RequestError, first_line
from causalmm.extras import require

ROWS = 16
"""Rows that are in memory at a time, of those columns that are asked for."""
_BUFFER = 2**20
"""Bytes of a column that are read from the file at a time."""


class ParquetTable:
    """One parquet file, opened when it is first read. Not for several threads at a time."""

    def __init__(self, path: Path, size: int | None = None) -> None:
        """`size` in bytes is what the file has if it is the one that was meant; None: any."""
        self.path = path
        self._size = size
        self._file: Any = None
        self._starts: list[int] = []
        self._column = ""
        self._batches: Iterator[Any] = iter(())
        self._first, self._batch = 0, None

    def check_columns(self, wanted: Sequence[str]) -> None:
        """Raise RequestError where the file cannot be read or lacks a column."""
        there = self._open().schema_arrow.names
        if missing := [name for name in wanted if name not in there]:
            raise RequestError(
                f"{self.path} has no column {missing[0]}: it has {', '.join(there) or 'none'}"
            )

    @property
    def columns(self) -> list[str]:
        """Names of all columns. Raises RequestError where the file cannot be read."""
        return list(self._open().schema_arrow.names)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """All rows with their numbers from 0, with these columns alone.

        Raises RequestError where the file cannot be read or lacks a column.
        """
        self.check_columns(columns)
        number = 0
        with self._readable():
            for batch in self._open().iter_batches(batch_size=1024, columns=list(columns)):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1

    def picture(self, row: int, column: str) -> bytes:
        """The content of the picture file in a row. Rows in ascending order are the fastest.

        Raises RequestError where the file cannot be read, or has no such row or no picture in it.
        """
        self.check_columns([column])
        with self._readable():
            if not 0 <= row < self._starts[-1]:
                raise RequestError(f"{self.path} has {self._starts[-1]} rows and no row {row}")
            self._seek(row, column)
            value = self._batch.column(0)[row - self._first].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes) or not content:
            raise RequestError(f"{self.path} row {row} holds no picture in its column {column}")
        return content

    def _seek(self, row: int, column: str) -> None:
        """Make `_batch` the rows from `_first` on with this row among them.

        A row group is decoded from its start on: further within the group in which the last row
        was, otherwise anew.
        """
        group = bisect_right(self._starts, row) - 1
        within = self._starts[group] <= self._first <= row
        batch, self._batch = self._batch, None  # none is left where reading fails
        if column != self._column or batch is None or not within:
            self._batches = self._open().iter_batches(
                batch_size=ROWS, row_groups=[group], columns=[column], use_threads=False
            )
            self._column, self._first = column, self._starts[group]
            batch = next(self._batches, None)
        while batch is not None and row >= self._first + batch.num_rows:
            self._first += batch.num_rows
            batch = next(self._batches, None)
        if batch is None:
            raise RequestError(f"{self.path} has fewer rows than it says")
        self._batch = batch

    def _open(self) -> Any:
        if self._file is not None:
            return self._file
        require("reading parquet files", "data")
        from pyarrow import parquet

        with self._readable():
            if self._size not in (None, size := self.path.stat().st_size):
                raise RequestError(
                    f"{self.path} has {size} bytes, and had {self._size} when `causalmm data` read "
                    "it: give that command again, into another folder"
                )
            # Buffered: otherwise all of a row group is read for its first row.
            file = parquet.ParquetFile(self.path, buffer_size=_BUFFER, pre_buffer=False)
        groups = range(file.metadata.num_row_groups)
        lengths = (file.metadata.row_group(group).num_rows for group in groups)
        self._starts = list(accumulate(lengths, initial=0))
        self._file = file
        return file

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Say in a sentence what is wrong with the file."""
        from pyarrow import ArrowException

        try:
            yield
        except FileNotFoundError:
            raise RequestError(f"there is no file {self.path}") from None
        except (ArrowException, OSError) as error:
            raise RequestError(
                f"{self.path} is no whole parquet file ({first_line(error)})"
            ) from error
