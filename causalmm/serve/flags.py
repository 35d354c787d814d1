"""The flags of `causalmm serve`: the service's options, the model, and defaults for its answers.

Nothing here loads torch or Ray. Tests: tests/serve/test_options.py.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from causalmm.cli.flags import (
    MAX_NEW_TOKENS,
    SETTINGS_EPILOG,
    Parser,
    add_fields,
    add_max_new_tokens,
    add_model,
    add_pixel_limits,
    add_running,
    add_settings,
)
from causalmm.errors import RequestError
from causalmm.serve.options import ServeOptions

KEY_VARIABLE = "CAUSALMM_API_KEY"


def parse_args(argv: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Flags as given. Raises RequestError for what cannot be read."""
    parser = Parser(
        prog=prog,
        description="Answer over HTTP, in the form of OpenAI's chat completions, with batches and "
        "replicas of the model on Ray Serve (docs/serve.md).",
        epilog=SETTINGS_EPILOG + " Requests may have settings of their own.",
    )
    add_model(parser)
    add_pixel_limits(parser)
    service = parser.add_argument_group("service", argument_default=argparse.SUPPRESS)
    add_fields(service, ServeOptions)
    service.add_argument(
        "--api-key",
        default=None,
        metavar="KEY",
        help=f"that requests must have; seen by others of this machine, unlike --api-key-file and "
        f"the environment variable {KEY_VARIABLE}",
    )
    service.add_argument("--api-key-file", default=None, metavar="FILE", help="holds the key")
    service.add_argument(
        "--ray-address",
        default=None,
        metavar="ADDRESS",
        help="of a Ray cluster that runs already (default: one of its own on this machine)",
    )
    add_max_new_tokens(service, MAX_NEW_TOKENS, "of an answer whose request has no max_tokens")
    add_settings(parser)
    add_running(parser)
    return parser.parse_args(argv)


def read_options(args: argparse.Namespace) -> ServeOptions:
    """The service's options. Raises RequestError for wrong ones."""
    names = [each.name for each in fields(ServeOptions) if "flag" in each.metadata]
    given = {name: getattr(args, name) for name in names if name in args}
    if {"replicas", "autoscale"} <= given.keys():
        raise RequestError("--replicas and --autoscale exclude each other")
    try:
        return ServeOptions(**given, api_key=_key(args))
    except ValueError as error:
        raise RequestError(str(error)) from error


def _key(args: argparse.Namespace) -> str | None:
    if args.api_key is not None and args.api_key_file is not None:
        raise RequestError("--api-key and --api-key-file exclude each other")
    if args.api_key is not None:
        return args.api_key
    if args.api_key_file is None:
        return os.environ.get(KEY_VARIABLE)
    try:
        return Path(args.api_key_file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--api-key-file {args.api_key_file} cannot be read") from error
