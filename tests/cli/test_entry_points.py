"""However a command is cut short, by its reader, its user or a full disk, it says so properly."""

import argparse
import os
import runpy
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

from causalmm.cli.terminal import exit_code
from causalmm.errors import FailureError, RequestError

ROOT = Path(__file__).resolve().parents[2]
MODULES = ["causalmm", "llava_causalmm.generate", "qwen2vl_causalmm.generate", "causalmm.lmms_eval"]
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("scripts/*.py"))
BENCHMARKS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.glob("benchmarks/*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)
DIFF = ["scripts/vendor.py", "diff"]
# The first are short, the others more than a pipe or a buffer holds.
TALKATIVE = [["scripts/vendor.py", "check"], DIFF, ["benchmarks/table.py"]]
LOAD_TORCH = ("train_demo.py", "find_examples.py", "toy_results.py")
"""They import torch before they read their flags."""


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # The interpreter's own defaults: what is printed waits in a buffer.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def spawn(command, stdout):
    """Exit code and standard error of a command of Python."""
    done = subprocess.run(
        [sys.executable, *command], stdout=stdout, stderr=subprocess.PIPE, text=True
    )
    return done.returncode, done.stderr


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_all_are_known():
    packages = ("causalmm", "llava_causalmm", "qwen2vl_causalmm")
    paths = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    ends = [path for path in paths if 'if __name__ == "__main__"' in path.read_text("utf-8")]
    names = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ends}
    assert {name.removesuffix(".__main__") for name in names} == set(MODULES)
    assert DIFF[0] in SCRIPTS
    assert TALKATIVE[-1][0] in BENCHMARKS


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(each, marks=pytest.mark.slow if each.endswith(LOAD_TORCH) else ())
        for each in [*SCRIPTS, *MODULES[:3]]
    ],
)
def test_help_to_a_closed_pipe_ends_quietly(command):
    where = ["-m", command] if command in MODULES else [command]
    with closed_pipe() as closed:
        assert spawn([*where, "--help"], closed) == (141, "")


@pytest.mark.parametrize("command", TALKATIVE, ids=" ".join)
@pytest.mark.parametrize("buffered", [True, False])
def test_output_to_a_closed_pipe_ends_quietly(command, buffered):
    with closed_pipe() as closed:
        assert spawn(command if buffered else ["-u", *command], closed) == (141, "")


def test_a_reader_may_leave_early():
    with subprocess.Popen(
        [sys.executable, *DIFF], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().startswith(b"--- a/")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 141)  # 0: a pipe has room for all of it


def test_both_streams_may_be_closed():
    with closed_pipe() as closed:
        for said in (DIFF, DIFF[:1]):  # the second is a usage error
            done = subprocess.run([sys.executable, *said], stdout=closed, stderr=closed)
            assert done.returncode == 141


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_there_may_be_no_output():
    command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, *DIFF]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("command", [["scripts/generate.py", "--help"], *TALKATIVE], ids=" ".join)
def test_a_full_disk_is_a_failure(command):
    with open("/dev/full", "w") as full:
        code, said = spawn(command, full)
    assert (code, said) == (1, "error: the output cannot be written (No space left on device)\n")


@pytest.mark.parametrize("command", [*SCRIPTS, *BENCHMARKS, *MODULES])
def test_an_interrupt_ends_in_one_word(command, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    # All parse their flags, under the guard that everything after it is under, too.
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", interrupt)
    for name in ("lmms_eval", "lmms_eval.cli", "lmms_eval.cli.dispatch"):
        stand_in = types.ModuleType(name)
        stand_in.__spec__, stand_in.main = ModuleSpec(name, None), interrupt
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setattr(sys, "argv", [command, *(["generate"] if command == "causalmm" else [])])
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, f"{command}.__main__", raising=False)
    run = runpy.run_module if command in MODULES else runpy.run_path
    with pytest.raises(SystemExit) as ended:
        run(command, run_name="__main__")
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "code", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raising(RequestError("gamma -1:\nexpected more")), 2, "error: gamma -1: expected more\n"),
        (raising(FailureError("no")), 1, "error: no\n"),
        (raising(KeyboardInterrupt()), 130, "interrupted\n"),
        (raising(BrokenPipeError()), 141, ""),
        (lambda: Path("nowhere/x").read_text(), 1,
         "error: nowhere/x cannot be read or written (No such file or directory)\n"),
        (raising(OSError("no route")), 1, "error: no route\n"),
    ],
)  # fmt: skip
def test_exit_codes(run, code, said, capsys):
    assert exit_code(run) == code
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)


@pytest.mark.skipif(find_spec("lmms_eval") is not None, reason="lmms-eval is installed")
def test_lmms_eval_that_is_not_installed():
    code, said = spawn(["-m", "causalmm.lmms_eval"], subprocess.DEVNULL)
    assert code == 1
    assert said.startswith("error: lmms-eval is not installed: ")
    assert len(said.splitlines()) == 1
