"""Data sets come from folders and the local cache; only --download asks the hub for anything."""

import ast
from pathlib import Path

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
