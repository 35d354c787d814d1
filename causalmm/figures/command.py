"""The `visualize` command: a checked request to a picture of what the method does.

Exit codes: 0, 2 for a wrong request, 1 for a failure. Tests:
tests/figures/test_visualize_command.py.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from causalmm.cli.request import check
from causalmm.cli.session import Session, memory_guard
from causalmm.cli.terminal import exit_code, tell
from causalmm.counterfactual.methods import NOISE, VISION_METHODS
from causalmm.errors import FailureError, RequestError
from causalmm.extras import require
from causalmm.figures.flags import parse_args
from causalmm.inputs.messages import parts_of
from causalmm.inputs.prompts import to_model


def main(argv: list[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command and return its exit code; `prog` is its name in messages."""
    return exit_code(lambda: run(parse_args(sys.argv[1:] if argv is None else argv, prog)))


def run(args: argparse.Namespace) -> None:
    """Load the model, look, and write the files.

    Raises RequestError for what cannot be drawn, FailureError where something goes wrong.
    """
    request = check(args)
    if request.config is None:
        raise RequestError("mode plain has no counterfactual to draw: expected another --mode")
    if args.figure == "attention-vision" and request.config.vision_method == NOISE.name:
        raise RequestError(
            f"vision method {NOISE.name!r} changes the pixels and has no attention map of its own: "
            f"expected a --vision-method of {', '.join(VISION_METHODS)}, all of which are drawn"
        )
    for path in (args.png, getattr(args, "html", None)):
        if path is not None:
            _check_file(path)
    if args.png is not None:
        require("drawing", "figures")
    with memory_guard():
        session = Session.start(args, request)
        inputs = session.inputs(request.messages)
        _DRAWN[args.figure](args, session, to_model(inputs, session.model))


def _attention_vision(args: argparse.Namespace, session: Session, inputs: Any) -> None:
    from causalmm.figures import recording, vision
    from causalmm.figures.vision_figure import vision_figure

    shown = _pictures(session, inputs)
    if args.picture > len(shown):
        raise RequestError(
            f"--picture {args.picture}: the request has {len(shown)}, counted from 1"
        )
    picture = shown[args.picture - 1]
    count = session.model.causalmm_towers().vision_layers
    # Above the layer whose output the model reads, an edit would change nothing.
    layer = _number("--layer", args.layer, count, count - 1)
    sizes = [each.size for each in shown]
    calls = recording.record_vision(session.model, inputs, layer, sizes)[args.picture - 1]
    heads = calls[0].heads
    head = _number("--head", args.head, heads, None)
    rows = vision.rows(calls, picture, args.query or ["mean"], head, session.request.config)
    title = f"{_name(session)}: vision attention, {_where(layer, count, head, heads)}"
    _save(args.png, vision_figure(picture, rows, title))


def _attention_language(args: argparse.Namespace, session: Session, inputs: Any) -> None:
    from causalmm.figures import language, recording
    from causalmm.figures.language_figure import language_figure

    model = session.model
    count = model.causalmm_towers().language_layers
    layer = _number("--layer", args.layer, count, count // 2)
    call = recording.record_language(model, inputs, layer)
    head = _number("--head", args.head, call.heads, None)
    tokens = {name: getattr(model.config, f"{name}_token_id", None) for name in ("image", "video")}
    pads = {token: name for name, token in tokens.items() if token is not None}
    ids, tokenizer = inputs["input_ids"][0].tolist(), session.processor.tokenizer
    matrices = language.matrices(call, ids, tokenizer, pads, session.request.config, head)
    title = f"{_name(session)}: language attention, {_where(layer, count, head, call.heads)}"
    _save(args.png, language_figure(matrices, title))


def _tokens(args: argparse.Namespace, session: Session, inputs: Any) -> None:
    from causalmm.figures import page, tokens

    request = session.request
    steps = tokens.answer_steps(
        session.model,
        session.processor.tokenizer,
        inputs,
        request.config,
        count=args.candidates,
        max_new_tokens=request.max_new_tokens,
        sampling=request.sampling,
        seed=request.seed,
    )
    prompt = "\n".join(part["text"] for part in parts_of(request.messages, "text"))
    if args.png is not None:
        from causalmm.figures.tokens_figure import tokens_figure

        title = f"{_name(session)}: {' '.join(prompt.split())}"
        _save(args.png, tokens_figure(steps, title))
    if args.html is not None:
        text = page.page(
            steps,
            prompt=prompt,
            pictures=[each.pixels for each in _pictures(session, inputs)],
            model=_name(session),
            settings=request.config.to_dict() | request.sampling,
        )
        _write(args.html, text.encode())


_DRAWN = {
    "attention-vision": _attention_vision,
    "attention-language": _attention_language,
    "tokens": _tokens,
}


def _pictures(session: Session, inputs: Any) -> list[Any]:
    from causalmm.figures.pictures import pictures_of

    return pictures_of(session.model, session.processor, inputs)


def _number(flag: str, given: int | None, count: int, default: int | None) -> int | None:
    """A layer or head, counted from the start; the default where none is given."""
    if given is None:
        return default
    if not -count <= given < count:
        raise RequestError(f"{flag} {given}: expected 0 to {count - 1}, or negative from the end")
    return given % count


def _where(layer: int, layers: int, head: int | None, heads: int) -> str:
    which = f"mean over {heads} heads" if head is None else f"head {head} of 0 to {heads - 1}"
    return f"layer {layer} of 0 to {layers - 1}, {which}"


def _name(session: Session) -> str:
    return session.request.model.rstrip("/").rpartition("/")[2]


def _check_file(path: str) -> None:
    """Raise RequestError for a place where no file can be written, before a model is loaded."""
    if Path(path).is_dir():
        raise RequestError(f"{path} is a folder, expected a file to write")
    if not Path(path).absolute().parent.is_dir():
        raise RequestError(f"{path}: there is no folder {Path(path).parent}")


def _save(path: str, figure: Any) -> None:
    file = io.BytesIO()
    # Without matplotlib's name in it, the same figure is the same file.
    figure.savefig(file, format="png", metadata={"Software": None})
    _write(path, file.getvalue())


def _write(path: str, content: bytes) -> None:
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise FailureError(f"{path} cannot be written ({error.strerror})") from error
    tell(f"wrote {path}")
