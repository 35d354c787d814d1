"""One list of pins, and a wheel that works where it is installed."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from causalmm.families.registry import families
from causalmm.vendoring import patching

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("causalmm", *(family.package for family in families().values()))
ENVIRONMENTS = ("causalmm_llava", "causalmm_qwen2vl")


LMMS_EVAL = "env/requirements-lmms-eval.txt"
APP = "env/requirements-app.txt"
SERVE = "env/requirements-serve.txt"
OLDEST = "env/requirements-oldest.txt"
PIN = r"^[\w-]+==[\w.]+"
OLDER_UNDER_LMMS_EVAL = {"av", "filelock", "protobuf"}


def requirement_sections(
    name: str = "env/requirements.txt",
) -> tuple[dict[str, str], dict[str, str]]:
    """What a file of requirements pins: to run, and to build and test."""
    _, run, develop = re.split(r"^# -- .*$", read(name), flags=re.MULTILINE)
    return pins(run.split()), pins(develop.split())


def pins(requirements: list[str]) -> dict[str, str]:
    return dict(requirement.split("==") for requirement in requirements)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def repository_files() -> list[str]:
    """Tracked files, and untracked ones that are not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# -- pins --------------------------------------------------------------------------------------


def test_pyproject_asks_for_ranges_that_begin_with_what_was_tried():
    lines = [line for line in read(OLDEST).splitlines() if not line.startswith("#")]
    expected = {
        name: f"=={version}" if name == "transformers" else f">={version}"
        for name, version in pins(lines).items()
    }
    project = tomllib.loads(read("pyproject.toml"))["project"]
    asked = [Requirement(each) for each in project["dependencies"]]
    assert {each.name: str(each.specifier) for each in asked} == expected


@pytest.mark.parametrize("name", ["env/requirements.txt", LMMS_EVAL])
def test_what_is_pinned_lies_within_the_ranges(name):
    project = tomllib.loads(read("pyproject.toml"))["project"]
    run, develop = requirement_sections(name)
    assert {Requirement(each).name for each in project["dependencies"]} <= run.keys()
    extras = {} if name == LMMS_EVAL else project["optional-dependencies"]
    asked = [*project["dependencies"], *extras.get("figures", []), *extras.get("data", [])]
    for each in map(Requirement, asked):
        assert each.specifier.contains((run | develop)[each.name]), each


def test_the_extra_of_lmms_eval_pins_what_its_requirements_pin():
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert pins(extras["lmms-eval"]).items() <= requirement_sections(LMMS_EVAL)[0].items()


@pytest.mark.parametrize(("extra", "file"), [("app", APP), ("serve", SERVE)])
def test_what_is_pinned_for_an_extra_lies_within_it(extra, file):
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    pinned = pins(re.findall(PIN, read(file), re.MULTILINE)) | requirement_sections()[1]
    for each in map(Requirement, extras[extra]):
        assert each.specifier.contains(pinned[each.name]), each


def test_the_environment_of_lmms_eval_differs_only_where_it_must():
    run, develop = requirement_sections()
    there, build = requirement_sections(LMMS_EVAL)
    assert {name for name in run if run[name] != there.get(name)} == OLDER_UNDER_LMMS_EVAL
    assert there.keys() - run.keys() == {"lmms-eval", "datasets"}
    assert build.items() <= develop.items()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_conda_environments_pin_what_requirements_pin(name):
    environment = yaml.safe_load(read(f"env/{name}.yml"))
    assert environment["name"] == name
    *conda, pip_section = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    *pinned, project = pip_section["pip"]
    assert pinned[0].startswith("torch==")
    assert pins(pinned) == requirement_sections()[0]
    # Relative to the file's folder, where conda runs pip.
    assert project == "-e .."


def test_the_patched_release_is_the_pinned_one():
    pinned = {pin.distribution: pin.version for pin in patching.read_pins(ROOT)}
    assert pinned == {"transformers": requirement_sections()[0]["transformers"]}


def test_no_other_pin_is_written_down_anywhere():
    known = {**requirement_sections()[0], **requirement_sections()[1]}
    wrong = []
    for name in set(repository_files()) - {LMMS_EVAL, OLDEST}:
        if (ROOT / name).suffix not in {
            ".md",
            ".toml",
            ".txt",
            ".yml",
            ".py",
            ".cfg",
            ".patch",
            "",
        }:
            continue
        for package, version in re.findall(r"(?<![\w-])([\w-]+)==(\d[\w.]*\w)", read(name)):
            if known.get(package, version) != version:
                wrong.append(f"{name}: {package}=={version}")
    assert not wrong


def test_everything_imported_is_pinned():
    known = {**requirement_sections()[0], **requirement_sections()[1]}
    known |= pins(re.findall("^[^#].*", read("env/requirements-authors.txt"), re.MULTILINE))
    known |= pins(re.findall("^[^#].*", read("env/requirements-docs.txt"), re.MULTILINE))
    known |= requirement_sections(LMMS_EVAL)[0]
    known |= pins(re.findall(PIN, read(APP), re.MULTILINE))
    known |= pins(re.findall(PIN, read(SERVE), re.MULTILINE))
    providers = importlib.metadata.packages_distributions()
    folders = ("tests", "benchmarks")
    own = {*PACKAGES, *(path.stem for path in ROOT.glob("*.py"))}
    own |= {path.stem for name in folders for path in (ROOT / name).rglob("*.py")}
    for name in repository_files():
        if not name.endswith(".py"):
            continue
        for module in imported_modules(name) - own - set(sys.stdlib_module_names):
            normalized = {x.lower().replace("_", "-") for x in providers.get(module, [module])}
            assert normalized & known.keys(), f"{name} imports {module}, which nothing pins"


def imported_modules(name: str) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(read(name))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module.partition(".")[0])
    return modules


def test_torch_is_installed_first_and_by_its_exact_version():
    makefile = read("Makefile")
    first, second = (
        makefile.index(text) for text in ("grep '^torch=='", "-r env/requirements.txt")
    )
    assert first < second
    assert re.search(r"^torch==\d", read("env/requirements.txt"), re.MULTILINE)


# -- files -------------------------------------------------------------------------------------


def test_licence_and_credits():
    assert "Apache License" in read("LICENSE")
    notice = read("NOTICE")
    assert "transformers" in notice
    assert "HuggingFace" in notice
    assert "2410.04780" in notice
    assert "Zhou" in notice


def test_vendored_files_are_not_tracked():
    assert not {pin.vendored for pin in patching.read_pins(ROOT)} & set(repository_files())


@pytest.mark.parametrize(
    "target", ["setup", "generate", "test", "lint", "docs", "demo-models", "clean"]
)
def test_the_makefile_knows(target, tmp_path):
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    subprocess.run(
        [make, "-n", target, f"VENV={tmp_path}"], cwd=ROOT, check=True, capture_output=True
    )


# -- the wheel ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The repository without git and without anything generated, as in a downloaded archive."""
    copy = tmp_path_factory.mktemp("source") / "causalmm"
    for name in repository_files():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return copy


@pytest.fixture(scope="module")
def wheel(source) -> Path:
    pip(["wheel", ".", "--no-deps", "--wheel-dir", "dist"], source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def pip(arguments: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_the_vendored_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for pin in patching.read_pins(ROOT):
            expected = patching.with_header(ROOT, pin, patching.patched_text(ROOT, pin))
            assert archive.read(pin.vendored).decode() == expected
    # Code and data (the demonstration models), tracked or about to be.
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    packaged = {
        name for name in repository_files() if name.startswith(tuple(f"{p}/" for p in PACKAGES))
    }
    assert packaged <= names
    assert {name.rpartition("/")[2] for name in names} >= {"LICENSE", "NOTICE"}
    others = ("tests/", "scripts/", "patches/", "docs/", "site/")
    assert not [name for name in names if name.startswith(others)]


@pytest.mark.slow
def test_python_finds_us_at_its_start_where_we_are_installed(source, wheel, tmp_path):
    # An editable install is a wheel too; so pip removes either's file with the rest.
    build = "import sys, hatchling.build as build; print(build.build_editable(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=source, capture_output=True, text=True, check=True,
    )  # fmt: skip
    editable = tmp_path / done.stdout.split()[-1]
    code = "import site, sys; site.addsitedir(sys.argv[1]); print(sys.modules['causalmm'].__file__)"
    for built, site, home in (
        (wheel, tmp_path / "whole", tmp_path / "whole"),
        (editable, tmp_path / "editable", source),
    ):
        with zipfile.ZipFile(built) as archive:
            archive.extractall(site)
        assert (site / "causalmm_torchvision.pth").read_text() == read("env/torchvision.pth")
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, str(site)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert Path(done.stdout.strip()).is_relative_to(home)


@pytest.mark.slow
def test_the_wheel_answers_in_a_fresh_environment(wheel, tmp_path):
    """Only the wheel is installed there; what it depends on lies behind it on the path."""
    fresh = tmp_path / "fresh"
    venv.create(fresh, symlinks=os.name == "posix")
    paths = sysconfig.get_paths(vars={"base": str(fresh), "platbase": str(fresh)})
    binaries, site = Path(paths["scripts"]), Path(paths["purelib"])
    pip(["--python", str(binaries / "python"), "install", "--no-deps", str(wheel)], tmp_path)
    # A folder that a .pth file names is searched, but not for .pth files of its own: no checkout
    # that is installed here comes along.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(
            [binaries / command[0], *command[1:]],
            cwd=tmp_path, env=environment | {"HF_HUB_OFFLINE": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import causalmm, llava_causalmm, qwen2vl_causalmm as q; print(causalmm, q)"
    assert run("python", "-c", code).count(str(site)) == 2
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert run("causalmm", "--version") == f"causalmm {version}\n"
    image = ROOT / "examples" / "llava_300041_helped.png"
    asked = ("--image", image, "--prompt", "What color is the mushroom?")
    assert run("causalmm", "generate", *asked) == "Purple\n"
    assert run("causalmm", "generate", *asked, "--model", "demo-qwen2vl").strip()


@pytest.mark.slow
def test_building_against_another_upstream_fails_with_one_sentence(source, tmp_path):
    copy = tmp_path / "changed"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("dist", "modeling_*.py"))
    manifest = copy / patching.MANIFEST
    sha = patching.read_pins(copy)[0].sha256
    manifest.write_text(manifest.read_text().replace(sha, "0" * 64))
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "is not the file the patches are written against" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
