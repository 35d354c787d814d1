"""The console script `causalmm`, and `python -m causalmm`: one subcommand for each of COMMANDS.

Nothing is imported before it is known which subcommand is wanted, so that help takes no time.
Tests: tests/cli/test_console.py.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from causalmm.cli.terminal import exit_code
from causalmm.errors import FailureError, RequestError


class Command(NamedTuple):
    """A subcommand: its function as "module:name", what it does, and further arguments for it."""

    target: str
    summary: str
    options: dict[str, Any] = {}


COMMANDS = {
    "generate": Command("causalmm.cli.generate:main", "ask a model about images or a video"),
    "chat": Command(
        "causalmm.cli.generate:main", "talk about images in the terminal", {"way": "chat"}
    ),
    "batch": Command(
        "causalmm.cli.generate:main", "answer a file of questions into another", {"way": "batch"}
    ),
    "evaluate": Command(
        "causalmm.evaluation.commands:main", "run, score and compare POPE, MME, VLind-Bench, CHAIR"
    ),
    "diagnose": Command(
        "causalmm.evaluation.diagnosis.command:main", "find out which layers to edit"
    ),
    "visualize": Command("causalmm.figures.command:main", "draw what the method does"),
    "vendor": Command("causalmm.vendoring.command:main", "build and maintain the patched files"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    return exit_code(lambda: _run(sys.argv[1:] if argv is None else list(argv)))


def _run(argv: list[str]) -> int:
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"causalmm {_version()}")
        return 0
    if name not in COMMANDS:
        raise RequestError(f"unknown command {name!r}: expected one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    module, _, function = command.target.partition(":")
    run = getattr(import_module(module), function)
    return run(rest, prog=f"causalmm {name}", **command.options)


def _help() -> str:
    lines = "\n".join(f"  {name:<10} {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: causalmm [--version] COMMAND ...\n\n"
        f"CausalMM decoding for vision-language models.\n\n{lines}\n\n"
        "`causalmm COMMAND --help` lists the flags of a command."
    )


def _version() -> str:
    try:
        return version("causalmm")
    except PackageNotFoundError:
        raise FailureError("causalmm is not installed: its version is in pyproject.toml") from None


if __name__ == "__main__":
    raise SystemExit(main())
