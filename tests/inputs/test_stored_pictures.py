"""Pictures in rows of parquet files: read as files are, a few at a time, and only where an index
of ours says so."""

import io
import json
import os
import sys

import pyarrow as pa
import pytest
from hub_tables import PICTURE, write_table
from PIL import Image
from pyarrow import parquet

from causalmm.errors import FailureError, RequestError
from causalmm.inputs.messages import one_turn, open_messages
from causalmm.inputs.parquet import ROWS, ParquetTable
from causalmm.inputs.stored_pictures import INDEX, StoredPicture, is_there, read_index

COLOURS = [(40 * n % 256, 90 * n % 256, 7 * n % 256) for n in range(50)]


def png(colour):
    content = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def table(tmp_path):
    rows = [
        {"name": f"p{number}", "image": {"bytes": png(colour), "path": None}}
        for number, colour in enumerate(COLOURS)
    ]
    return write_table(tmp_path / "pictures.parquet", rows, group=3 * ROWS - 1)


def test_every_row_in_any_order(table):
    there = ParquetTable(table)
    for row in (*range(50), *range(49, -1, -1), 3, 47, 46, 48, 0, 3, 20, 19):
        assert there.picture(row, "image") == png(COLOURS[row])


def test_rows_are_in_memory_a_few_at_a_time(tmp_path):
    rows = [{"image": {"bytes": os.urandom(100_000), "path": None}} for _ in range(100)]
    there = ParquetTable(write_table(tmp_path / "large.parquet", rows, group=10))
    before, most = pa.total_allocated_bytes(), 0
    for row in range(100):
        assert there.picture(row, "image") == rows[row]["image"]["bytes"]
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 6_000_000  # a few groups of 1,000,000 among 10,000,000


def test_text_columns_are_read_without_the_pictures(table):
    assert list(ParquetTable(table).rows(["name"])) == [(n, {"name": f"p{n}"}) for n in range(50)]


def test_a_column_of_bytes_will_do(tmp_path):
    file = tmp_path / "bytes.parquet"
    parquet.write_table(pa.table({"image": [png(COLOURS[1])]}), file)
    assert ParquetTable(file).picture(0, "image") == png(COLOURS[1])


def write_index(folder, sources, pictures):
    (folder / INDEX).write_text(json.dumps({"sources": sources, "pictures": pictures}))


def test_an_index_says_where_pictures_lie(table, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").write_bytes(png(COLOURS[2]))
    size = table.stat().st_size
    source = {"path": str(table), "column": "image", "bytes": size}
    write_index(
        tmp_path, [source, {"path": "files"}], {"a": [1, "a.png"], "b": [0, 3], "c": [0, 40]}
    )
    found = read_index(tmp_path)
    assert found == {
        "a": str(tmp_path / "files" / "a.png"), "b": f"{table}#3", "c": f"{table}#40",
    }  # fmt: skip
    assert all(map(is_there, found.values()))
    for name, number in (("a", 2), ("b", 3), ("c", 40)):
        [message] = open_messages(one_turn([found[name]], "what ?"))
        assert message["content"][0]["image"].getpixel((0, 0)) == COLOURS[number]
    # One table, and so one open file, however many pictures.
    assert found["b"].table is found["c"].table
    assert read_index(tmp_path / "files") == {}


@pytest.mark.parametrize("text", ["[]", "{}", '{"sources": [3], "pictures": {}}',
                                  '{"sources": [], "pictures": {"a": [0, 1]}}'])  # fmt: skip
def test_an_index_of_another_form(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(RequestError, match="pictures.json is not of the form"):
        read_index(tmp_path)


def test_a_message_names_files_alone(table, tmp_path):
    """A '#' that a user writes is part of a file's name."""
    with pytest.raises(RequestError, match=r"no image file at .*pictures\.parquet#3"):
        open_messages(one_turn([f"{table}#3"], "what ?"))
    (tmp_path / "pictures.parquet#4").write_bytes(png((1, 2, 3)))
    [message] = open_messages(one_turn([f"{table}#4"], "what ?"))
    assert message["content"][0]["image"].getpixel((0, 0)) == (1, 2, 3)


def test_what_is_no_picture_is_said_as_of_a_file(tmp_path):
    rows = [{"image": {"bytes": data, "path": None}} for data in (b"text", png((9, 9, 9))[:-30])]
    there = ParquetTable(write_table(tmp_path / "bad.parquet", rows))
    for row, sentence in ((0, "is not an image that Pillow can read"), (1, "damaged or truncated")):
        with pytest.raises(RequestError, match=rf"bad\.parquet#{row} .*{sentence}"):
            open_messages(one_turn([StoredPicture.at(there, "image", row)], "what ?"))


def test_a_row_without_a_picture(tmp_path):
    values = [None, {"bytes": None, "path": "a.jpg"}, {"bytes": b"", "path": None}]
    file = tmp_path / "empty.parquet"
    parquet.write_table(pa.table({"image": pa.array(values, type=PICTURE)}), file)
    for row in range(3):
        with pytest.raises(RequestError, match=f"row {row} holds no picture in its column image"):
            ParquetTable(file).picture(row, "image")
    with pytest.raises(RequestError, match="has 3 rows and no row 3"):
        ParquetTable(file).picture(3, "image")


def test_a_missing_column_names_those_that_are_there(table):
    with pytest.raises(RequestError, match="has no column picture: it has name, image"):
        ParquetTable(table).picture(0, "picture")


@pytest.mark.parametrize("keep", [0, 3, 200, -100])
def test_a_file_cut_short(table, keep):
    table.write_bytes(table.read_bytes()[:keep])
    with pytest.raises(RequestError, match="pictures.parquet is no whole parquet file"):
        ParquetTable(table).picture(0, "image")


def test_damaged_pages(table):
    content = bytearray(table.read_bytes())
    content[4:400] = bytes(396)
    table.write_bytes(content)
    there = ParquetTable(table)
    for _ in range(2):  # the second time, too
        with pytest.raises(RequestError, match="is no whole parquet file"):
            there.picture(0, "image")


def test_a_file_that_is_gone_or_was_exchanged(table, tmp_path):
    with pytest.raises(RequestError, match="there is no file"):
        ParquetTable(tmp_path / "none.parquet").picture(0, "image")
    with pytest.raises(RequestError, match="has .* bytes, and had 17 when `causalmm data` read it"):
        ParquetTable(table, 17).picture(0, "image")
    assert not is_there(StoredPicture.at(ParquetTable(tmp_path / "none.parquet"), "image", 0))


def test_without_pyarrow(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FailureError, match=r"needs pyarrow: install it by pip install .*\[data\]"):
        ParquetTable(table).picture(0, "image")
