"""JSON lines that users give are refused in a sentence; those that are resumed lose nothing."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causalmm.errors import RequestError
from causalmm.inputs import json_lines
from causalmm.inputs.json_lines import (
    cut_torn_line,
    difference,
    read_json,
    read_json_lines,
    read_lines,
    read_records,
    to_line,
    to_object,
    whole_lines,
    write_json,
    write_lines,
)


def test_records_are_numbered_by_line_and_a_bad_one_stops_no_other():
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n[1]\n{"a"\n{"a": 1, "a": 2}\n'
    data += b'{"a": "\xff"}\n{"b": "\xe2\x80\xa8"}'
    found = dict(read_records(data))
    assert found[1] == {"a": 1}
    assert found[3] == "is not a JSON object"
    assert found[4].startswith("is not JSON (")
    assert found[5] == "is not JSON (the name 'a' is there twice)"
    assert found[6].startswith("is not JSON ('utf-8' codec")
    # U+2028 ends no line.
    assert found[7] == {"b": "\u2028"}
    assert list(found) == [1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"a": 1}\n[]\n', "line 2 is not a JSON object$"),
        (b'{"a": 1}\n{"a": 1', r"line 2 is not JSON \(.*\): is the file cut short\?$"),
        (b'{"a": 1\n{"a": 1}\n', r"line 1 is not JSON \(.*\)$"),
        (b'{"a": "\xff"}\n', r"is not text in UTF-8 \(byte 7 is 0xff\)$"),
    ],
)
def test_a_file_of_the_user_s_is_read_whole_or_refused(tmp_path, data, sentence):
    file = tmp_path / "questions.jsonl"
    file.write_bytes(data)
    with pytest.raises(RequestError, match=sentence):
        list(read_json_lines(file))
    file.write_bytes(b'\n{"a": 1}\n')
    assert list(read_json_lines(file)) == [(2, {"a": 1})]
    with pytest.raises(RequestError, match="nowhere cannot be read"):
        list(read_json_lines(tmp_path / "nowhere"))


def test_text_and_json(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\ntwo\xe2\x80\xa8three")
    assert list(read_lines(file)) == [(1, "one"), (3, "two\u2028three")]
    with pytest.raises(RequestError, match="file is not JSON"):
        read_json(file)
    write_json(file, {"a": ["é", None]})
    assert read_json(file) == {"a": ["é", None]}
    assert file.read_text(encoding="utf-8").endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, float("nan"))


@given(lines=st.lists(st.text()), cut=st.integers(0, 20))
def test_a_line_counts_once_its_end_is_written(tmp_path_factory, lines, cut):
    file = tmp_path_factory.mktemp("lines") / "answers.jsonl"
    assert whole_lines(file) == []
    cut_torn_line(file)
    written = [to_line({"said": line}) for line in lines]
    torn = to_line({"said": "the last one"})[: cut or None]
    file.write_bytes(b"".join(written) + torn.rstrip(b"\n"))
    assert whole_lines(file) == written
    cut_torn_line(file)
    assert file.read_bytes() == b"".join(written)
    assert [to_object(line)["said"] for line in whole_lines(file)] == lines


class Killed(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize("killed_at", range(5))
def test_lines_that_are_joined_are_never_lost(tmp_path, monkeypatch, killed_at):
    """Whichever step of the file system is the last one."""
    parts = [tmp_path / f"answers.jsonl{end}" for end in ("", ".1", ".2")]
    lines = [to_line({"number": number}) for number in range(6)]
    for turn, part in enumerate(parts):
        part.write_bytes(b"".join(lines[turn::3]))
    steps = []

    def counted(original):
        def step(*given, **options):
            if len(steps) == killed_at:
                raise Killed
            steps.append(original)
            return original(*given, **options)

        return step

    with monkeypatch.context() as patched:
        for name in ("write_bytes", "replace", "unlink"):
            original = getattr(json_lines.Path, name)
            patched.setattr(json_lines.Path, name, counted(original))
        try:
            write_lines(parts[0], lines, parts)
        except Killed:
            assert len(steps) == killed_at
    found = [line for part in parts for line in whole_lines(part)]
    assert set(found) == set(lines)
    write_lines(parts[0], lines, parts)
    assert whole_lines(parts[0]) == lines
    assert not any(part.exists() for part in parts[1:])


def test_what_is_as_wanted_is_not_written_again(tmp_path):
    file = tmp_path / "answers.jsonl"
    write_lines(file, [b"1\n", b"2\n"])
    os.utime(file, (0, 0))
    write_lines(file, [b"1\n", b"2\n"], [file])
    assert file.stat().st_mtime == 0


def test_a_difference_names_the_first_setting():
    assert difference({"a": 1, "b": [1], "more": 0}, {"a": 1, "b": (1,)}) is None
    assert difference({"a": 1}, {"a": 2, "b": 3}) == "a: 1, now 2"
    assert difference({}, {"b": None, "c": 3}) == "c: null, now 3"
