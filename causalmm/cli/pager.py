"""A diff on standard output; on a terminal in colour and through a pager.

Tests: tests/cli/test_pager.py.
"""

import os
import sys
from collections.abc import Iterable

import click

_STYLES = {
    "--- ": {"bold": True},
    "+++ ": {"bold": True},
    "@@": {"fg": "cyan"},
    "-": {"fg": "red"},
    "+": {"fg": "green"},
}
"""By how a line begins; the first that fits."""


def show_diff(lines: Iterable[str], *, paged: bool = True) -> None:
    """Write the lines, without their ends, of a unified diff.

    On a terminal in colour, unless NO_COLOR is set, and, if `paged`, through PAGER or else less.
    """
    terminal = sys.stdout is not None and sys.stdout.isatty()
    text = "\n".join(map(_styled, lines))
    color = terminal and not os.environ.get("NO_COLOR")
    if text and terminal and paged:
        click.echo_via_pager(text, color=color)
    elif text:
        click.echo(text, color=color)


def _styled(line: str) -> str:
    style = next((style for start, style in _STYLES.items() if line.startswith(start)), {})
    return click.style(line, **style) if style else line
