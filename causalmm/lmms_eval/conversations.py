"""Requests as conversations, in portions that are decoded together.

Of requests in a row that begin alike up to and with their last picture, that beginning is computed
once; the others make batches. Nothing here needs lmms-eval or loads torch.
Tests: tests/lmms/test_lmms_eval.py.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from causalmm.errors import RequestError
from causalmm.inputs.messages import Message, open_messages


class Conversation(NamedTuple):
    """One request."""

    index: int
    """Its place among all."""
    messages: list[dict[str, Any]] | str
    """Opened, or a sentence on why they cannot be."""
    beginning: str | None
    """What tells whether two begin alike; None where there is no picture."""


def open_conversation(index: int, messages: Sequence[Message]) -> Conversation:
    """The conversation of a request's messages, in the form of qwen_vl_utils."""
    try:
        opened = open_messages(messages)
    except RequestError as error:
        return Conversation(index, str(error), None)
    return Conversation(index, opened, beginning(opened))


def beginning(messages: Sequence[Message]) -> str | None:
    """A digest of an opened conversation up to its last picture; None where it has none."""
    digest, result = hashlib.sha256(), None
    for message in messages:
        digest.update(f"\0{message['role']}".encode())
        for part in message["content"]:
            kind = part["type"]
            settings = sorted((name, value) for name, value in part.items() if name != kind)
            digest.update(repr(settings).encode() + _content(part[kind]))
            if kind != "text":
                result = digest.hexdigest()
    return result


def portions(
    conversations: Iterable[Conversation], size: int
) -> Iterator[tuple[list[Conversation], bool]]:
    """Up to `size` conversations at a time, and whether they begin alike.

    Holds fewer than twice `size` at any time, so pictures may be opened as they are asked for.
    """
    loose: list[Conversation] = []
    for start, group in groupby(conversations, key=lambda each: each.beginning):
        while run := list(islice(group, size)):
            if start is not None and len(run) > 1:
                yield run, True
                continue
            loose += run
            if len(loose) >= size:
                yield loose[:size], False
                loose = loose[size:]
    if loose:
        yield loose, False


def _content(content: Any) -> bytes:
    """What tells texts, opened images, and videos (a path, bytes or a list of frames) apart."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    if isinstance(content, str | Path):
        return f"{content}\0".encode(errors="surrogatepass")
    if isinstance(content, list):
        return b"".join(map(_content, content))
    return hashlib.sha256(f"{content.size}".encode() + content.tobytes()).digest()
