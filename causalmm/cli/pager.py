"""A diff on standard output; on a terminal in colour and through a pager, as git shows one.

Held by tests/cli/test_pager.py.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable

COLOR = ("auto", "always", "never")
"""When to colour: auto is on a terminal, where NO_COLOR is not set."""

_BOLD, _RED, _GREEN, _CYAN = 1, 31, 32, 36
_CODES = {"--- ": _BOLD, "+++ ": _BOLD, "@@": _CYAN, "-": _RED, "+": _GREEN}
"""By how a line begins; the first that fits."""
_NOT_RUN = (126, 127)
"""What a shell returns for a command that it cannot run or find."""


def show_diff(lines: Iterable[str], *, color: str = "auto", paged: bool = True) -> None:
    """Write the lines, without their ends, of a unified diff.

    `color` is one of COLOR. `paged`: on a terminal, through GIT_PAGER, PAGER or else less. Where
    standard output is no terminal, or a dumb one, there is neither, unless `color` is always.
    """
    terminal = (
        sys.stdout is not None  # as where the process was given none
        and sys.stdout.isatty()
        and os.environ.get("TERM", "dumb") != "dumb"
    )
    if color == "always" or (color == "auto" and terminal and not os.environ.get("NO_COLOR")):
        lines = map(_colored, lines)
    text = "".join(f"{line}\n" for line in lines)
    if not (text and terminal and paged and _page(text)):
        print(text, end="")


def _colored(line: str) -> str:
    for start, code in _CODES.items():
        if line.startswith(start):
            return f"\x1b[{code}m{line}\x1b[m"
    return line


def _page(text: str) -> bool:
    """Give the text to the pager. False: there is none."""
    usual = "less" if shutil.which("less") else "cat"
    command = os.environ.get("GIT_PAGER", os.environ.get("PAGER", usual))
    if command in ("", "cat"):
        return False
    # As git has it: end at once if all fits the screen, let colours through, leave the text there.
    environment = {"LESS": "FRX", "LV": "-c"} | os.environ
    pager = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, env=environment)
    # A terminal interrupts us, too, but what to do then is for the pager to decide.
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pager.communicate(text.encode(sys.stdout.encoding, errors="replace"))
    finally:
        signal.signal(signal.SIGINT, interrupted)
    return pager.returncode not in _NOT_RUN
