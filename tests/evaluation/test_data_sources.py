"""Data sets come from folders and the local cache; only --download asks the hub for anything."""

import ast
import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from causalmm.errors import FailureError, RequestError
from causalmm.evaluation.data.sources import find

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A local cache with a snapshot of one data set, as the hub's library lays it out."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "datasets--lmms-lab--POPE"
    for name, text in ((f"snapshots/{COMMIT}/data/a.parquet", "x"), ("refs/main", COMMIT)):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    return tmp_path


def test_a_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lmms-lab" / "POPE" / "b").mkdir(parents=True)
    for name in ("b/2.PNG", "1.parquet", "b/1.jpg", "note.txt"):
        (tmp_path / "lmms-lab" / "POPE" / name).write_text("")
    found = find("lmms-lab/POPE", ["*"])
    assert (found.folder, found.revision) == (tmp_path / "lmms-lab" / "POPE", None)
    assert [each.path.name for each in found.tables] == ["1.parquet"]
    assert sorted(found.pictures) == ["1.jpg", "2.PNG"]
    with pytest.raises(RequestError, match="--revision main: lmms-lab/POPE is a folder"):
        find("lmms-lab/POPE", ["*"], revision="main")


def test_a_data_set_is_found_in_the_cache(cache):
    found = find("lmms-lab/POPE", ["data/*.parquet"])
    assert found.revision == COMMIT
    assert [each.path.name for each in found.tables] == ["a.parquet"]
    assert find("lmms-lab/POPE", ["*"], revision=COMMIT).folder == found.folder


def test_what_is_not_there_is_not_fetched(cache):
    with pytest.raises(RequestError, match=r"lmms-lab/MME is neither .* give --download to fetch"):
        find("lmms-lab/MME", ["*"])
    with pytest.raises(RequestError, match="no folder of/three/parts: expected a folder, or"):
        find("of/three/parts", ["*"])


def test_the_hub_is_asked_with_download_alone(monkeypatch, tmp_path):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for download in (False, True):
        found = find("a/b", ["*.parquet"], revision="main", download=download)
        assert found.revision == COMMIT
        assert asked.pop() == (
            "a/b",
            {
                "repo_type": "dataset",
                "revision": "main",
                "allow_patterns": ["*.parquet"],
                "local_files_only": not download,
            },
        )


def test_a_hub_that_cannot_be_reached_is_a_failure(monkeypatch):
    def fails(error):
        def snapshot_download(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return pytest.raises(FailureError, match=r"a/b .*(cannot be reached|cannot be fetched)")

    for error in (LocalEntryNotFoundError("no"), ConnectionError("refused")):
        with fails(error):
            find("a/b", ["*"], download=True)


def test_no_other_function_fetches_a_data_set():
    """hf_hub_download is for files of models: families/checkpoints.py alone, of no data set."""
    callers = {}
    for path in sorted((ROOT / "causalmm").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {alias.name for node in ast.walk(tree) for alias in getattr(node, "names", ())
                  if isinstance(alias, ast.alias)}  # fmt: skip
        for name in names & {"snapshot_download", "hf_hub_download", "load_dataset", "HfApi"}:
            callers.setdefault(name, []).append(path.relative_to(ROOT / "causalmm").as_posix())
        if path.name != "sources.py" or path.parent.name != "data":
            assert not [node for node in ast.walk(tree) if isinstance(node, ast.keyword)
                        and node.arg == "repo_type"], path  # fmt: skip
    assert callers == {
        "snapshot_download": ["evaluation/data/sources.py"],
        "hf_hub_download": ["families/checkpoints.py"],
    }


def sha1(data):
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path):
    """A hub on this machine with one data set; gives its address and what it was asked for."""
    content = {
        "data/test-0.parquet": b"questions" * 1000,
        "Full/other.parquet": b"more",
        "a.md": b"-",
    }
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            asked.append(self.path)
            self.answer(True)

        def answer(self, whole):
            body, about = b"", {"Content-Type": "application/json"}
            if "/tree/" in self.path:
                body = json.dumps(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": sha1(data)}
                        for name, data in content.items()
                    ]
                ).encode()
            elif self.path.startswith("/api/datasets/lmms-lab/POPE"):
                files = [{"rfilename": name} for name in content]
                data = {"id": "lmms-lab/POPE", "sha": COMMIT, "siblings": files}
                body = json.dumps(data).encode()
            elif "/resolve/" in self.path:
                body = content[self.path.partition(f"/resolve/{COMMIT}/")[2]]
                about = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha1(body)}"'}
            else:
                self.send_error(404)
                return
            self.send_response(200)
            for name, value in {**about, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body * whole)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_downloading_takes_what_is_needed_and_once(hub, tmp_path):
    """In a process of its own, which reads the hub's address from its environment."""
    address, asked = hub
    code = (
        "import sys; from causalmm.evaluation.data.sources import find; "
        "found = find('lmms-lab/POPE', ['data/*.parquet'], download=len(sys.argv) > 1); "
        "print(found.revision, *[each.read_bytes() == b'questions' * 1000 for each in found.files])"
    )
    environment = os.environ | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("HF_HUB_OFFLINE", None)

    def run(*flags):
        command = [sys.executable, "-c", code, *flags]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    refused = run()
    assert "give --download to fetch it" in refused.stderr
    assert asked == []
    for flags in (["--download"], ["--download"], []):
        done = run(*flags)
        assert done.stdout == f"{COMMIT} True\n", done.stderr
        fetched = [path for path in asked if not path.startswith("/api/")]
        assert fetched == [f"/datasets/lmms-lab/POPE/resolve/{COMMIT}/data/test-0.parquet"]
    assert len(asked) > len(fetched)
