"""Groups of flags that the commands share, and those of the `generate` command.

A flag for a CausalMM setting is made from the field's declaration in `CausalMMConfig`.
Tests: tests/cli/test_generate_command.py, tests/cli/test_settings.py.
"""

import argparse
import contextlib
import math
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from causalmm.config import ATTENTION, CONFIG_NAME, DTYPES, CausalMMConfig
from causalmm.errors import RequestError
from causalmm.families.registry import demos, find, titles
from causalmm.inputs.messages import LIMITS
from causalmm.presets.registry import PRESETS

MAX_NEW_TOKENS = 128
BATCH_SIZE = 4
RUNNING: dict[str, dict[str, Any]] = {
    "dtype": {
        "choices": DTYPES,
        "default": "auto",
        "help": "auto: float32 on a CPU, the checkpoint's own elsewhere (default: %(default)s)",
    },
    "device": {
        "default": "auto",
        "help": "auto, cpu, cuda, cuda:N or mps; auto: cuda where there is one (default: auto)",
    },
    "attn": {
        "choices": ATTENTION,
        "default": "sdpa",
        "help": "attention code (default: %(default)s)",
    },
}
"""Flags for where and in which precision a model runs, with their options of argparse."""
SETTINGS_EPILOG = (
    "CausalMM settings that are not given come from --preset, or else from --config, or else from "
    f"the {CONFIG_NAME} beside the checkpoint, or else from the defaults shown."
)
RESET = "/reset"
"""What forgets the conversation of --chat."""

_EXCLUDED = {
    "messages": ("image", "video", "prompt", "chat"),
    "batch": ("image", "video", "prompt", "messages", "chat", "compare", "json"),
    "chat": ("prompt", "compare", "json"),
}
_NEEDED = {"batch": "out", "out": "batch", "batch_size": "batch", "retry_failed": "batch"}

_NEGATIVE_LAYERS = re.compile(r"-(\d|half|third)")


def parse_args(
    argv: Sequence[str],
    family: str | None = None,
    *,
    prog: str | None = None,
    way: str | None = None,
) -> argparse.Namespace:
    """Flags as given: a setting that is not on the command line is not in the result.

    `way` "chat" stands for --chat; with "batch", the file of --batch is a positional argument.
    Raises RequestError for flags that cannot be read.
    """
    if prog is None and family is not None:
        prog = f"python -m {find(family).package}.generate"
    parser = Parser(
        prog=prog,
        description="Ask a vision-language model about images or a video, with CausalMM decoding.",
        epilog=SETTINGS_EPILOG,
    )
    add_question(parser, family)
    _add_ways_to_ask(parser)
    _add_batch(parser, "batch" if way == "batch" else "--batch")
    add_settings(parser)
    add_decoding(parser)
    add_running(parser)
    args = parser.parse_args(argv)
    args.chat = args.chat or way == "chat"
    check_together(args)
    return args


def add_question(parser: argparse.ArgumentParser, family: str | None = None) -> None:
    """Pictures, words and a model."""
    parser.add_argument(
        "--image", action="append", metavar="FILE", help="may be given several times"
    )
    parser.add_argument(
        "--video",
        metavar="PATH",
        help=f"{titles('video')}: a video file, or a folder of frames in the order of their names, "
        "two of which are a second; comes after the images",
    )
    parser.add_argument("--prompt", metavar="TEXT")
    parser.add_argument(
        "--messages",
        metavar="FILE",
        help="a whole conversation as JSON, in the form of qwen_vl_utils, in the place of --image, "
        "--video and --prompt",
    )
    add_pixel_limits(parser)
    parser.add_argument(
        "--allow-network",
        action="store_true",
        help="fetch images and videos that are given as http(s) addresses",
    )
    add_model(parser, family)


def add_pixel_limits(parser: argparse.ArgumentParser) -> None:
    """How large pictures are when the model sees them."""
    for name, most in zip(LIMITS, ("least", "most"), strict=True):
        parser.add_argument(
            flag_name(name),
            type=at_least(1),
            metavar="N",
            help=f"{titles(sized=True)}: the {most} pixels of each image or frame, where "
            "--messages does not say anything of its size (default: the checkpoint's)",
        )


def add_model(parser: argparse.ArgumentParser, family: str | None = None) -> None:
    """Which checkpoint."""
    packaged = demos() if family is None else (find(family).demo,)
    kinds = titles() if family is None else find(family).title
    parser.add_argument(
        "--model",
        default=packaged[0],
        required=packaged[0] is None,
        help=f"a folder or a hub id of {kinds}"
        + (f", or {' or '.join(packaged)} (default: %(default)s)" if packaged[0] else ""),
    )


def _add_ways_to_ask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat",
        action="store_true",
        help="talk about the pictures: prompts are read from standard input, one a line, until an "
        f"empty line; {RESET} forgets what was said. Every answer begins with the same --seed",
    )
    parser.add_argument("--compare", action="store_true", help="print the plain answer as well")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: answer, probability of each token, configuration, timings",
    )


def _add_batch(parser: argparse.ArgumentParser, flag: str) -> None:
    group = parser.add_argument_group(
        "batch",
        "Greedy answers are those that each row gets alone. Sampled ones depend on --seed, on the "
        "row's place in the file and on --batch-size: the same three give the same answers again, "
        "also after an interruption.",
    )
    group.add_argument(
        flag,
        metavar="FILE",
        help="ask many questions: JSON lines with image (a path, or a list of paths, relative to "
        "the current folder as --image is), prompt and, if wanted, id (default: the line's number)",
    )
    group.add_argument(
        "--out",
        metavar="FILE",
        help="JSON lines with id, image, prompt, and answer or error, in the order of the rows; "
        "what is there already is continued, if it is of the same --batch and settings",
    )
    # Without a default here: it needs --batch.
    add_batch_size(group, None, f"rows at a time (default: {BATCH_SIZE})")
    add_retry_failed(group)


def add_batch_size(
    parser: argparse.ArgumentParser, default: int | None, help: str | None = None
) -> None:
    """How many are decoded together."""
    parser.add_argument("--batch-size", type=at_least(1), default=default, metavar="N", help=help)


def add_retry_failed(parser: argparse.ArgumentParser) -> None:
    """Whether a run that goes on asks again what has failed."""
    parser.add_argument(
        "--retry-failed", action="store_true", help="ask again what has an error in --out"
    )


def add_settings(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """A flag for each field of `CausalMMConfig`, and --config and --preset; not those `without`."""
    group = parser.add_argument_group("CausalMM", argument_default=argparse.SUPPRESS)

    add_fields(group, CausalMMConfig, without)
    group.add_argument("--config", default=None, metavar="FILE", help="settings as a JSON file")
    if "preset" not in without:
        group.add_argument(
            "--preset",
            default=None,
            choices=tuple(PRESETS),
            help="a published method (docs/presets.md), in the place of --config and of the "
            "checkpoint's own settings",
        )


def add_fields(group: Any, declared: type, without: Collection[str] = ()) -> None:
    """A flag for each field of a dataclass that declares one (causalmm/config.py)."""
    for each in fields(declared):
        if "flag" in each.metadata and each.name not in without:
            default = "" if each.default in (None, ()) else f" (default: {each.default})"
            group.add_argument(
                flag_name(each.name), help=each.metadata["help"] + default, **each.metadata["flag"]
            )


def add_max_new_tokens(group: Any, default: int, help: str = "") -> None:
    """How long an answer may be."""
    group.add_argument(
        "--max-new-tokens",
        type=at_least(1),
        default=default,
        metavar="N",
        help=f"{help} (default: %(default)s)".lstrip(),
    )


def add_decoding(parser: argparse.ArgumentParser, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
    """How tokens are chosen, and how many."""
    group = parser.add_argument_group(
        "decoding",
        "Greedy unless a sampling option is given; sampling options that are not given are off.",
        argument_default=argparse.SUPPRESS,
    )
    group.add_argument("--greedy", action="store_true", help="the default")
    group.add_argument("--temperature", type=number("> 0", lambda value: 0 < value < math.inf))
    group.add_argument("--top-p", type=number("in (0, 1]", lambda value: 0 < value <= 1))
    group.add_argument("--top-k", type=number(">= 0 (0: off)", lambda value: value >= 0, int))
    group.add_argument(
        "--repetition-penalty",
        type=number("> 0 (1: off)", lambda value: 0 < value < math.inf),
        metavar="X",
        help="on adjusted logits; 1 is none (default: the checkpoint's, such as 1.05)",
    )
    add_max_new_tokens(group, max_new_tokens)


def add_running(parser: argparse.ArgumentParser) -> None:
    """Where and in which precision the model runs."""
    group = parser.add_argument_group("running")
    for name, options in RUNNING.items():
        group.add_argument(flag_name(name), **options)


def check_together(args: argparse.Namespace) -> None:
    """Raise RequestError for flags that contradict or miss each other."""
    given = {name for name, value in vars(args).items() if value not in (None, False)}
    for name, excluded in _EXCLUDED.items():
        for other in excluded:
            if {name, other} <= given:
                raise RequestError(f"--{name} and {flag_name(other)} exclude each other")
    for name, needed in _NEEDED.items():
        if name in given and needed not in given:
            raise RequestError(f"{flag_name(name)} needs --{needed}")
    if given & {"messages", "batch"}:
        return
    missing = [] if given & {"image", "video"} else ["--image"]
    missing += [] if given & {"prompt", "chat"} else ["--prompt"]
    if missing:
        raise RequestError(f"the following arguments are required: {', '.join(missing)}")


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated flags, and says what is wrong in one sentence without the usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but `--vision-layers -8:` is a flag and its value."""
        return super().parse_known_args(
            _join_negative(sys.argv[1:] if args is None else args), namespace
        )

    def print_help(self, file: Any = None) -> None:
        """As argparse does, which keeps silent where the output cannot be written."""
        (file or sys.stdout).write(self.format_help())

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)


def flag_name(name: str) -> str:
    """The flag of a setting or another name."""
    return f"--{name.replace('_', '-')}"


def number(
    expected: str, allowed: Callable[[Any], bool], kind: Callable[[str], Any] = float
) -> Callable[[str], Any]:
    """A type of argparse: a float, or the `kind` given, that is `allowed`."""

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if allowed(value := kind(text)):
                return value
        what = "an integer" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} {expected}")

    return parse


def at_least(least: int) -> Callable[[str], Any]:
    """A type of argparse: an integer that is not below `least`."""
    return number(f">= {least}", lambda value: value >= least, int)


def _join_negative(argv: Sequence[str]) -> list[str]:
    """`--vision-layers -8:` as one argument: argparse takes -8: for an option."""
    joined: list[str] = []
    for text in argv:
        follows_flag = joined and joined[-1].startswith("--") and "=" not in joined[-1]
        if follows_flag and _NEGATIVE_LAYERS.match(text):
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined
