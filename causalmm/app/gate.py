"""What may reach gradio's server: the requests that the page makes, within the limits.

Gradio serves more than a page needs. It would fetch a "file" that is given by an address, from
anywhere and of any size, and keep it. Tests: tests/app/test_gate.py.
"""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from causalmm.app.limits import MIB, Limits
from causalmm.app.uploads import stored

UPLOAD = "/gradio_api/upload"
POSTS = frozenset(("/gradio_api/queue/join", "/gradio_api/run/predict"))
"""What a page sends besides files, all of it JSON."""
MESSAGE_BYTES = MIB
"""Of one of them."""
FORM_BYTES = 4096
"""What the form around one uploaded file may take."""
_FETCHING = ("/gradio_api/proxy=", "/gradio_api/file=http")


class Refusal(NamedTuple):
    """The answer to a request that is not let through."""

    status: int
    sentence: str


class Gate:
    """ASGI middleware in front of gradio's application.

    Bytes under `folder` and those announced by uploads that are under way are at most
    `limits.stored_bytes`; one upload holds at most as many files as a conversation has pictures.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], folder: Path, limits: Limits) -> None:
        self.app = app
        self.folder = folder
        self.limits = limits
        self.announced = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Of ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        path, method = scope["path"].rstrip("/"), scope["method"]
        length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        if method in ("GET", "HEAD"):
            if path.startswith(_FETCHING):
                await _answer(send, Refusal(403, "Nothing is fetched from elsewhere."))
            else:
                await self.app(scope, receive, send)
        elif method == "POST" and path in (UPLOAD, *POSTS):
            if not length.isdecimal():
                await _answer(send, Refusal(411, "The request does not say how long it is."))
            elif path == UPLOAD:
                await self._upload(int(length), scope, receive, send)
            else:
                await self._message(int(length), scope, receive, send)
        else:
            await _answer(send, Refusal(403, "The page makes no such request."))

    async def _upload(self, length: int, scope: Any, receive: Any, send: Any) -> None:
        if refusal := self._too_much(length):
            if refusal.status == 507:
                # A browser that is still sending would not see the answer.
                await _body(receive, keep=False)
            await _answer(send, refusal)
            return
        self.announced += length
        try:
            await self.app(scope, receive, send)
        finally:
            self.announced -= length

    def _too_much(self, length: int) -> Refusal | None:
        limits = self.limits
        if length > limits.pictures * (limits.file_bytes + FORM_BYTES):
            return Refusal(
                413,
                f"The upload has {length:,} bytes: expected at most {limits.pictures} files of "
                f"{limits.file_bytes:,} bytes.",
            )
        if stored(self.folder) + self.announced + length > limits.stored_bytes:
            return Refusal(
                507,
                "There is no room for more files now: older ones are deleted after "
                f"{limits.kept_seconds // 60} minutes.",
            )
        return None

    async def _message(self, length: int, scope: Any, receive: Any, send: Any) -> None:
        if length > MESSAGE_BYTES:
            await _answer(send, Refusal(413, f"More than {MESSAGE_BYTES:,} bytes were sent."))
            return
        body = await _body(receive)
        try:
            fetched = _names_address(json.loads(body or b"null"))
        except (ValueError, RecursionError):
            await _answer(send, Refusal(400, "What was sent is not JSON."))
            return
        if fetched:
            await _answer(send, Refusal(403, "Nothing is fetched from elsewhere: upload the file."))
            return
        sent = False

        async def receive_again() -> Any:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_again, send)


def _names_address(value: Any) -> bool:
    """Whether a file in a message is given by an address."""
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and "://" in path:
            return True
        return any(_names_address(each) for each in value.values())
    return isinstance(value, list) and any(_names_address(each) for each in value)


async def _body(receive: Any, *, keep: bool = True) -> bytes:
    """The rest of a request, which is not longer than it says: the server sees to that."""
    parts = []
    while (message := await receive())["type"] == "http.request":
        if keep:
            parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    return b"".join(parts)


async def _answer(send: Any, refusal: Refusal) -> None:
    body = refusal.sentence.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
