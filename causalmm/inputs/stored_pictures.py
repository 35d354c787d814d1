"""Where a benchmark's pictures lie, by name: in files, or in rows of parquet files.

`causalmm data` writes it beside the questions, as pictures.json:

    {"sources": [{"path": "FILE.parquet", "column": "image", "bytes": 255022914},
                 {"path": "FOLDER"}],
     "pictures": {"a.jpg": [0, 17], "b.jpg": [1, "images/b.jpg"]}}

A picture's place is the number of a source, and its row there from 0 or its name there. Paths that
are not absolute count from the folder of pictures.json. A path with '#' that comes from elsewhere
is the name of a file: only `StoredPicture`, which no JSON file can hold, is read from parquet.
Tests: tests/inputs/test_stored_pictures.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causalmm.errors import RequestError
from causalmm.inputs.json_lines import read_json
from causalmm.inputs.parquet import ParquetTable

INDEX = "pictures.json"


class StoredPicture(str):
    """A picture in a row of a parquet file; as text, FILE#ROW.

    It goes wherever the path of a picture goes, and equals another one of the same file and row.
    """

    table: ParquetTable
    column: str
    row: int

    @classmethod
    def at(cls, table: ParquetTable, column: str, row: int) -> "StoredPicture":
        """The picture in a column of a row, counted from 0."""
        picture = cls(f"{table.path}#{row}")
        picture.table, picture.column, picture.row = table, column, row
        return picture

    def read(self) -> bytes:
        """The content of its file. Raises RequestError where it cannot be read."""
        return self.table.picture(self.row, self.column)


def is_there(path: str) -> bool:
    """Whether a picture's file exists: of one in a parquet file, whether that does."""
    return (path.table.path if isinstance(path, StoredPicture) else Path(path)).is_file()


def read_index(folder: Path) -> dict[str, str]:
    """By name, the path of each picture that the folder's pictures.json lists; none without it.

    Raises RequestError for a file of another form.
    """
    file = folder / INDEX
    if not file.is_file():
        return {}
    given = read_json(file)
    try:
        sources = [_source(folder, each) for each in given["sources"]]
        return {name: _path(sources, *place) for name, place in given["pictures"].items()}
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise RequestError(f"{file} is not of the form that `causalmm data` writes") from error


def _source(folder: Path, given: Mapping[str, Any]) -> Any:
    path = folder / given["path"]
    if "column" not in given:
        return path
    return ParquetTable(path, given["bytes"]), given["column"]


def _path(sources: list[Any], number: int, place: int | str) -> str:
    source = sources[number]
    if isinstance(source, Path):
        return str(source / place)
    return StoredPicture.at(*source, place)
