"""The flags of `scripts/visualize.py`: those of the `generate` command, and what to draw of it.

Nothing here loads torch.
Tests: tests/figures/test_visualize_command.py.
"""

import argparse
import re
from collections.abc import Sequence

from causalmm.cli.flags import (
    Parser,
    add_decoding,
    add_question,
    add_running,
    add_settings,
    at_least,
    check_together,
    number,
)
from causalmm.errors import RequestError

MEAN, SUMMARY = "mean", "cls"
Query = str | tuple[int, int]
"""Whose attention a figure shows: MEAN over the patches, SUMMARY for the class token, or that of a
patch, (row, column)."""
CANDIDATES = 4
_SETTINGS_USED = "Of the CausalMM settings, this figure depends on --normalization and --seed"
_FIGURES = {
    "attention-vision": (
        "a picture with its attention and each counterfactual one laid over it",
        "A picture with the vision encoder's attention laid over it: the factual one, and what "
        "each counterfactual method makes of it.",
        f"{_SETTINGS_USED}. The prompt changes nothing here and may be left out.",
    ),
    "attention-language": (
        "the attention matrix over a prompt, and each counterfactual one",
        "The language model's attention matrix over a prompt: the factual one, and what each "
        "counterfactual method makes of it.",
        f"{_SETTINGS_USED}, and on --language-scope.",
    ),
    "tokens": (
        "probabilities of the candidates for each token of an answer",
        "How likely each candidate was at each token of an answer: without intervention, with "
        "counterfactual attention, and adjusted.",
        None,
    ),
}
"""Help, description and epilog."""


def parse_args(argv: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Flags as given, `figure` the name of one. Raises RequestError for what cannot be read."""
    parser = Parser(prog=prog, description="Draw what CausalMM does.")
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    vision, language, tokens = (
        figures.add_parser(name, help=title, description=description, epilog=epilog)
        for name, (title, description, epilog) in _FIGURES.items()
    )
    _add_where(vision, "the last layer whose output the model reads")
    vision.add_argument(
        "--query", action="append", type=read_query, metavar="Q",
        help=f"whose attention: a patch as ROW,COLUMN from 0, {SUMMARY} for CLIP's class token, "
        f"{MEAN} over the patches; may be given several times (default: {MEAN})",
    )  # fmt: skip
    vision.add_argument(
        "--picture", type=at_least(1), default=1, metavar="N",
        help="which of the images, and after them the video's frames (default: %(default)s)",
    )  # fmt: skip
    _add_where(language, "the first of the second half")
    tokens.add_argument("--png", metavar="FILE", help="write the figure there")
    tokens.add_argument("--html", metavar="FILE", help="write a page there, in one file")
    tokens.add_argument(
        "--candidates", type=at_least(1), default=CANDIDATES, metavar="N",
        help="candidates a token, at most (default: %(default)s)",
    )  # fmt: skip
    for each in (vision, language, tokens):
        add_question(each)
        add_settings(each)
        if each is tokens:
            add_decoding(each)
        else:
            each.set_defaults(max_new_tokens=1)
        add_running(each)
        # What a request may have and a figure does not.
        each.set_defaults(compare=False, batch=None)
    args = parser.parse_args(argv)
    if args.figure == "attention-vision" and args.prompt is None and args.messages is None:
        args.prompt = "What is this?"
    if args.figure == "tokens" and not (args.png or args.html):
        raise RequestError("the following arguments are required: --png or --html")
    check_together(args)
    return args


def _add_where(parser: argparse.ArgumentParser, layer: str) -> None:
    parser.add_argument("--png", required=True, metavar="FILE", help="write the figure there")
    parser.add_argument(
        "--layer", type=int, metavar="N", help=f"from 0; negative: from the end (default: {layer})"
    )
    parser.add_argument(
        "--head",
        type=number(f"or {MEAN}", lambda _: True, lambda text: None if text == MEAN else int(text)),
        metavar="H",
        help=f"from 0, or {MEAN} over the heads (default: {MEAN})",
    )


def read_query(text: str) -> Query:
    """A query as given on a command line. Raises ArgumentTypeError for anything that is none."""
    if text in (MEAN, SUMMARY):
        return text
    if match := re.fullmatch(r"(\d+),(\d+)", text):
        return int(match[1]), int(match[2])
    raise argparse.ArgumentTypeError(
        f"query {text!r}: expected {MEAN}, {SUMMARY} or ROW,COLUMN of a patch"
    )
