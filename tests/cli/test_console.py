"""The console script: one table of subcommands, loaded when they are wanted."""

import os
import re
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from causalmm.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "numpy", "transformers", "torchvision", "PIL"}


def python(*command):
    """Standard output of this Python, without what an installed causalmm does at its start."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(code):
    return set(python("-c", f"{code}\nimport sys\nprint(*sys.modules)").splitlines()[-1].split())


def test_importing_causalmm_loads_nothing_heavy():
    assert not loaded("import causalmm") & HEAVY
    began = time.perf_counter()
    python("-c", "import causalmm")
    assert time.perf_counter() - began < 3  # 0.1 s, with room for a busy machine


def test_help_lists_every_command_and_loads_none():
    said = python("-m", "causalmm", "--help")
    for name, (_, summary) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", said, re.M)
    assert not loaded("from causalmm.__main__ import main\nmain(['--help'])") & {
        *HEAVY,
        "argparse",
        "causalmm.cli.flags",
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_under_its_name(name):
    said = python("-m", "causalmm", name, "--help")
    assert said.startswith(f"usage: causalmm {name} ")


def test_the_script_that_is_installed_is_this_one():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert list(scripts) == ["causalmm"]
    module, _, function = scripts["causalmm"].partition(":")
    assert getattr(import_module(module), function) is main


def test_version(capsys, monkeypatch):
    monkeypatch.setattr("causalmm.__main__.version", lambda name: f"1.2 of {name}")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "causalmm 1.2 of causalmm\n"


def test_a_version_that_is_not_known(capsys, monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("causalmm.__main__.version", version)
    assert main(["--version"]) == 1
    assert capsys.readouterr().err.startswith("error: causalmm is not installed")


def test_an_unknown_command_is_refused_with_those_there_are(capsys):
    assert main(["generat"]) == 2
    said = f"error: unknown command 'generat': expected one of {', '.join(COMMANDS)}\n"
    assert capsys.readouterr() == ("", said)


def test_without_a_command_help_is_shown(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: causalmm ")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["batch"], "the following arguments are required: FILE"),
        (["batch", "nowhere"], "--batch needs --out"),
        (["batch", "--out", "o", "nowhere"], "nowhere cannot be read (No such file or directory)"),
        (["chat", "--image", "i", "--prompt", "p"], "--chat and --prompt exclude each other"),
        (["chat"], "the following arguments are required: --image"),
        (["generate", "--mode", "both"], "argument --mode: invalid choice: 'both'"),
    ],
)
def test_wrong_flags_end_in_one_sentence(given, sentence, capsys):
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {sentence}")
    assert err.count("\n") == 1
