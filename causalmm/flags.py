"""The flags of the `generate` command; what a CausalMM setting defaults to is read from its class.

Held by tests/test_generate_command.py.
"""

import argparse
import contextlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from causalmm.checkpoints import DEFAULT, DEMOS, FAMILIES
from causalmm.config import (
    CONFIG_NAME,
    LANGUAGE_METHODS,
    MODES,
    NORMALIZATIONS,
    SITES,
    VISION_METHODS,
    CausalMMConfig,
)
from causalmm.errors import RequestError

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTION = ("sdpa", "eager")
MAX_NEW_TOKENS = 128

_LAYER_FLAGS = ("--vision-layers", "--language-layers")
_NEGATIVE_LAYERS = re.compile(r"-(\d|half|third)")


def parse_args(argv: Sequence[str], family: str | None = None) -> argparse.Namespace:
    """Flags as given: a setting that is not on the command line is not in the result.

    Raises RequestError for flags that cannot be read.
    """
    parser = _Parser(
        prog=None if family is None else f"python -m {FAMILIES[family].package}.generate",
        description="Ask a vision-language model about an image, with CausalMM decoding.",
        epilog="CausalMM settings that are not given come from --config, or else from the "
        f"{CONFIG_NAME} beside the checkpoint, or else from the defaults shown.",
        allow_abbrev=False,
    )
    _add_question(parser, family)
    _add_settings(parser)
    _add_decoding(parser)
    _add_running(parser)
    return parser.parse_args(_join_negative_layers(argv))


def _add_question(parser: argparse.ArgumentParser, family: str | None) -> None:
    demos = DEMOS if family is None else (FAMILIES[family].demo,)
    parser.add_argument("--image", required=True, metavar="FILE")
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    parser.add_argument(
        "--model",
        default=DEFAULT if family is None else demos[0],
        help=f"a folder, a hub id, {' or '.join(demos)} (default: %(default)s)",
    )
    parser.add_argument("--compare", action="store_true", help="print the plain answer as well")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: answer, probability of each token, configuration, timings",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("CausalMM", argument_default=argparse.SUPPRESS)

    def setting(name: str, **options: Any) -> None:
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


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "decoding",
        "Greedy unless a sampling option is given; sampling options that are not given are off.",
        argument_default=argparse.SUPPRESS,
    )
    group.add_argument("--greedy", action="store_true", default=False, help="the default")
    group.add_argument("--temperature", type=_number("> 0", lambda value: 0 < value < math.inf))
    group.add_argument("--top-p", type=_number("in (0, 1]", lambda value: 0 < value <= 1))
    group.add_argument("--top-k", type=_number(">= 0 (0: off)", lambda value: value >= 0, int))
    group.add_argument(
        "--max-new-tokens",
        type=_number(">= 1", lambda value: value >= 1, int),
        default=MAX_NEW_TOKENS,
        metavar="N",
        help="(default: %(default)s)",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
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


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)


def _number(
    expected: str, allowed: Callable[[Any], bool], kind: Callable[[str], Any] = float
) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if allowed(value := kind(text)):
                return value
        what = "an integer" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} {expected}")

    return parse


def _join_negative_layers(argv: Sequence[str]) -> list[str]:
    """`--vision-layers -8:` as one argument: argparse takes -8: for an option."""
    joined: list[str] = []
    for text in argv:
        if joined and joined[-1] in _LAYER_FLAGS and _NEGATIVE_LAYERS.match(text):
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined
