"""Only what a page asks for passes, bounded in size and number, on the disk too."""

import asyncio
import os

import pytest

from causalmm.app.gate import MESSAGE_BYTES, POSTS, UPLOAD, Gate
from causalmm.app.limits import Limits


@pytest.fixture
def upload(tmp_path):
    """Sends uploads that announce some bytes; the application behind says what it got."""
    limits = Limits(pictures=2, file_bytes=10_000, stored_bytes=25_000, kept_seconds=60)
    seen = []

    async def app(scope, receive, send):
        read = b""
        while (message := await receive())["type"] == "http.request":
            read += message["body"]
            if not message["more_body"]:
                break
        seen.append((scope["path"], read))
        if during := scope.get("during"):
            await during()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = Gate(app, tmp_path, limits)

    async def ask(length, path=UPLOAD, during=None, method="POST", body=None):
        sent, parts = [], [b"x", b"y"] if body is None else [body[:5], body[5:]]

        async def receive():
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message):
            sent.append(message)

        headers = [] if length is None else [(b"content-length", str(length).encode())]
        scope = {"type": "http", "path": path, "method": method}
        scope |= {"headers": headers, "during": during}
        await guard(scope, receive, send)
        return sent[0]["status"], sent[1]["body"].decode(), parts

    ask.seen = seen
    return ask


def test_an_upload_within_bounds_passes(upload):
    assert asyncio.run(upload(20_000))[0] == 200
    assert upload.seen == [(UPLOAD, b"xy")]


@pytest.mark.parametrize("length", [None, "many"])
def test_an_upload_of_unknown_length_is_refused(upload, length):
    assert asyncio.run(upload(length))[:2] == (411, "The request does not say how long it is.")
    assert not upload.seen


def test_an_upload_of_too_many_bytes_is_refused(upload):
    status, sentence, left = asyncio.run(upload(2 * (10_000 + 4096) + 1))
    assert (status, len(left)) == (413, 2)  # nothing of it was read
    assert sentence == ("The upload has 28,193 bytes: expected at most 2 files of 10,000 bytes.")
    assert not upload.seen


def test_an_upload_waits_for_room_on_the_disk(upload, tmp_path):
    kept = tmp_path / "kept"
    kept.write_bytes(b"0" * 10_000)
    assert asyncio.run(upload(15_000))[0] == 200
    status, sentence, left = asyncio.run(upload(15_001))
    # Read to its end, so that the browser gets to see the answer.
    assert (status, left) == (507, [])
    assert sentence == (
        "There is no room for more files now: older ones are deleted after 1 minutes."
    )
    os.remove(kept)
    assert asyncio.run(upload(15_001))[0] == 200


def test_uploads_at_the_same_time_count_together(upload):
    inner = []

    async def second():
        inner.append((await upload(15_000))[0])

    async def both():
        first = await upload(15_000, during=second)
        return first[0], (await upload(15_000))[0]

    assert asyncio.run(both()) == (200, 200)
    assert inner == [507]


@pytest.mark.parametrize("path", sorted(POSTS))
def test_messages_of_the_page_pass_as_they_are(upload, path):
    body = b'{"data": [{"path": "/kept/a.png"}, 3]}'
    assert asyncio.run(upload(len(body), path, body=body))[0] == 200
    assert upload.seen == [(path, body)]


@pytest.mark.parametrize(
    ("body", "length", "status"),
    [
        (b'{"data": [[{"image": {"path": "http://example.org/a.png"}}]]}', None, 403),
        (b'{"data": [{"path": "file:///etc/passwd"}]}', None, 403),
        (b'{"data": ', None, 400),
        (b"[" * 50_000, None, 400),
        (b"{}", MESSAGE_BYTES + 1, 413),
    ],
)
def test_messages_that_no_page_sends_are_refused(upload, body, length, status):
    asked = upload(length or len(body), "/gradio_api/queue/join", body=body)
    assert asyncio.run(asked)[0] == status
    assert not upload.seen


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/gradio_api/file=/kept/a.png", 200),
        ("GET", "/gradio_api/file=http://example.org/a.png", 403),
        ("HEAD", "/gradio_api/proxy=https://example.org", 403),
        ("POST", "/gradio_api/process_recording", 403),
        ("POST", "/gradio_api/vibe-edit/", 403),
        ("PUT", UPLOAD, 403),
    ],
)
def test_only_requests_of_a_page_pass(upload, method, path, status):
    assert asyncio.run(upload(2, path, method=method))[0] == status
    assert len(upload.seen) == (status == 200)
