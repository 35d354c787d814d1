"""Porting carries a hunk only where its surroundings are still there, and reports the others."""

import importlib.util
from pathlib import Path

import pytest
import toy_upstream as toy

from causalmm import patching

ROOT = Path(__file__).resolve().parent.parent
MOVED = toy.UPSTREAM.replace(
    "class ToyAttention:", "class NewThing:\n    pass\n\n\nclass ToyAttention:"
)
CHANGED = MOVED.replace("x = layer(x)", "x = layer(x, None)")


@pytest.fixture
def vendor():
    spec = importlib.util.spec_from_file_location("vendor", ROOT / "scripts" / "vendor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path, monkeypatch):
    toy.write_distribution(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    root = tmp_path / "repository"
    toy.write_repository(root)
    return root


def port(vendor, repository: Path, text: str, *options: str) -> int:
    toy.write_distribution(repository.parent / "next", text, version="2.0")
    return vendor.main(
        ["port", str(repository.parent / "next"), "--root", str(repository), *options]
    )


def test_moved_lines_are_followed(vendor, repository, capsys):
    assert port(vendor, repository, MOVED) == 0
    assert "2 hunks carried to toy_upstream_package 2.0\n" in capsys.readouterr().out
    assert (repository / toy.PATCH).read_text() == toy.PROSE + toy.BODY, "nothing without --write"


def test_written_patches_fit_the_new_release(vendor, repository, monkeypatch, capsys):
    assert port(vendor, repository, MOVED, "--write") == 0
    monkeypatch.syspath_prepend(repository.parent / "next")
    assert vendor.main(["build", "--root", str(repository)]) == 0
    assert vendor.main(["check", "--root", str(repository)]) == 0, capsys.readouterr().err
    text = (repository / toy.VENDORED).read_text()
    assert "            x = layer(x)\n            x = self.enter(x)\n" in text
    assert "class NewThing" in text
    manifest = (repository / patching.MANIFEST).read_text()
    assert manifest.startswith("# The toy's pins.")
    assert 'version = "2.0"' in manifest


def test_a_changed_neighbour_is_a_conflict(vendor, repository, capsys):
    assert port(vendor, repository, CHANGED) == 1
    output = capsys.readouterr().out
    assert "1 hunks carried to toy_upstream_package 2.0, CONFLICT" in output
    assert "the hunk after line 19 of 1.0 does not fit: look near line 23 of 2.0" in output
    assert CHANGED.splitlines()[22].strip() == "x = layer(x, None)"


def test_an_insertion_at_the_same_place_is_a_conflict(vendor, repository):
    text = toy.UPSTREAM.replace("x = layer(x)\n", "x = layer(x)\n            x = theirs(x)\n")
    assert port(vendor, repository, text) == 1


def test_what_does_not_fit_is_kept_aside_until_it_is_placed(
    vendor, repository, monkeypatch, capsys
):
    assert port(vendor, repository, CHANGED, "--write") == 1
    rejected = (repository / toy.PATCH).with_suffix(".rej")
    assert "+            x = self.enter(x)" in rejected.read_text()
    assert "self.enter" not in (repository / toy.PATCH).read_text()

    monkeypatch.syspath_prepend(repository.parent / "next")
    assert vendor.main(["build", "--root", str(repository)]) == 0
    assert vendor.main(["check", "--root", str(repository)]) == 1
    assert "hunks that port left over" in capsys.readouterr().err
    rejected.unlink()
    assert vendor.main(["check", "--root", str(repository)]) == 0


def test_the_prose_survives_when_no_hunk_fits(vendor, repository):
    text = CHANGED.replace("scores = Linear(x)", "scores = Linear(x, x)")
    assert port(vendor, repository, text, "--write") == 1
    prose, hunks = patching.split_patch((repository / toy.PATCH).read_text())
    assert "Why here: There is only one file." in prose
    assert "Upstream: toy_upstream_package 2.0" in prose
    assert hunks == []


def test_a_file_that_is_gone_is_a_conflict(vendor, repository, capsys):
    toy.write_distribution(repository.parent / "next", version="2.0")
    (repository.parent / "next" / toy.FILE).unlink()
    arguments = ["port", str(repository.parent / "next"), "--root", str(repository), "--write"]
    assert vendor.main(arguments) == 1
    assert "does not exist" in capsys.readouterr().out
    assert (repository / toy.PATCH).read_text() == toy.PROSE + toy.BODY


def test_a_source_tree_will_do(vendor, repository, capsys):
    tree = repository.parent / "checkout"
    toy.write_distribution(tree / "src", MOVED)
    (tree / "src" / f"{toy.NAME}-1.0.dist-info" / "METADATA").unlink()
    (tree / "src" / f"{toy.NAME}-1.0.dist-info").rmdir()
    (tree / "src" / toy.NAME / "__init__.py").write_text('__version__ = "3.0.dev0"\n')
    assert vendor.main(["port", str(tree), "--root", str(repository)]) == 0
    assert "3.0.dev0" in capsys.readouterr().out


def test_a_folder_without_the_package_is_refused(vendor, repository, capsys):
    assert vendor.main(["port", str(repository), "--root", str(repository)]) == 1
    assert f"holds no {toy.NAME} package" in capsys.readouterr().err


def test_the_pinned_release_ports_onto_itself(vendor, capsys):
    pin = patching.read_pins(ROOT)[0]
    package = patching.installed_file(pin).parents[2]
    assert vendor.main(["port", str(package), "--root", str(ROOT)]) == 0, capsys.readouterr().out
