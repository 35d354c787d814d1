"""JSON lines and JSON files that outlive a killed writer.

A line counts once its end is written; what a killed writer left after the last one is no line.
Held by tests/cli/test_batch_command.py and tests/evaluation/test_evaluation_run.py.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causalmm.errors import RequestError


def to_line(record: Mapping[str, Any]) -> bytes:
    """One line, its end included."""
    # Half of a surrogate pair, which UTF-8 does not have, stays the escape that it was in JSON.
    return (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def whole_lines(written: bytes) -> list[bytes]:
    """The lines of a file without their ends, one cut short left out."""
    # Not str.splitlines, for which a line ends at other characters too.
    return written.split(b"\n")[:-1]


def to_object(text: bytes) -> dict[str, Any]:
    """A JSON object; an empty one where the text is none."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def read_bytes(path: Path) -> bytes:
    """A file whole. Raises RequestError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror})") from error


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` in the place of a file, which is at every moment the old one or the new one."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(data)
    new.replace(path)


def difference(written: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first setting that differs, in words; None where `written` holds all of `wanted`."""
    wanted = json.loads(json.dumps(wanted))
    for name, value in wanted.items():
        if written.get(name) != value:
            return f"{name}: {json.dumps(written.get(name))}, now {json.dumps(value)}"
    return None
