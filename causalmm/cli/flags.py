"""The flags of the `generate` command; what a CausalMM setting defaults to is read from its class.

Held by tests/cli/test_generate_command.py.
"""

import argparse
import contextlib
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from causalmm.config import (
    ATTENTION,
    CONFIG_NAME,
    DTYPES,
    MODES,
    SITES,
    CausalMMConfig,
)
from causalmm.counterfactual.methods import LANGUAGE_METHODS, NORMALIZATIONS, VISION_METHODS
from causalmm.errors import RequestError
from causalmm.families.checkpoints import DEFAULT, DEMOS, FAMILIES
from causalmm.inputs.messages import LIMITS

MAX_NEW_TOKENS = 128
BATCH_SIZE = 4
RESET = "/reset"
"""What forgets the conversation of --chat."""

_EXCLUDED = {
    "messages": ("image", "video", "prompt", "chat"),
    "batch": ("image", "video", "prompt", "messages", "chat", "compare", "json"),
    "chat": ("prompt", "compare", "json"),
}
_NEEDED = {"batch": "out", "out": "batch", "batch_size": "batch", "retry_failed": "batch"}

_LAYER_FLAGS = ("--vision-layers", "--language-layers", "--windows")
_NEGATIVE_LAYERS = re.compile(r"-(\d|half|third)")


def parse_args(argv: Sequence[str], family: str | None = None) -> argparse.Namespace:
    """Flags as given: a setting that is not on the command line is not in the result.

    Raises RequestError for flags that cannot be read.
    """
    parser = Parser(
        prog=None if family is None else f"python -m {FAMILIES[family].package}.generate",
        description="Ask a vision-language model about images or a video, with CausalMM decoding.",
        epilog="CausalMM settings that are not given come from --config, or else from the "
        f"{CONFIG_NAME} beside the checkpoint, or else from the defaults shown.",
        allow_abbrev=False,
    )
    add_question(parser, family)
    _add_ways_to_ask(parser)
    _add_batch(parser)
    add_settings(parser)
    add_decoding(parser)
    add_running(parser)
    args = parser.parse_args(join_negative_layers(argv))
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
        help="Qwen2-VL: a video file, or a folder of frames in the order of their names; comes "
        "after the images",
    )
    parser.add_argument("--prompt", metavar="TEXT")
    parser.add_argument(
        "--messages",
        metavar="FILE",
        help="a whole conversation as JSON, in the form of qwen_vl_utils, in the place of --image, "
        "--video and --prompt",
    )
    for name, most in zip(LIMITS, ("least", "most"), strict=True):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=at_least(1),
            metavar="N",
            help=f"Qwen2-VL: the {most} pixels of each image or frame, where --messages does not "
            "say anything of its size (default: the checkpoint's)",
        )
    parser.add_argument(
        "--allow-network",
        action="store_true",
        help="fetch images and videos that are given as http(s) addresses",
    )
    add_model(parser, family)


def add_model(parser: argparse.ArgumentParser, family: str | None = None) -> None:
    """Which checkpoint."""
    demos = DEMOS if family is None else (FAMILIES[family].demo,)
    parser.add_argument(
        "--model",
        default=DEFAULT if family is None else demos[0],
        help=f"a folder, a hub id, {' or '.join(demos)} (default: %(default)s)",
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


def _add_batch(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "batch",
        "Greedy answers are those that each row gets alone. Sampled ones depend on --seed, on the "
        "row's place in the file and on --batch-size: the same three give the same answers again, "
        "also after an interruption.",
    )
    group.add_argument(
        "--batch",
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
    group.add_argument(
        "--batch-size",
        type=at_least(1),
        metavar="N",
        help=f"rows at a time (default: {BATCH_SIZE})",
    )
    add_retry_failed(group)


def add_retry_failed(parser: argparse.ArgumentParser) -> None:
    """Whether a run that goes on asks again what has failed."""
    parser.add_argument(
        "--retry-failed", action="store_true", help="ask again what has an error in --out"
    )


def add_settings(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """A flag for each field of `CausalMMConfig`, those `without` left out, and --config."""
    group = parser.add_argument_group("CausalMM", argument_default=argparse.SUPPRESS)

    def setting(name: str, **options: Any) -> None:
        if name in without:
            return
        text = options.pop("help", "")
        default = getattr(CausalMMConfig, name)
        if default is not None:
            text = f"{text} (default: {default})".strip()
        group.add_argument(f"--{name.replace('_', '-')}", help=text, **options)

    setting(
        "mode",
        choices=("plain", *MODES),
        help="branches decoded beside the factual one; plain: none",
    )
    setting("vision_method", choices=VISION_METHODS)
    setting("language_method", choices=LANGUAGE_METHODS)
    layers = '"all", a slice such as -8:, 10:20 or half:, or numbers such as 3,5'
    setting("vision_layers", metavar="LAYERS", help=layers)
    setting("language_layers", metavar="LAYERS", help="likewise")
    setting("gamma", type=float, metavar="G", help="contrast strength of every branch")
    setting("gamma_vision", type=float, metavar="G", help="of the vision branch only")
    setting("gamma_language", type=float, metavar="G", help="of the language branch only")
    setting(
        "epsilon", type=float, metavar="E", help="drop tokens below E x p(best); 0 keeps every one"
    )
    setting("draws", type=int, metavar="S", help="counterfactual draws that are averaged")
    setting("normalization", choices=NORMALIZATIONS)
    setting("site", choices=SITES, help="where vision is edited; features: LLaVA only")
    setting("seed", type=int, metavar="N", help="of the counterfactuals and of sampling")
    group.add_argument("--config", default=None, metavar="FILE", help="settings as a JSON file")


def add_decoding(parser: argparse.ArgumentParser, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
    """How tokens are chosen, and how many."""
    group = parser.add_argument_group(
        "decoding",
        "Greedy unless a sampling option is given; sampling options that are not given are off.",
        argument_default=argparse.SUPPRESS,
    )
    group.add_argument("--greedy", action="store_true", default=False, help="the default")
    group.add_argument("--temperature", type=number("> 0", lambda value: 0 < value < math.inf))
    group.add_argument("--top-p", type=number("in (0, 1]", lambda value: 0 < value <= 1))
    group.add_argument("--top-k", type=number(">= 0 (0: off)", lambda value: value >= 0, int))
    group.add_argument(
        "--max-new-tokens",
        type=at_least(1),
        default=max_new_tokens,
        metavar="N",
        help="(default: %(default)s)",
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Where and in which precision the model runs."""
    group = parser.add_argument_group("running")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="auto: float32 on a CPU, the checkpoint's own elsewhere (default: %(default)s)",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:N or mps; auto: cuda where there is one (default: %(default)s)",
    )
    group.add_argument(
        "--attn", choices=ATTENTION, default="sdpa", help="attention code (default: %(default)s)"
    )


def check_together(args: argparse.Namespace) -> None:
    """Raise RequestError for flags that contradict or miss each other."""
    given = {name for name, value in vars(args).items() if value not in (None, False)}
    for name, excluded in _EXCLUDED.items():
        for other in excluded:
            if {name, other} <= given:
                flag = other.replace("_", "-")
                raise RequestError(f"--{name} and --{flag} exclude each other")
    for name, needed in _NEEDED.items():
        if name in given and needed not in given:
            raise RequestError(f"--{name.replace('_', '-')} needs --{needed}")
    if set(LIMITS) <= given and args.min_pixels > args.max_pixels:
        raise RequestError(
            f"--min-pixels {args.min_pixels} is more than --max-pixels {args.max_pixels}"
        )
    if given & {"messages", "batch"}:
        return
    missing = [] if given & {"image", "video"} else ["--image"]
    missing += [] if given & {"prompt", "chat"} else ["--prompt"]
    if missing:
        raise RequestError(f"the following arguments are required: {', '.join(missing)}")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)


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


def join_negative_layers(argv: Sequence[str]) -> list[str]:
    """`--vision-layers -8:` as one argument: argparse takes -8: for an option."""
    joined: list[str] = []
    for text in argv:
        if joined and joined[-1] in _LAYER_FLAGS and _NEGATIVE_LAYERS.match(text):
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined
