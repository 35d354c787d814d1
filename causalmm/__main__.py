"""The console script `causalmm`, and `python -m causalmm`: one subcommand for each of COMMANDS.

Nothing is imported before it is known which subcommand is wanted, so that help takes no time.
Tests: tests/cli/test_console.py.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from causalmm.cli.terminal import exit_code
from causalmm.errors import FailureError, RequestError

COMMANDS = {
    "generate": ("causalmm.cli.generate:main", "ask a model about images or a video"),
    "chat": ("causalmm.cli.generate:main_chat", "talk about images in the terminal"),
    "app": ("causalmm.app.command:main", "compare answers on a page in the browser"),
    "batch": ("causalmm.cli.generate:main_batch", "answer a file of questions into another"),
    "data": ("causalmm.evaluation.data.command:main", "prepare and check a benchmark's data"),
    "evaluate": ("causalmm.evaluation.commands:main", "run, score, compare and export"),
    "reproduce": ("causalmm.reproduce.command:main", "make a table of a paper again"),
    "diagnose": ("causalmm.evaluation.diagnosis.command:main", "find out which layers to edit"),
    "visualize": ("causalmm.figures.command:main", "draw what the method does"),
    "serve": ("causalmm.serve.command:main", "answer over HTTP, in batches"),
    "vendor": ("causalmm.vendoring.command:main", "build and maintain the patched files"),
}
"""By the name of a subcommand: "module:function", and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    return exit_code(lambda: _run(sys.argv[1:] if argv is None else list(argv)))


def _run(argv: list[str]) -> int:
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        try:
            print(f"causalmm {version('causalmm')}")
        except PackageNotFoundError:
            raise FailureError(
                "causalmm is not installed: pyproject.toml has its version"
            ) from None
        return 0
    if name not in COMMANDS:
        raise RequestError(f"unknown command {name!r}: expected one of {', '.join(COMMANDS)}")
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(import_module(module), function)(rest, prog=f"causalmm {name}")


def _help() -> str:
    lines = "\n".join(f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "usage: causalmm [--version] COMMAND ...\n\n"
        f"CausalMM decoding for vision-language models.\n\n{lines}\n\n"
        "`causalmm COMMAND --help` lists the flags of a command."
    )


if __name__ == "__main__":
    raise SystemExit(main())
