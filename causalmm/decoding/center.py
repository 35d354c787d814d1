"""The file of a center: what each branch's contrast l - l_branch is on average.

    adjusted = l + sum over branches of γ · ((l - l_branch) - mean)

The mean, a vector over the vocabulary, knows nothing of any picture: to subtract it leaves of a
contrast what is special to a picture and a question. `diagnose --center` estimates it from
questions (causalmm/evaluation/diagnosis/center.py). The file is of the safetensors format: a mean
float32 [vocab] under each branch's name, and a JSON object in the metadata that says how it was
made. Tests: tests/decoding/test_center.py.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from causalmm.config import CausalMMConfig
from causalmm.decoding.call_checks import told
from causalmm.decoding.plan import BranchPlan
from causalmm.errors import first_line

_ABOUT = "causalmm_center"
"""The metadata's key."""


def branch_settings(plan: BranchPlan) -> dict[str, dict[str, Any]]:
    """The settings that decide the logits of each of a plan's branches, by its name.

    Those of a vision branch are the same beside a language branch and without one.
    """
    settings = plan.key_settings()
    settings.pop("mode", None)
    if plan.joint:
        return {"joint": settings}
    found = {}
    if plan.vision:
        found["vision"] = {k: v for k, v in settings.items() if not k.startswith("language_")}
    if plan.language:
        found["language"] = {k: v for k, v in settings.items() if k.startswith("language_")}
    return found


def center_bytes(means: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """A file of means [vocab] by branch; `about` needs "settings", `branch_settings` of the plan,
    and may hold anything else that JSON can."""
    tensors = {name: mean.float().contiguous().cpu() for name, mean in means.items()}
    return save(tensors, metadata={_ABOUT: json.dumps(about)})


def read_metadata(data: bytes, key: str) -> Any:
    """What JSON a file of the safetensors format has in its metadata under a key.

    Raises ValueError, KeyError or TypeError where it is no such file.
    """
    # The format: eight bytes for the length of a JSON header, in which metadata are.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"][key])


def read_about(data: bytes) -> dict[str, Any]:
    """How a center was made, `about` of its file. Raises ValueError where it is none."""
    try:
        about = read_metadata(data, _ABOUT)
        if isinstance(about["settings"], dict):
            return about
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError("expected a file of `diagnose --center`")


def read_center(config: CausalMMConfig, plan: BranchPlan, vocabulary: int) -> dict[str, Tensor]:
    """The means float32 [vocab] of a plan's branches, from the file that its configuration names.

    Raises ValueError for a file that cannot be read, is another one than the configuration says,
    or was made with other branches or for another vocabulary.
    """
    data, _ = config.read_center()
    named = f"center={config.center!r}"
    try:
        made, means = read_about(data)["settings"], load(data)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{named} cannot be read: {first_line(error)}") from error
    wanted = branch_settings(plan)
    for branch, settings in wanted.items():
        if branch not in made or branch not in means:
            raise ValueError(
                f"{named} has the branches {', '.join(made)} and none for {branch!r}: expected a "
                "file that was made with this mode"
            )
        _check_settings(named, made[branch], settings)
        mean = means[branch]
        if mean.shape != (vocabulary,):
            raise ValueError(
                f"{named} has means of shape {list(mean.shape)}, the model's vocabulary has "
                f"{vocabulary} tokens: expected a file that was made with this model"
            )
        if mean.dtype != torch.float32 or not bool(mean.isfinite().all()):
            raise ValueError(f"{named}: expected means of finite float32 numbers")
    return {branch: means[branch] for branch in wanted}


def _check_settings(named: str, made: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    read = json.loads(json.dumps(wanted))  # which has lists in the place of tuples
    for name in made | wanted:
        if made.get(name) != read.get(name):
            there = {key: tuple(it) if isinstance(it, list) else it for key, it in made.items()}
            raise ValueError(
                f"{named} was made {told(name, there)}, this call is made "
                f"{told(name, wanted)}: make one with `diagnose --center`"
            )
