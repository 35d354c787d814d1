"""The conda files' pip sections resolve on every Python the project claims, and on no older one.

pip resolves from metadata alone: nothing is installed and no wheel is downloaded. Markers such as
`python_version` are those of the Python that runs the test, which is a limit of pip's own
--python-version; wheels and requires-python are those of the version asked for.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
TOO_OLD = "3.10"
APART = ("requirements-lmms-eval.txt", "requirements-oldest.txt")
"""Files of environments of their own; all others are installed into one."""
# The first pip whose --dry-run takes metadata, not whole wheels (of which CUDA has gigabytes).
RESOLVER = "pip>=25.3"
LARGE = re.compile(r"Downloading \S+ \((?:\d+(?:\.\d+)? GB|\d{2,}(?:\.\d+)? MB)\)")


def pip_section(name: str) -> list[str]:
    """The pinned packages of one conda file, without the project itself."""
    environment = yaml.safe_load((ROOT / "env" / name).read_text(encoding="utf-8"))
    (section,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    return [requirement for requirement in section if not requirement.startswith("-e ")]


def test_both_environments_resolve_alike():
    names = sorted(path.name for path in ROOT.glob("env/*.yml"))
    assert names == ["causalmm_llava.yml", "causalmm_qwen2vl.yml"]
    first, second = map(pip_section, names)
    assert first == second
    # Held to env/requirements.txt by tests/test_packaging.py.
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", requirement) for requirement in first)


def test_the_project_asks_for_the_oldest_python_that_resolves():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={SUPPORTED[0]}"


def pinned(name: str) -> list[Requirement]:
    """What a file of requirements pins."""
    lines = (ROOT / "env" / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_no_two_files_of_the_development_environment_pin_one_package():
    files = [path.name for path in (ROOT / "env").glob("requirements*.txt")]
    together = sorted(set(files) - set(APART))
    assert len(together) == len(files) - len(APART)
    owners: dict[str, str] = {}
    for file in together:
        for each in pinned(file):
            assert str(each.specifier).startswith("=="), f"{file}: {each}"
            name = canonicalize_name(each.name)
            assert name not in owners, f"{each} is pinned in {owners[name]} and in {file}"
            owners[name] = file


def test_what_the_page_needs_is_there_and_its_contradictions_are_known():
    """requirements-app.txt is installed without dependencies, so nothing else checks them."""
    asked = [each.name for each in pinned("requirements-app.txt")]
    wrong = {}
    for name in asked:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed: make setup")
        for need in map(Requirement, needs):
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            found = importlib.metadata.version(need.name)
            if not need.specifier.contains(found, prereleases=True):
                wrong[need.name] = name
    assert wrong == {"pillow": "gradio", "tomlkit": "gradio"}


@pytest.fixture(scope="module")
def resolver(tmp_path_factory) -> Path:
    """A folder with a pip that knows how to resolve cheaply."""
    folder = tmp_path_factory.mktemp("resolver")
    command = [
        sys.executable, "-m", "pip", "install", "--retries=1", "--timeout=30", "--no-deps",
        "--target", str(folder / "pip"), RESOLVER,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the package index is out of reach: {done.stderr.strip().splitlines()[-1]}")
    return folder


def resolve(resolver: Path, python: str) -> tuple[int, str, Path]:
    """pip's exit code, what it said, and its report; stopped before it downloads anything large."""
    report = resolver / f"{python}.json"
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed",
        "--only-binary=:all:", "--use-feature=fast-deps", "--progress-bar=off",
        f"--python-version={python}", f"--target={resolver / 'nothing'}", f"--report={report}",
        f"--cache-dir={resolver / 'cache'}", *pip_section("causalmm_llava.yml"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(resolver / "pip")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if LARGE.search(line):
            process.kill()
            process.wait()
            pytest.skip(f"the index gives no metadata without the whole wheel: {line.strip()}")
    return process.wait(), "".join(said), report


@pytest.mark.slow
@pytest.mark.parametrize("python", SUPPORTED)
def test_the_pins_resolve(resolver, python):
    code, said, report = resolve(resolver, python)
    assert code == 0, said
    found = {
        entry["metadata"]["name"].lower().replace("_", "-"): entry["metadata"]["version"]
        for entry in json.loads(report.read_text())["install"]
    }
    for requirement in pip_section("causalmm_llava.yml"):
        name, version = requirement.split("==")
        # A local build (2.13.0+cpu) is the same release.
        assert found[name].partition("+")[0] == version
    assert not (resolver / "nothing").exists()


@pytest.mark.slow
def test_an_older_python_is_refused_for_its_age(resolver):
    code, said, _ = resolve(resolver, TOO_OLD)
    assert code != 0
    (transformers,) = [x for x in pip_section("causalmm_llava.yml") if "transformers" in x]
    assert f"No matching distribution found for {transformers}" in said
    assert f"{transformers.partition('==')[2]} Requires-Python >={SUPPORTED[0]}" in said
