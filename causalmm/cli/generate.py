"""The `generate` command: a checked request to a streamed answer, a conversation or a batch.

The answer goes to standard output and everything else to standard error. Exit codes: 0, 2 for a
wrong request, 1 for a failure. Tests: tests/cli/test_generate_command.py.
"""

import argparse
import contextlib
import io
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from causalmm.cli.batch import write_answers
from causalmm.cli.chat import chat
from causalmm.cli.flags import parse_args
from causalmm.cli.request import Request, check, describe_preset
from causalmm.cli.session import Session, memory_guard
from causalmm.cli.sole_writer import sole_writer
from causalmm.cli.terminal import exit_code, tell
from causalmm.config import CausalMMConfig
from causalmm.families.registry import demos
from causalmm.inputs.messages import LIMITS


def main(
    argv: list[str] | None = None,
    family: str | None = None,
    *,
    prog: str | None = None,
    way: str | None = None,
) -> int:
    """Run the command and return its exit code; a per-model command gives its `family`.

    `prog` is the command's name in messages, `way` that of `flags.parse_args`.
    """

    def act() -> None:
        args = parse_args(sys.argv[1:] if argv is None else argv, family, prog=prog, way=way)
        # From before it is read how far it is.
        with contextlib.nullcontext() if args.out is None else sole_writer(Path(args.out)):
            run(args, check(args, family))

    return exit_code(act)


main_chat = partial(main, way="chat")
main_batch = partial(main, way="batch")


def run(args: argparse.Namespace, request: Request) -> None:
    """Load the model, answer, and write to standard output or to --out.

    Raises RequestError for what this model cannot do, FailureError where something goes wrong.
    """
    begun = time.perf_counter()
    if request.batch is not None and not request.batch.left:
        tell(f"{request.batch.outcome()}; no other row is left to ask")
        return
    if request.model in demos():
        tell(f"{request.model}: a small demonstration model trained on drawn scenes")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may leave the terminal's encoding
    with memory_guard():
        session = Session.start(args, request)
        if request.batch is not None:
            tell(write_answers(request.batch, session.answer_rows).outcome())
        elif args.chat:
            chat(session)
        else:
            _answer(args, session, begun)


def _answer(args: argparse.Namespace, session: Session, begun: float) -> None:
    """Answer the one conversation of the request."""
    request = session.request
    inputs = session.inputs(request.messages)
    loaded = time.perf_counter()

    def ask(label: str, config: CausalMMConfig | None) -> Any:
        if args.compare and not args.json:
            print(f"{label:<10}", end="", flush=True)
        out = None if args.json else sys.stdout
        return session.answer(inputs, config, probabilities=args.json, out=out)

    plain = ask("plain", None) if args.compare else None
    adjusted = ask("causalmm", request.config)
    if args.json:
        timings = {
            "load": loaded - begun,
            "first_token": adjusted.first_token,
            "total": time.perf_counter() - begun,
        }
        record = _record(args, session, plain, adjusted, timings)
        print(json.dumps(record, indent=2), flush=True)


def _record(
    args: argparse.Namespace, session: Session, plain: Any, adjusted: Any, timings: dict[str, float]
) -> dict[str, Any]:
    """The object that --json prints. Timings in seconds, `first_token` from asking the model on."""
    import torch
    import transformers

    request, model = session.request, session.model
    config, images = request.config, args.image or []
    asked = {  # as given; one image is its path, several are a list
        "image": images[0] if len(images) == 1 else images or None,
        **{name: getattr(args, name) for name in ("video", "prompt", "messages", *LIMITS)},
    }
    return {
        "answer": adjusted.text,
        **({} if plain is None else {"plain_answer": plain.text}),
        "tokens": [token._asdict() for token in adjusted.tokens],
        "mode": "plain" if config is None else config.mode,
        "config": None if config is None else config.to_dict(),
        "preset": describe_preset(request),
        "model": request.model,
        "family": request.family,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attn": args.attn,
        **{name: value for name, value in asked.items() if value is not None},
        "sampling": request.sampling,
        "seed": request.seed,
        "max_new_tokens": request.max_new_tokens,
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
