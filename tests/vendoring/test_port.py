"""Porting carries a hunk only where its surroundings are still there, and reports the others.

The oracle for what fits is `git merge-file`, the oracle for what works are the project's own tests
under another release. The slow test downloads two of them.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toy_upstream as toy

from causalmm.vendoring import headers, patching, porting

ROOT = Path(__file__).resolve().parents[2]
MOVED = toy.UPSTREAM.replace(
    "class ToyAttention:", "class NewThing:\n    pass\n\n\nclass ToyAttention:"
)
CHANGED = MOVED.replace("x = layer(x)", "x = layer(x, None)")
INSERTED = toy.UPSTREAM.replace("x = layer(x)\n", "x = layer(x)\n            x = theirs(x)\n")
RENAMED = toy.UPSTREAM.replace("class ToyModel:", "class OtherModel:")
# The last patch release of the two minor ones before the pinned one; there is none after it yet.
OTHER_RELEASES = ("5.22.2", "5.21.1")


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
    output = capsys.readouterr().out
    assert f"{toy.PATCH}: 2 of 2 hunks carried to toy_upstream_package 2.0\n" in output
    assert "toy_upstream_package 2.0: 2 hunks carried, 0 placed, 0 conflicts\n" in output
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
    assert f"{toy.PATCH}: 1 of 2 hunks carried to toy_upstream_package 2.0, CONFLICT\n" in output
    assert (
        "  hunk 2, after line 19 of 1.0 in ToyModel.forward: the line above it changed; "
        "it may belong after line 23 of 2.0\n    + x = self.enter(x)\n"
    ) in output
    assert CHANGED.splitlines()[22].strip() == "x = layer(x, None)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (INSERTED, "upstream has 1 other lines there; it may belong after line 19 of 2.0"),
        (RENAMED, "its place is now in OtherModel.forward; look near line 19 of 2.0"),
        (
            toy.UPSTREAM.replace("x = layer(x)\n        return x\n", "pass\n"),
            "the lines above and below it changed; look near line 18 of 2.0",
        ),
        (
            CHANGED.replace("return x\n", "return x, None\n"),
            "the lines above and below it changed; look near line 22 of 2.0",
        ),
    ],
    ids=["inserted", "renamed", "removed", "rewritten"],
)
def test_a_conflict_says_what_happened(vendor, repository, capsys, text, reason):
    assert port(vendor, repository, text) == 1
    assert reason in capsys.readouterr().out


def test_a_proposed_place_is_taken_on_request(vendor, repository, monkeypatch, capsys):
    assert port(vendor, repository, CHANGED, "--place", "--write") == 0
    output = capsys.readouterr().out
    assert "1 of 2 hunks carried to toy_upstream_package 2.0, 1 placed\n" in output
    assert "the line above it changed; placed after line 23 of 2.0, check it" in output
    monkeypatch.syspath_prepend(repository.parent / "next")
    assert vendor.main(["build", "--root", str(repository)]) == 0
    assert vendor.main(["check", "--root", str(repository)]) == 0
    text = (repository / toy.VENDORED).read_text()
    assert "            x = layer(x, None)\n            x = self.enter(x)\n" in text


@pytest.mark.parametrize("text", [toy.UPSTREAM, MOVED, CHANGED, INSERTED])
def test_what_is_carried_is_what_git_would_merge(repository, tmp_path, text):
    base = patching.relocate(toy.UPSTREAM, f"{toy.NAME}.models.toy")
    theirs = patching.relocate(text, f"{toy.NAME}.models.toy")
    compare_with_git(tmp_path, base, theirs, patching.split_patch(toy.BODY)[1])


def compare_with_git(folder: Path, base: str, theirs: str, hunks: list[patching.Hunk]) -> None:
    """The same conflicts in number, and without any the same text."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    texts = {"ours": patching.apply_hunks(base, hunks), "base": base, "theirs": theirs}
    for name, text in texts.items():
        patching.write_text(folder / name, text)
    command = ["git", "merge-file", "-p", *texts]
    merged = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    results = porting.carry_hunks(base, theirs, hunks)
    conflicts = [result for result in results if isinstance(result, porting.Conflict)]
    assert merged.returncode == len(conflicts), merged.stdout
    if not conflicts:
        assert merged.stdout == patching.apply_hunks(theirs, results)


@pytest.mark.parametrize("pin", patching.read_pins(ROOT), ids=lambda pin: Path(pin.patch).stem)
def test_the_real_patches_follow_a_release_that_only_moved_lines(tmp_path, pin):
    base = patching.upstream_text(pin)
    _, hunks = patching.read_patch(ROOT, pin)
    lines = patching.split_lines(base)
    # A line of theirs in the middle between two hunks, wherever these are far enough apart.
    gaps = [(a.at, b.at) for a, b in zip(hunks, hunks[1:], strict=False) if b.at - a.at > 8]
    for start, end in reversed(gaps):
        if not lines[(start + end) // 2].strip():
            lines.insert((start + end) // 2, "# theirs")
    theirs = patching.join_lines(["# a new first line", *lines])
    results = porting.carry_hunks(base, theirs, hunks)
    assert all(isinstance(result, patching.Hunk) for result in results)
    ours = patching.split_lines(patching.apply_hunks(theirs, results))
    kept = [line for line in ours if line not in ("# theirs", "# a new first line")]
    assert patching.join_lines(kept) == patching.apply_hunks(base, hunks)
    compare_with_git(tmp_path, base, theirs, hunks)


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
    assert "hunks that port or adopt left over" in capsys.readouterr().err
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


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import a.b, c as d\ndef f(x, *y, **z): return a, d, x, y, z, len, __name__", []),
        ("def f():\n    def g(): return x, g\n    x = 1\n    return [i for i in g() if i]", []),
        (
            "def f(x):\n    if (y := x): pass\n    try: pass\n    except E as e: print(e)",
            ["E in f"],
        ),
        ("class C:\n    a = 1\n    def f(self): return self.a, a", ["a in C.f"]),
        ("def f():\n    return lambda x: x.missing + gone", ["gone in f.lambda"]),
        ("def f(x: Kind) -> None: x.y = z\nclass Kind: pass", ["z in f"]),
    ],
)
def test_undefined_names(text, names):
    assert list(porting.undefined_names(text)) == names


def test_a_name_that_upstream_no_longer_defines_is_a_failure(vendor, repository, capsys):
    text = toy.UPSTREAM.replace("for layer in", "for block in").replace("layer(x)", "self.run(x)")
    base = text.replace("block", "layer")
    patch = repository / toy.PATCH
    patch.write_text(patch.read_text().replace("self.enter(x)", "self.enter(x, layer)"))
    toy.write_distribution(repository.parent / "site", base)
    manifest = repository / patching.MANIFEST
    digests = map(patching.text_digest, (toy.UPSTREAM, base))
    manifest.write_text(manifest.read_text().replace(*digests))
    assert port(vendor, repository, text) == 1
    output = capsys.readouterr().out
    assert "2 of 2 hunks carried" in output
    assert "not defined in the merged file: layer in ToyModel.forward" in output


def test_a_folder_without_the_package_is_refused(vendor, repository, capsys):
    assert vendor.main(["port", str(repository), "--root", str(repository)]) == 1
    assert f"holds no {toy.NAME} package" in capsys.readouterr().err


def test_the_pinned_release_ports_onto_itself(vendor, capsys):
    pin = patching.read_pins(ROOT)[0]
    package = patching.installed_file(pin).parents[2]
    assert vendor.main(["port", str(package), "--root", str(ROOT)]) == 0, capsys.readouterr().out


# -- the result, tested ------------------------------------------------------------------------


@pytest.fixture
def testable(repository):
    """The toy repository with guards that look at the built file and at the release in use."""
    (repository / "tests" / "test_toy.py").write_text(
        "from importlib.metadata import version\nfrom pathlib import Path\n\n\n"
        "def test_off():\n"
        f"    assert version({toy.NAME!r}) == '2.0'\n\n\n"
        "def test_on():\n"
        f"    assert 'x = self.enter(x)\\n        return x' in Path({toy.VENDORED!r}).read_text()\n"
    )
    return repository


def port_and_test(vendor, repository: Path, text: str, *options: str) -> int:
    """Like port, onto a release that can be imported."""
    toy.write_distribution(repository.parent / "next", text, version="2.0")
    (repository.parent / "next" / toy.NAME / "__init__.py").write_text("")
    return vendor.main(
        ["port", str(repository.parent / "next"), "--root", str(repository), "--test", *options]
    )


def test_the_guards_run_on_the_result(vendor, testable, capfd):
    before = sorted(testable.rglob("*"))
    assert port_and_test(vendor, testable, MOVED) == 0
    output = capfd.readouterr().out
    assert "2 passed" in output
    assert "the tests pass under toy_upstream_package 2.0" in output
    assert sorted(testable.rglob("*")) == before, "only the copy is touched"


def test_a_failing_guard_is_a_failure(vendor, testable, capfd):
    text = INSERTED.replace("return x", "return x  # theirs")
    assert port_and_test(vendor, testable, text, "--place") == 1
    output = capfd.readouterr().out
    assert "1 failed, 1 passed" in output
    assert "the tests FAIL under toy_upstream_package 2.0" in output


def test_the_guards_can_be_narrowed_down(vendor, testable, capfd):
    assert port_and_test(vendor, testable, MOVED, "test_off") == 0
    assert "1 passed, 1 deselected" in capfd.readouterr().out


def test_conflicts_are_not_tested(vendor, testable, capfd):
    assert port_and_test(vendor, testable, CHANGED) == 1
    captured = capfd.readouterr()
    assert "Not tested: place the conflicts first" in captured.err
    assert "passed" not in captured.out


def test_a_release_that_does_not_import_says_what_it_needs(vendor, testable, capfd):
    assert port(vendor, testable, MOVED, "--test") == 1
    assert "(ImportError: building must not import upstream)" in capfd.readouterr().err


# -- real releases -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=OTHER_RELEASES)
def release(request, tmp_path_factory) -> Path:
    """A folder with that release of transformers; torch and the rest are this environment's."""
    folder = tmp_path_factory.mktemp("release")
    command = [
        sys.executable, "-m", "pip", "install", "--retries=1", "--timeout=60", "--no-deps",
        "--no-compile", "--target", str(folder), f"transformers=={request.param}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the package index is out of reach: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.slow
def test_another_release_merges_as_git_would(release, tmp_path):
    for pin in patching.read_pins(ROOT):
        theirs = patching.relocate((release / pin.upstream).read_text("utf-8"), pin.package)
        _, hunks = patching.read_patch(ROOT, pin)
        compare_with_git(tmp_path, patching.upstream_text(pin), theirs, hunks)


@pytest.mark.slow
def test_another_release_passes_the_tests_that_guard_the_patches(vendor, release, capfd):
    assert vendor.main(["port", str(release)]) == 1
    report = capfd.readouterr().out
    for pin in patching.read_pins(ROOT):
        assert f"{pin.patch}: " in report
    assert "0 placed, 3 conflicts" in report
    assert "in LlavaModel.get_image_features: upstream has 3 other lines there" in report
    assert "in Qwen2VLForConditionalGeneration.forward: the line below it changed" in report
    assert "in LlavaNextModel.get_image_features: upstream has 1 other lines there" in report

    # Of the guards' files, the tests that the headers name: the quick core.
    prose = [patching.read_patch(ROOT, pin)[0] for pin in patching.read_pins(ROOT)]
    guards = {
        test for text in prose for _, test in headers.guards(headers.parse(text)["Guarded by"])
    }
    code = vendor.main(["port", str(release), "--place", "--test", " or ".join(sorted(guards))])
    output = capfd.readouterr().out
    assert code == 0, output
    assert "3 placed, 0 conflicts" in output
    assert f"the tests pass under transformers {release_version(release)}" in output


def release_version(release: Path) -> str:
    return porting.find_version(release / "transformers", "transformers")
