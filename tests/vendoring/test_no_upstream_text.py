"""The repository holds no upstream source: no ten code lines in a row are upstream's."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from causalmm.vendoring import patching

ROOT = Path(__file__).resolve().parents[2]
RUN = 10


def code_lines(text: str) -> list[str]:
    """Lines that say something, whatever their indentation and a diff's leading sign."""
    stripped = (line.removeprefix("+").removeprefix("-").strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def runs(text: str) -> Iterator[tuple[str, ...]]:
    lines = code_lines(text)
    return (tuple(lines[at : at + RUN]) for at in range(len(lines) - RUN + 1))


def upstream_files() -> list[Path]:
    """All of the patched models' folders, and what a decoding method is most likely to copy."""
    files = []
    for pin in patching.read_pins(ROOT):
        files += patching.installed_file(pin).parent.glob("*.py")
    package = patching.installed_file(pin).parents[2]
    files += package.glob("generation/*.py")
    files += package.glob("integrations/*attention*.py")
    return files + [package / "masking_utils.py", package / "cache_utils.py"]


@pytest.fixture(scope="module")
def upstream_runs() -> set[tuple[str, ...]]:
    return {run for file in upstream_files() for run in runs(file.read_text(encoding="utf-8"))}


def repository_texts() -> Iterator[tuple[str, str]]:
    """Tracked files and those that would be: untracked and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (data := path.read_bytes()):
            yield name, data.decode("utf-8", errors="replace")


def test_no_file_shares_ten_code_lines_with_upstream(upstream_runs):
    shared = {
        name: run[0]
        for name, text in repository_texts()
        for run in runs(text)
        if run in upstream_runs
    }
    assert not shared


def test_the_scan_would_notice(upstream_runs):
    pin = patching.read_pins(ROOT)[0]
    lines = code_lines(patching.installed_file(pin).read_text(encoding="utf-8"))[100:110]
    copied = "\n\n    # a remark\n".join(f"+        {line}" for line in lines)
    assert set(runs(copied)) <= upstream_runs
    assert not set(runs("ours\n" + copied.replace(lines[4], "ours"))) & upstream_runs
