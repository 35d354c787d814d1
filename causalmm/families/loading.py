"""Load a checkpoint's model and processor, refusing early what cannot work.

In this order, cheapest first: the device, the checkpoint's shape against the configuration (no
weight is read for that), the processor, the memory that the weights take, the weights. The family's
declaration gives the classes.
Tests: tests/families/test_checkpoints.py.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from causalmm.config import CausalMMConfig
from causalmm.decoding.plan import Towers
from causalmm.errors import FailureError, RequestError, first_line, is_out_of_memory
from causalmm.families import checkpoints
from causalmm.families.family import Family, load_reference
from causalmm.families.memory import bytes_available, bytes_needed, check_fits
from causalmm.families.processors import check_processor
from causalmm.families.registry import find
from causalmm.presets.registry import find as find_preset

# What transformers, safetensors and torch raise on a checkpoint that is incomplete or damaged.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    EOFError,
    RuntimeError,
    MemoryError,
    SafetensorError,
    StrictDataclassError,
    pickle.UnpicklingError,
)


class Loaded(NamedTuple):
    """A model ready to generate, and the processor that makes its inputs."""

    model: Any
    processor: Any


def load(
    source: str,
    *,
    family: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attn: str = "sdpa",
    causalmm: CausalMMConfig | None = None,
    preset: str | None = None,
) -> Loaded:
    """Model and processor of a folder or hub id, in eval mode on `device`.

    `family` is the name of the checkpoint's family; None reads it from its config.json. `dtype`
    "auto" is float32 on a CPU and the checkpoint's own elsewhere; `device` "auto" is CUDA where
    there is one. `causalmm` and the name of its `preset`, if given, are checked against the
    checkpoint before its weights are read. Raises RequestError for what the machine or the model
    does not have, FailureError for a checkpoint that cannot be read whole.
    """
    declared = find(checkpoints.family(source) if family is None else family)
    model_class, processor_class = _classes(declared, source)
    place = find_device(device)
    if dtype == "auto" and place.type == "cpu":
        dtype = "float32"
    config = _read(source, "config.json", lambda: model_class.config_class.from_pretrained(source))
    _check_attention(model_class, config, attn, place)
    shell = _read(source, "config.json", lambda: _shell(model_class, config, attn))
    try:
        check_preset(preset, shell)
        shell.causalmm_plan(causalmm)
    except ValueError as error:
        raise RequestError(str(error)) from error
    processor = _read(
        source,
        "the processor",
        lambda: processor_class.from_pretrained(source, trust_remote_code=False),
    )
    check_processor(source, processor, config)
    load_reference(declared.complete_processor)(source, processor, config)
    _check_memory(source, shell, dtype, place)
    model, report = _read(
        source,
        "the weights",
        lambda: model_class.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            # On a CPU no map: weights are read straight into place without accelerate's hooks.
            device_map=None if place.type == "cpu" else {"": place},
            attn_implementation=attn,
            weights_only=True,
            output_loading_info=True,
        ),
    )
    if missing := sorted(report["missing_keys"]):
        # Transformers would draw them at random and go on.
        raise FailureError(
            f"{source} lacks {len(missing)} of the model's weights (first: {missing[0]})"
        )
    if model.generation_config.eos_token_id is None:
        # An answer would go on behind its end.
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return Loaded(model.eval(), processor)


def read_towers(source: str) -> Towers:
    """How many layers of a checkpoint's towers an edit can reach, by its configuration alone.

    Raises RequestError for a checkpoint whose parts are not patched, and as `load` does.
    """
    model_class, _ = _classes(find(checkpoints.family(source)), source)
    config = _read(source, "config.json", lambda: model_class.config_class.from_pretrained(source))
    shell = _read(source, "config.json", lambda: _shell(model_class, config, "sdpa"))
    try:
        return shell.causalmm_towers()
    except ValueError as error:
        raise RequestError(str(error)) from error


def _classes(declared: Family, source: str) -> tuple[type, type]:
    """Model class and processor class of a checkpoint."""
    if declared.find_classes is not None:
        return load_reference(declared.find_classes)(source)
    return load_reference(declared.model_class), load_reference(declared.processor_class)


def check_preset(preset: str | None, model: Any) -> None:
    """Raise ValueError where a model lacks what the preset of this name needs."""
    if preset is not None:
        find_preset(preset).check_model(model.causalmm_towers())


def find_device(name: str) -> torch.device:
    """The device of a name or of "auto". Raises RequestError where this machine has none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise RequestError(f"device {name!r} is not available here") from error
    if device.type == "meta":
        raise RequestError("device 'meta' holds no weights: expected cpu, cuda or mps")
    return device


def _check_attention(model_class: type, config: Any, attn: str, place: torch.device) -> None:
    if attn in ("sdpa", "eager"):
        return
    if attn == "flex_attention" and place.type == "cpu":
        # Up to logits of NaN, on CPUs with AVX2 alone (torch 2.13):
        # tests/counterfactual/test_flex.py.
        raise RequestError(
            "attention flex_attention is not for a CPU: what PyTorch compiles of it is wrong on "
            "some CPUs; expected sdpa or eager"
        )
    try:
        _shell(model_class, config, attn)
    except (ImportError, ValueError) as error:
        raise RequestError(f"attention {attn} cannot be used here ({first_line(error)})") from error


def _shell(model_class: type, config: Any, attn: str) -> Any:
    """The model without weights. Building it writes into a configuration, so it gets its own."""
    with torch.device("meta"):
        return model_class._from_config(copy.deepcopy(config), attn_implementation=attn)


def _check_memory(source: str, shell: Any, dtype: str, place: torch.device) -> None:
    available = bytes_available(place)
    if available is None or getattr(shell.config, "quantization_config", None) is not None:
        return  # it cannot be told what there is, or what quantised weights take
    # Where the configuration names none, "auto" is that of the weights: 2 bytes each, at the least.
    found = shell.config.dtype or "float16" if dtype == "auto" else dtype
    wanted = getattr(torch, found) if isinstance(found, str) else found
    needed = _read(source, "the weights", lambda: bytes_needed(source, shell, wanted, place))
    check_fits(source, shell, needed, available, wanted, place)


def _read(source: str, what: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except _UNREADABLE as error:
        if is_out_of_memory(error):
            raise FailureError(
                f"not enough memory to load {source}: try --dtype bfloat16 or a smaller model"
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            raise FailureError(
                f"{source}: the weights are damaged or hold more than tensors, and code in them is "
                "never run"
            ) from error
        raise FailureError(f"{source}: {what} cannot be read ({first_line(error)})") from error
