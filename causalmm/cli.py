"""The `generate` command: flags to a configuration, an image and a prompt to a streamed answer.

What is wrong with a request is found before torch is loaded, where that is possible. The answer
goes to standard output and everything else to standard error. Exit codes: 0, 2 for a wrong request,
1 for a failure. Held by tests/test_generate_command.py.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import import_module
from typing import Any, NamedTuple

from PIL import Image

from causalmm import checkpoints
from causalmm.config import CausalMMConfig
from causalmm.errors import FailureError, RequestError, is_out_of_memory
from causalmm.flags import parse_args
from causalmm.images import open_image

INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 + the signal, as a shell reports them

SETTINGS = tuple(field.name for field in fields(CausalMMConfig))
_SAMPLING_OFF = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


class Request(NamedTuple):
    """A checked request: everything that can be known before a model is loaded."""

    model: str
    """As the user named it."""
    source: str
    family: str
    config: CausalMMConfig | None
    """None in mode "plain"."""
    image: Image.Image
    sampling: dict[str, Any]
    seed: int


def main(argv: list[str] | None = None, family: str | None = None) -> int:
    """Run the command and return its exit code; a per-model command gives its `family`."""
    try:
        args = parse_args(sys.argv[1:] if argv is None else argv, family)
        run(args, check(args, family))
    except RequestError as error:
        return _complain(str(error), 2)
    except FailureError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # Reading is guarded where it happens, so this is writing: whoever read the answer is gone,
        # or a disk is full. Keep Python from trying again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        return _complain(f"the answer cannot be written ({error.strerror})", 1)
    return 0


def check(args: argparse.Namespace, family: str | None = None) -> Request:
    """All of a request that can be known before a model is loaded.

    Raises RequestError for what is wrong with it, FailureError where a hub cannot be reached.
    """
    _check_prompt(args.prompt)
    sampling = _sampling(args)
    given = {name: getattr(args, name) for name in SETTINGS if name in args}
    plain = given.get("mode") == "plain"
    if plain:
        del given["mode"]
        if args.compare:
            raise RequestError("--compare needs a mode other than plain to compare with")
    # Over the defaults first, so that a wrong value is told before a hub is asked for anything.
    override(CausalMMConfig(), given)
    base = None if args.config is None else checkpoints.read_configuration(args.config)
    image = open_image(args.image)
    source = checkpoints.resolve(args.model)
    if not os.path.isdir(source):
        _quiet_hub()
        _tell(f"{source}: not a folder here, looking on the hub")
    kind = checkpoints.family(source)
    if family not in (None, kind):
        known = checkpoints.FAMILIES[kind]
        raise RequestError(
            f"{args.model} is a {known.title} checkpoint: use python -m {known.package}.generate"
        )
    config = override(base or checkpoints.configuration(source), given)
    return Request(
        model=args.model,
        source=source,
        family=kind,
        config=None if plain else config,
        image=image,
        sampling=sampling,
        seed=config.seed,
    )


def override(base: CausalMMConfig, given: dict[str, Any]) -> CausalMMConfig:
    """`base` with the given settings in the place of its own. Raises RequestError for a wrong one.

    A given `gamma` is the strength of every branch, and mode "joint" has only one: the base's
    strengths of single branches then do not count.
    """
    reset = {}
    if "gamma" in given or given.get("mode") == "joint":
        reset = {"gamma_vision": None, "gamma_language": None}
    try:
        return replace(base, **(reset | given))
    except ValueError as error:
        raise RequestError(str(error)) from error


def run(args: argparse.Namespace, request: Request) -> None:
    """Load the model, answer, and write to standard output.

    Raises RequestError for what this model cannot do, FailureError where something goes wrong.
    """
    begun = time.perf_counter()
    if request.model in checkpoints.DEMOS:
        _tell(f"{request.model}: a small demonstration model trained on drawn scenes")
    package = checkpoints.FAMILIES[request.family].package
    with _memory_guard(), contextlib.redirect_stdout(sys.stderr):
        # Imported here: torch and transformers take seconds.
        loading = import_module(f"{package}.loading")
        prompt = import_module(f"{package}.prompt")
        _quiet_transformers()
        model, processor = loading.load(
            request.source,
            dtype=args.dtype,
            device=args.device,
            attn=args.attn,
            causalmm=request.config,
        )
        inputs = prompt.build_inputs(processor, [request.image], args.prompt)
        _check_length(model, inputs)
    from causalmm.answer import answer

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may leave the terminal's encoding
    loaded = time.perf_counter()

    def ask(label: str, config: CausalMMConfig | None) -> Any:
        if args.compare and not args.json:
            print(f"{label:<10}", end="", flush=True)
        return answer(
            model,
            processor,
            inputs,
            causalmm=config,
            max_new_tokens=args.max_new_tokens,
            sampling=request.sampling,
            seed=request.seed,
            probabilities=args.json,
            out=None if args.json else sys.stdout,
        )

    with _memory_guard():
        plain = ask("plain", None) if args.compare else None
        adjusted = ask("causalmm", request.config)
    if args.json:
        timings = {
            "load": loaded - begun,
            "first_token": adjusted.first_token,
            "total": time.perf_counter() - begun,
        }
        record = _record(args, request, model, plain, adjusted, timings)
        print(json.dumps(record, indent=2), flush=True)


def _record(
    args: argparse.Namespace,
    request: Request,
    model: Any,
    plain: Any,
    adjusted: Any,
    timings: dict[str, float],
) -> dict[str, Any]:
    """The object that --json prints. Timings in seconds, `first_token` from asking the model on."""
    import torch
    import transformers

    config = request.config
    return {
        "answer": adjusted.text,
        **({} if plain is None else {"plain_answer": plain.text}),
        "tokens": [token._asdict() for token in adjusted.tokens],
        "mode": "plain" if config is None else config.mode,
        "config": None if config is None else config.to_dict(),
        "model": request.model,
        "family": request.family,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attn": args.attn,
        "image": args.image,
        "prompt": args.prompt,
        "sampling": request.sampling,
        "seed": request.seed,
        "max_new_tokens": args.max_new_tokens,
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise RequestError("the prompt is empty")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise RequestError("the prompt is not valid text in this locale's encoding") from None


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    """What `generate` is told about choosing tokens. Raises RequestError for a contradiction."""
    given = {name: getattr(args, name) for name in _SAMPLING_OFF if name in args}
    if not given:
        return {"do_sample": False}
    if args.greedy:
        flag = next(iter(given)).replace("_", "-")
        raise RequestError(f"--greedy and --{flag} exclude each other")
    # All three, because a checkpoint's own may leave one token to choose from (Qwen2-VL: top-k 1).
    return {"do_sample": True, **_SAMPLING_OFF, **given}


def _check_length(model: Any, inputs: Any) -> None:
    length = inputs["input_ids"].shape[1]
    limit = model.config.get_text_config().max_position_embeddings
    if length >= limit:
        raise RequestError(
            f"image and prompt take {length} tokens and the model reads at most {limit}"
        )


@contextlib.contextmanager
def _memory_guard() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise FailureError(
            "not enough memory: try a smaller image, fewer --draws, --dtype bfloat16 or another "
            "--device"
        ) from error


def _quiet_hub() -> None:
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()


def _quiet_transformers() -> None:
    """Leave standard error to what concerns the user."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _complain(sentence: str, code: int) -> int:
    _tell(f"error: {' '.join(sentence.split())}")
    return code
