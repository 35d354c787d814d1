"""The diff on a terminal, in colour and through a pager; elsewhere as it always was."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from causalmm.cli import pager

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "vendor.py"
CODE = re.compile(r"\x1b\[\d*m")
LINES = ["--- a/x", "+++ b/x", "@@ -1,2 +1,2 @@", " same", "-old", "+new", ""]
PLAIN = "".join(f"{line}\n" for line in LINES)
MARK = "sed s/^/PAGED:/"


@pytest.fixture(scope="module")
def plain():
    """The diff as it comes from a pipe."""
    return subprocess.run(
        [sys.executable, SCRIPT, "diff"], capture_output=True, check=True, encoding="utf-8"
    ).stdout


def on_terminal(*options, **environment):
    """Exit code and output of the diff on a terminal of its own; no variable of ours but these."""
    ours = ("PAGER", "LESS", "NO_COLOR", "TERM")
    settings = {name: value for name, value in os.environ.items() if name not in ours}
    settings |= {"TERM": "xterm"} | environment
    child, terminal = pty.fork()
    if child == 0:
        signal.alarm(60)
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
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("options", "environment", "paged", "colored"),
    [
        ([], {"PAGER": MARK}, True, True),
        ([], {"PAGER": MARK, "NO_COLOR": "1"}, True, False),
        (["--no-pager"], {"PAGER": MARK}, False, True),
        (["--no-pager"], {"NO_COLOR": "1"}, False, False),
    ],
)
def test_pager_and_colour_on_a_terminal(plain, options, environment, paged, colored):
    code, said = on_terminal(*options, **environment)
    assert code == 0
    lines = said.splitlines()
    assert all(line.startswith("PAGED:") == paged for line in lines)
    assert CODE.sub("", said).replace("PAGED:", "") == plain
    for line in lines:
        bare = CODE.sub("", line).removeprefix("PAGED:")
        added = bare.startswith("+") and not bare.startswith("+++ ")
        assert ("\x1b[32m" in line) == (colored and added)


def test_a_pager_may_stop_reading():
    code, said = on_terminal(NO_COLOR="1", PAGER="head -n 1")
    assert code == 0
    assert said.startswith("--- a/")
    assert said.count("\n") == 1


def test_a_pipe_gets_no_colour_and_no_pager(monkeypatch, capsys):
    monkeypatch.setenv("PAGER", MARK)
    monkeypatch.setenv("TERM", "xterm")
    pager.show_diff(LINES)
    assert capsys.readouterr().out == PLAIN
