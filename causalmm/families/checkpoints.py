"""Which checkpoint a name means, what family it is of, and which CausalMM settings come with it.

A checkpoint is a folder or a hub id of the transformers format, or of that of LLaVA's authors, or
one of the packaged demo models. Nothing here loads torch. Tests:
tests/families/test_checkpoints.py.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from causalmm.config import CONFIG_NAME, CausalMMConfig
from causalmm.errors import FailureError, RequestError, first_line
from causalmm.families.registry import demos, families, supported

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files of weights, or indices of such, in the order in which transformers looks for them."""
_LORA = "LoRA weights only: merge them into their base model first"
_READ_WHOLE, _SAMPLED = 2**26, 2**20
PARTS = {
    "adapter_config.json": _LORA,
    "non_lora_trainables.bin": _LORA,
    "mm_projector.bin": "a projector only: expected a whole LLaVA checkpoint",
}
"""Files that training leaves in place of a whole checkpoint, and what to say of them."""


def resolve(name: str) -> str:
    """The folder or hub id that `name` stands for.

    Raises RequestError for a name that can be neither, and for a folder without weights. Whether a
    hub id exists shows when it is read.
    """
    if name in demos():
        folder = Path(str(files("causalmm"))) / "toyworld" / "checkpoints" / name
        if not (folder / "config.json").is_file():
            raise RequestError(f"{name} is not in this installation: no checkpoint at {folder}")
        return str(folder)
    path = Path(name)
    if path.is_file():
        raise RequestError(f"{name} is a file, expected the folder of a checkpoint")
    if name and path.is_dir():
        _check_folder(name, path)
        return name
    if not _is_hub_id(name):
        raise RequestError(
            f"unknown model {name!r}: expected a folder, a hub id such as "
            f"llava-hf/llava-1.5-7b-hf, or one of {', '.join(demos())}"
        )
    return name


def family(source: str) -> str:
    """The name of the family of a folder or hub id.

    Raises RequestError for a family that is not supported.
    """
    kind = _read_config(source).get("model_type")
    for each in families().values():
        if kind in each.model_types:
            return each.name
    raise RequestError(
        f"{source} has model_type {kind!r}{_class_of(kind)}, which is not supported: expected one "
        f"of {supported()}"
    )


def configuration(source: str) -> CausalMMConfig:
    """The `causalmm_config.json` beside a checkpoint; the class defaults where it has none."""
    path = _find(source, CONFIG_NAME, optional=True)
    if path is None:
        return CausalMMConfig()
    config = read_configuration(path)
    if config.center is not None and not Path(source).is_dir():
        # Of a hub id, beside the configuration in the cache from now on.
        _find(source, os.path.relpath(config.center, path.parent), optional=True)
    return config


def repetition_penalty(source: str) -> float:
    """Of the `generation_config.json` beside a checkpoint; 1.0, which is none, where it names none.

    Raises RequestError where the file cannot be read or names no number above 0.
    """
    if (path := _find(source, "generation_config.json", optional=True)) is None:
        return 1.0
    value = _read_object(source, path).get("repetition_penalty")
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise RequestError(
            f"generation_config.json of {source}: repetition_penalty={value!r}: "
            "expected a number > 0"
        )
    return float(value)


def read_configuration(path: str | Path) -> CausalMMConfig:
    """A configuration file. Raises RequestError where it is missing or not one."""
    try:
        return CausalMMConfig.from_pretrained(path)
    except FileNotFoundError:
        raise RequestError(f"no CausalMM configuration at {path}") from None
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"{path} is no CausalMM configuration ({error})") from error


def revision(source: str) -> str:
    """Which model this is: a hub id's commit, or a fingerprint of a folder.

    The fingerprint covers the small files (not CausalMM's own settings), and of every file of
    weights its name, size, beginning and end: tens of gigabytes take minutes to read.
    """
    folder = _config_file(source).parent
    if not Path(source).is_dir():
        return folder.name  # of the hub's cache, which names snapshots by their commit
    digest = hashlib.sha256()
    kinds = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.bin")
    for file in sorted(file for kind in kinds for file in folder.glob(kind)):
        if file.name == CONFIG_NAME:
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with open(file, "rb") as opened:
            if size <= _READ_WHOLE:
                digest.update(opened.read())
            else:
                digest.update(opened.read(_SAMPLED))
                opened.seek(-_SAMPLED, 2)
                digest.update(opened.read())
    return f"sha256:{digest.hexdigest()}"


def no_weights(source: str, holds: Callable[[str], bool]) -> RequestError:
    """The error for a checkpoint without weights; `holds` tells whether it has a file."""
    for part, what in PARTS.items():
        if holds(part):
            return RequestError(f"{source} holds {what}")
    return RequestError(f"{source} holds no weights: expected {' or '.join(WEIGHTS[::2])}")


def _class_of(kind: Any) -> str:
    """How transformers' classes of a model_type begin, in brackets; empty where it has none."""
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

    known = CONFIG_MAPPING_NAMES.get(kind) if isinstance(kind, str) else None
    return "" if known is None else f" ({known.removesuffix('Config')})"


def _is_hub_id(name: str) -> bool:
    # One owner and one repository; ids without an owner are none of ours.
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return False
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _check_folder(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise RequestError(f"{name} holds no config.json: expected the folder of a checkpoint")
    if not any((folder / weights).is_file() for weights in WEIGHTS):
        raise no_weights(name, lambda file: (folder / file).is_file())


def _config_file(source: str) -> Path:
    path = _find(source, "config.json")
    if path is None:
        raise RequestError(f"{source} holds no config.json: expected a checkpoint")
    return path


def _read_config(source: str) -> Mapping[str, Any]:
    return _read_object(source, _config_file(source))


def _read_object(source: str, path: Path) -> Mapping[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path.name} of {source} cannot be read ({error})") from error
    if not isinstance(read, dict):
        raise RequestError(f"{path.name} of {source} is not a JSON object")
    return read


def _find(source: str, name: str, optional: bool = False) -> Path | None:
    """A file of a folder, or of a hub id in the local cache or on the hub; None where it has none.

    Raises FailureError where neither cache nor hub can tell, unless the file is optional.
    """
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(source, name))
    except GatedRepoError:
        raise RequestError(f"{source} asks for access: request it on its hub page") from None
    except RepositoryNotFoundError:
        raise RequestError(f"{source} is neither a folder nor a model on the hub") from None
    except LocalEntryNotFoundError as error:
        if optional:
            return None
        raise FailureError(
            f"{source} is no folder here and no model in the local cache, and the hub cannot be "
            "reached"
        ) from error
    except EntryNotFoundError:
        return None
    except OSError as error:
        raise FailureError(f"{source} cannot be read from the hub ({first_line(error)})") from error
