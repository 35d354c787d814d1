"""From lmms-eval's --model_args to a checked request.

A model argument is a flag of the `generate` command without its dashes (gamma=0.5,
language_layers=half:); `pretrained` is its --model, `batch_size` how many requests at most are
decoded together.
Nothing here needs lmms-eval or loads torch. Tests: tests/lmms/test_lmms_eval.py.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from causalmm.cli.flags import (
    RUNNING,
    Parser,
    add_batch_size,
    add_running,
    add_settings,
    flag_name,
)
from causalmm.cli.request import SETTINGS, Request, find_model
from causalmm.errors import RequestError
from causalmm.families.registry import families, find
from causalmm.lmms_eval.decoding import MAX_NEW_TOKENS

NAMES = ("pretrained", "config", "preset", *SETTINGS, *RUNNING, "batch_size")


def model_names() -> dict[str, str]:
    """Names for --model, by family."""
    return {family: f"causalmm_{family}" for family in families()}


def read_arguments(given: Mapping[str, Any]) -> argparse.Namespace:
    """Model arguments as the flags they stand for, those that are None left out.

    Raises RequestError for an argument that is unknown, missing or cannot be read.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in NAMES:
            raise RequestError(
                f"unknown model argument {name!r}: expected one of {', '.join(NAMES)}"
            )
    if "pretrained" not in given:
        raise RequestError("the model argument pretrained is missing: a folder, hub id or demo")
    parser = Parser(prog="--model_args", add_help=False)
    parser.add_argument("--pretrained", dest="model")
    add_settings(parser)
    add_running(parser)
    add_batch_size(parser, 1)
    # With an equals sign, since -8: would be taken for a flag.
    flags = [f"{flag_name(name)}={_text(name, value)}" for name, value in given.items()]
    try:
        args = parser.parse_args(flags)
    except RequestError as error:
        raise RequestError(f"model {error}") from error
    args.max_new_tokens = MAX_NEW_TOKENS
    return args


def find_request(args: argparse.Namespace, family: str) -> Request:
    """The request of these arguments on the model of a family.

    Raises RequestError for a wrong one, FailureError where a hub cannot be reached.
    """
    request = find_model(args)
    if request.family != family:
        raise RequestError(
            f"{args.model} is a {find(request.family).title} checkpoint: "
            f"use --model {model_names()[request.family]}"
        )
    return request


def own_device(name: str, local_index: int, cuda: bool) -> str:
    """The device of one process among several of a machine: a GPU each, where it has such."""
    return f"cuda:{local_index}" if cuda and name in ("auto", "cuda") else name


def _text(name: str, value: Any) -> str:
    """A value as a command line has it: lmms-eval makes numbers of what looks like one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if isinstance(value, str) and name.endswith(("_layers", "_heads")):
        # Around several numbers, whose commas would otherwise end the argument.
        return value.strip("'\"[] ")
    return str(value)
