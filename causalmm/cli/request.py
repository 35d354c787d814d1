"""From flags to a checked request: what can be found wrong before torch is loaded is found here.

Tests: tests/cli/test_generate_command.py and tests/cli/test_batch_command.py.
"""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from causalmm.cli.batch import Batch, open_batch
from causalmm.cli.flags import BATCH_SIZE, flag_name
from causalmm.cli.terminal import quiet_hub, tell
from causalmm.config import ADJUSTMENT, CausalMMConfig
from causalmm.errors import RequestError
from causalmm.families import checkpoints
from causalmm.families.registry import find, titles
from causalmm.inputs.messages import (
    LIMITS,
    check_prompt,
    limit_sizes,
    one_turn,
    open_messages,
    parts_of,
    read_messages,
)

SETTINGS = tuple(field.name for field in fields(CausalMMConfig))
SAMPLING_OFF = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


class Request(NamedTuple):
    """A checked request: everything that can be known before a model is loaded."""

    model: str
    """As the user named it."""
    source: str
    family: str
    config: CausalMMConfig | None
    """None in mode "plain"."""
    sampling: dict[str, Any]
    """What `generate` is told about choosing tokens."""
    seed: int
    max_new_tokens: int
    messages: Sequence[dict[str, Any]] = ()
    """The conversation to be answered, pictures opened; of --chat its pictures with no prompt yet,
    of --batch none."""
    batch: Batch | None = None
    limits: Mapping[str, int] = MappingProxyType({})
    """Of the pictures, see `messages.limit_sizes`."""
    allow_network: bool = False
    """Whether pictures may be fetched."""
    preset: str | None = None
    """The published method whose settings `config` has, but for those that were given."""
    given: Mapping[str, Any] = MappingProxyType({})
    """Settings that stood on the command line."""
    logits_processor: str | None = None
    """Reference "module:function" to what makes logits processors for `generate` of the tokenizer,
    where a control decodes in a way of its own."""


def check(args: argparse.Namespace, family: str | None = None) -> Request:
    """All of a request that can be known before a model is loaded.

    Raises RequestError for what is wrong with it, FailureError where a hub cannot be reached.
    """
    if args.prompt is not None:
        check_prompt(args.prompt)
    request = find_model(args, family)
    if request.config is None and args.compare:
        raise RequestError("--compare needs a mode other than plain to compare with")
    messages = _messages(args)
    request = request._replace(
        messages=limit_sizes(messages, request.limits), allow_network=args.allow_network
    )
    known = find(request.family)
    if "video" not in known.media and any(parts_of(messages, "video")):
        raise RequestError(
            f"{args.model} is a {known.title} checkpoint, which reads images and no video"
        )
    if args.batch is None:
        return request
    size = args.batch_size or BATCH_SIZE
    settings = _settings(args, request)
    batch = open_batch(args.batch, args.out, size, settings, args.retry_failed)
    return request._replace(batch=batch)


def find_model(args: argparse.Namespace, family: str | None = None) -> Request:
    """A request with no messages yet: the flags of settings and decoding, and the checkpoint.

    Raises as `check` does.
    """
    sampling = _sampling(args)
    limits = {name: value for name in LIMITS if (value := getattr(args, name, None)) is not None}
    if limits.get("min_pixels", 0) > limits.get("max_pixels", math.inf):
        raise RequestError(
            f"--min-pixels {args.min_pixels} is more than --max-pixels {args.max_pixels}"
        )
    given = {name: getattr(args, name) for name in SETTINGS if name in args}
    preset = getattr(args, "preset", None)
    plain = given.get("mode") == "plain"
    if plain:
        if preset is not None:
            raise RequestError("--preset and --mode plain exclude each other")
        del given["mode"]
    # Over the defaults first, so that a wrong value is told before a hub is asked for anything.
    settle(CausalMMConfig(), preset, given)
    base = None if args.config is None else checkpoints.read_configuration(args.config)
    if preset is not None and args.config is not None:
        tell(f"--preset {preset} takes the place of the settings in {args.config}")
    source = checkpoints.resolve(args.model)
    if not os.path.isdir(source):
        quiet_hub()
        tell(f"{source}: not a folder here, looking on the hub")
    known = find(checkpoints.family(source))
    # In every record, and in what `generate` is told: the checkpoint's is easily overlooked.
    asked = getattr(args, "repetition_penalty", None)
    sampling["repetition_penalty"] = (
        checkpoints.repetition_penalty(source) if asked is None else asked
    )
    if family not in (None, known.name):
        raise RequestError(
            f"{args.model} is a {known.title} checkpoint: use python -m {known.package}.generate"
        )
    if limits and not known.sized_pictures:
        raise RequestError(
            f"{flag_name(next(iter(limits)))} is for {titles(sized=True)}: {args.model} is a "
            f"{known.title} checkpoint, which decides sizes itself"
        )
    # Without branches a center is not read.
    used = {**given, "center": None} if plain else given
    config = settle(base or checkpoints.configuration(source), preset, used)
    if not plain and config.constant_branch:
        centered = config.center is not None
        tell(
            f"the configuration says that its {config.constant_branch} branch is a constant one: "
            "its contrast is nearly the same whatever the picture and the question"
            + (", which the center takes away" if centered else " (causalmm diagnose --center)")
        )
    return Request(
        model=args.model,
        source=source,
        family=known.name,
        config=None if plain else config,
        sampling=sampling,
        seed=config.seed,
        max_new_tokens=args.max_new_tokens,
        limits=limits,
        preset=preset,
        given=given,
    )


def settle(base: CausalMMConfig, preset: str | None, given: Mapping[str, Any]) -> CausalMMConfig:
    """The given settings over those of a preset or, where it is None, over `base`.

    Raises RequestError for a wrong setting, and for one that would make a preset another method.
    """
    if preset is not None:
        try:
            CausalMMConfig.preset(preset, **given)
        except ValueError as error:
            raise RequestError(str(error)) from error
        base = CausalMMConfig.preset(preset)
    return override(base, given)


def describe_preset(request: Request) -> dict[str, Any] | None:
    """The name of a request's preset and the settings that differ from it; None without one."""
    if request.preset is None or request.config is None:
        return None
    own, config = CausalMMConfig.preset(request.preset).to_dict(), request.config.to_dict()
    changed = {name: value for name, value in config.items() if value != own[name]}
    return {"name": request.preset, "changed": changed}


def override(base: CausalMMConfig, given: Mapping[str, Any]) -> CausalMMConfig:
    """`base` with the given settings in the place of its own. Raises RequestError for a wrong one.

    A given `gamma` is the strength of every branch, and mode "joint" has only one: the base's
    strengths of single branches then do not count. The hash of a center and the verdict on a branch
    are those of the base's center and branches. What is returned knows the hash of its center.
    """
    reset: dict[str, Any] = {}
    if "gamma" in given or given.get("mode") == "joint":
        reset |= {"gamma_vision": None, "gamma_language": None}
    if "center" in given:
        reset |= {"center_sha256": None}
    if given.keys() - ADJUSTMENT:
        reset |= {"constant_branch": None}
    try:
        config = replace(base, **reset | dict(given))
        if config.center is None:
            return config
        _, digest = config.read_center()
        return replace(config, center_sha256=digest)
    except ValueError as error:
        raise RequestError(str(error)) from error


def _messages(args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.batch is not None:
        return []
    if args.messages is not None:
        messages = read_messages(args.messages, allow_network=args.allow_network)
        if not any((*parts_of(messages, "image"), *parts_of(messages, "video"))):
            raise RequestError(f"{args.messages} holds no picture: expected an image or a video")
        return messages
    turn = one_turn(args.image or [], args.prompt, args.video)
    return open_messages(turn, allow_network=args.allow_network)


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of sampling. Raises RequestError for a contradiction."""
    given = {name: getattr(args, name) for name in SAMPLING_OFF if name in args}
    if not given:
        return {"do_sample": False}
    if "greedy" in args:
        raise RequestError(f"--greedy and {flag_name(next(iter(given)))} exclude each other")
    # All three, because a checkpoint's own may leave one token to choose from (Qwen2-VL: top-k 1).
    return {"do_sample": True, **SAMPLING_OFF, **given}


def _settings(args: argparse.Namespace, request: Request) -> dict[str, Any]:
    """All that the answers of a batch depend on, its rows apart."""
    config = request.config
    return {
        "model": request.model,
        "config": None if config is None else config.to_dict(),
        "sampling": request.sampling,
        "seed": request.seed,
        "max_new_tokens": request.max_new_tokens,
        "dtype": args.dtype,
        "attn": args.attn,
        **{name: request.limits.get(name) for name in LIMITS},
    }
