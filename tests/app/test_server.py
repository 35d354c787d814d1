"""The server keeps uploaded files where it is told, and no longer than it is told."""

import time
from pathlib import Path

import pytest

from causalmm.app.limits import Limits
from causalmm.cli.flags import parse_args
from causalmm.cli.request import check
from causalmm.cli.session import Session

pytest.importorskip("gradio", reason="gradio is not installed: make setup")
PICTURE = Path(__file__).resolve().parents[2] / "examples" / "llava_300041_helped.png"
KEPT = 4  # seconds, in which what was uploaded is read here
SOON = 30  # seconds, for what takes twice as many as are kept
pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    from starlette.testclient import TestClient

    from causalmm.app.events import Events
    from causalmm.app.examples import Example
    from causalmm.app.page import build_page
    from causalmm.app.server import application

    args = parse_args(["--image", str(PICTURE), "--prompt", "What is this?"])
    session, limits = Session.start(args, check(args)), Limits(kept_seconds=KEPT)
    example = tmp_path / "examples" / "example.png"
    example.parent.mkdir()
    example.write_bytes(PICTURE.read_bytes())
    events = Events({"demo-llava": session}, [Example(str(example), "What is this?")], limits)
    with TestClient(application(build_page(events), tmp_path, limits)) as client:
        yield client


def test_an_uploaded_file_is_deleted_and_an_example_is_not(client, tmp_path):
    answer = client.post("/gradio_api/upload", files={"files": ("a.png", PICTURE.read_bytes())})
    assert answer.status_code == 200
    [path] = map(Path, answer.json())
    assert path.is_relative_to(tmp_path)
    assert path.read_bytes() == PICTURE.read_bytes()
    deadline = time.monotonic() + SOON
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not path.exists()
    assert client.get("/").status_code == 200
    examples = client.get("/config").json()["components"]
    [samples] = [each["props"]["samples"] for each in examples if each["type"] == "dataset"]
    shown = Path(samples[0][0] if isinstance(samples[0][0], str) else samples[0][0]["path"])
    assert shown.exists()


def test_a_page_tells_the_browser_to_load_nothing_from_elsewhere(client):
    answer = client.get("/")
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    for sources in policy.values():
        assert not [each for each in sources.split() if "//" in each or each in ("*", "https:")]
    assert policy["default-src"] == "'self'"


def test_no_file_of_the_server_can_be_read(client, tmp_path):
    secret = tmp_path.parent / "secret.txt"
    secret.write_text("secret", "utf-8")
    for path in (secret, "/etc/passwd", Path(__file__)):
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)
