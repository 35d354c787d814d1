"""A diff on standard output; on a terminal in colour and through a pager.

Tests: tests/cli/test_pager.py.
"""

import os
import sys
from collections.abc import Iterable

import click

COLOR = ("auto", "always", "never")
"""When to colour: auto is on a terminal, where NO_COLOR is not set."""

_STYLES = {
    "--- ": {"bold": True},
    "+++ ": {"bold": True},
    "@@": {"fg": "cyan"},
    "-": {"fg": "red"},
    "+": {"fg": "green"},
}
"""By how a line begins; the first that fits."""


def show_diff(lines: Iterable[str], *, color: str = "auto", paged: bool = True) -> None:
    """Write the lines, without their ends, of a unified diff.

    `color` is one of COLOR. `paged`: on a terminal, through PAGER or else less.
    """
    terminal = (
        sys.stdout is not None  # as where the process was given none
        and sys.stdout.isatty()
        and os.environ.get("TERM", "dumb") != "dumb"
    )
    if color == "always" or (color == "auto" and terminal and not os.environ.get("NO_COLOR")):
        lines = map(_styled, lines)
    text = "\n".join(lines)
    if text and terminal and paged:
        click.echo_via_pager(text, color=True)
    elif text:
        click.echo(text, color=True)


def _styled(line: str) -> str:
    for start, style in _STYLES.items():
        if line.startswith(start):
            return click.style(line, **style)
    return line
