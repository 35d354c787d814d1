"""What is known of the published question files: how many questions, and digests of them.

published.json holds, for each of POPE's nine files, the SHA-256 of the file and two bytes of the
SHA-256 of every line (base64, in the order of their ids, which are 1 to the number of questions);
for MME the questions of each task, for COCO the images of val2014. Nothing of the questions'
text is in it. Tests: tests/evaluation/test_data_command.py.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causalmm.evaluation.data.prepared import listed
from causalmm.inputs.json_lines import read_json

_BYTES = 2


def published() -> dict[str, Any]:
    """The whole of published.json."""
    return read_json(Path(__file__).with_name("published.json"))


def line_digest(line: bytes) -> bytes:
    """Of a line of a question file, without its end."""
    return hashlib.sha256(line).digest()[:_BYTES]


def record_of(lines: Mapping[str, bytes]) -> dict[str, Any]:
    """What published.json holds of a question file: lines, with their ends, by their ids."""
    data = b"".join(lines.values())
    digests = b"".join(line_digest(line.rstrip(b"\n")) for line in lines.values())
    return {
        "questions": len(lines),
        "sha256": hashlib.sha256(data).hexdigest(),
        "lines": base64.b64encode(digests).decode(),
    }


def difference(name: str, lines: Mapping[str, bytes], known: Mapping[str, Any]) -> str | None:
    """A sentence on what of a question file is not as published; None where it is the same.

    `lines`, with their ends, by their ids in their order; `known` is the file's part of
    published.json.
    """
    if record_of(lines)["sha256"] == known["sha256"]:
        return None
    digests = base64.b64decode(known["lines"])
    wanted = {
        str(number + 1): digests[number * _BYTES : (number + 1) * _BYTES]
        for number in range(known["questions"])
    }
    missing = [id for id in wanted if id not in lines]
    other = [id for id in lines if id not in wanted]
    changed = [
        id
        for id, line in lines.items()
        if id in wanted and line_digest(line.rstrip(b"\n")) != wanted[id]
    ]
    said = [
        f"{what} {listed(ids)}"
        for what, ids in (("misses", missing), ("adds", other), ("changes", changed))
        if ids
    ]
    what = "; ".join(said) or "the questions are in another order"
    return f"{name} is not the published file of {known['questions']} questions: {what}"
