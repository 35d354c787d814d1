"""The diff on a terminal, in colour and through a pager; elsewhere as it always was."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from causalmm.cli import pager

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "vendor.py"
CODE = re.compile(r"\x1b\[\d*m")
LINES = ["--- a/x", "+++ b/x", "@@ -1,2 +1,2 @@", " same", "-old", "+new", "---x", ""]
COLORED = (
    "\x1b[1m--- a/x\x1b[m\n\x1b[1m+++ b/x\x1b[m\n\x1b[36m@@ -1,2 +1,2 @@\x1b[m\n same\n"
    "\x1b[31m-old\x1b[m\n\x1b[32m+new\x1b[m\n\x1b[31m---x\x1b[m\n\n"
)
PLAIN = "".join(f"{line}\n" for line in LINES)
MARK = "sed 's/^/PAGED /'"


@pytest.fixture(scope="module")
def plain():
    """The diff as it comes from a pipe."""
    return subprocess.run(
        [sys.executable, SCRIPT, "diff"], capture_output=True, check=True, encoding="utf-8"
    ).stdout


def on_terminal(*options, interrupt_at=None, **environment):
    """Exit code and output of the diff on a terminal of its own; no variable of ours but these."""
    ours = ("PAGER", "GIT_PAGER", "LESS", "NO_COLOR", "TERM")
    settings = {name: value for name, value in os.environ.items() if name not in ours}
    settings |= {"TERM": "xterm"} | environment
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, str(SCRIPT), "diff", *options], settings)
    said = b""
    while True:
        try:
            part = os.read(terminal, 2**16)
        except OSError:  # what Linux says once the last writer is gone
            break
        if not part:
            break
        said += part
        if interrupt_at is not None and interrupt_at in said:
            os.write(terminal, b"\x03")
            interrupt_at = None
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said.decode().replace("\r\n", "\n")


def test_it_is_paged_and_coloured(plain):
    code, said = on_terminal(PAGER=MARK)
    assert code == 0
    lines = said.splitlines()
    assert all(line.startswith("PAGED ") for line in lines)
    said = "".join(f"{line.removeprefix('PAGED ')}\n" for line in lines)
    assert CODE.sub("", said) == plain
    for line in said.splitlines():
        bare = CODE.sub("", line)
        assert ("\x1b[32m" in line) == (bare.startswith("+") and not bare.startswith("+++ "))
        assert ("\x1b[36m" in line) == bare.startswith("@@")


@pytest.mark.parametrize(
    ("options", "environment", "paged", "colored"),
    [
        ([], {"PAGER": "false", "GIT_PAGER": MARK}, True, True),
        ([], {"PAGER": "cat"}, False, True),
        ([], {"PAGER": ""}, False, True),
        ([], {"PAGER": MARK, "NO_COLOR": "1"}, True, False),
        ([], {"PAGER": MARK, "NO_COLOR": ""}, True, True),
        ([], {"PAGER": MARK, "TERM": "dumb"}, False, False),
        (["--no-pager"], {"PAGER": MARK}, False, True),
        (["--color", "never"], {"PAGER": MARK}, True, False),
        (["--color=always"], {"PAGER": MARK, "NO_COLOR": "1"}, True, True),
        (["--color", "--no-pager"], {"TERM": "dumb"}, False, True),
    ],
)
def test_who_has_a_say(plain, options, environment, paged, colored):
    code, said = on_terminal(*options, **environment)
    assert code == 0
    assert said.startswith("PAGED ") == paged
    assert ("\x1b[32m" in said) == colored
    assert CODE.sub("", said).replace("PAGED ", "") == plain


def test_without_a_word_the_pager_is_set_up_as_by_git():
    show = "cat >/dev/null; echo $LESS $LV"
    assert on_terminal(PAGER=show) == (0, "FRX -c\n")
    assert on_terminal(PAGER=show, LESS="S") == (0, "S -c\n")


def test_less_is_the_pager(tmp_path):
    less = tmp_path / "less"
    less.write_text("#!/bin/sh\nexec sed 's/^/LESS /'\n")
    less.chmod(0o755)
    code, said = on_terminal(PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert code == 0
    assert said.startswith("LESS ")


def test_without_any_pager_it_is_printed(plain, tmp_path):
    assert on_terminal("--color", "never", PATH=str(tmp_path)) == (0, plain)


def test_a_pager_that_is_not_there_keeps_nothing_back(plain):
    code, said = on_terminal("--color", "never", PAGER="no-such-pager")
    assert code == 0
    complaint, _, rest = said.partition("\n")
    assert "no-such-pager" in complaint
    assert rest == plain


def test_a_pager_may_stop_reading():
    assert on_terminal("--color", "never", PAGER="head -n 1 | cut -c -4") == (0, "--- \n")


def test_an_interrupt_is_for_the_pager():
    wait = "trap 'echo once more; exit' INT; cat >/dev/null; echo here; sleep 20"
    begun = time.monotonic()
    code, said = on_terminal(PAGER=wait, interrupt_at=b"here")
    assert code == 0
    assert "once more" in said
    assert "Traceback" not in said
    assert "interrupted" not in said
    assert time.monotonic() - begun < 15


def test_a_pipe_gets_no_colour_and_no_pager(monkeypatch, capsys):
    monkeypatch.setenv("PAGER", MARK)
    monkeypatch.setenv("TERM", "xterm")
    pager.show_diff(LINES)
    assert capsys.readouterr().out == PLAIN
    pager.show_diff(LINES, color="always")
    assert capsys.readouterr().out == COLORED


def test_interrupts_are_ours_again_after_the_pager(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("PAGER", "cat >/dev/null")
    before = signal.getsignal(signal.SIGINT)
    pager.show_diff(LINES)
    assert signal.getsignal(signal.SIGINT) is before
