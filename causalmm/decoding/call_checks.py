"""What a call of the model brings with it, checked before any work: a cache, encoded pictures.

Rows: B samples a branch (causalmm/decoding/plan.py). A plan of None stands for the plain model,
which cannot go on with what branches left behind either. Tests: tests/decoding/test_contracts.py.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, StaticLayer

from causalmm.counterfactual.attention_mask import require
from causalmm.decoding.branch_state import state_of
from causalmm.decoding.kv_cache import BranchStaticLayer, PreallocatedLayer
from causalmm.decoding.plan import BranchPlan

_LAYERS = (DynamicLayer, StaticLayer, PreallocatedLayer, BranchStaticLayer)
"""Layers known to work: anything else might drop or change a branch's keys."""
_SAME_PLAN = (
    "continue a cache only with the CausalMM configuration that filled it, and without one only "
    "what was filled without"
)


def check_cache(cache: Any, plan: BranchPlan | None, batch: int) -> None:
    """Raise ValueError unless a plan's keys can be kept in `cache`, and continue what it holds.

    `batch` is the number of samples. Another plan may continue a cache only if it would have left
    the same keys in it; without branches on both sides nothing is checked.
    """
    if cache is None:
        return
    wanted = {} if plan is None else plan.key_settings()
    layers = getattr(cache, "layers", [cache])
    if plan is not None:
        for layer in layers:
            if type(layer) not in _LAYERS:
                raise ValueError(
                    f"causalmm does not support past_key_values of type {type(cache).__name__} "
                    f"with layers of type {type(layer).__name__}: expected a DynamicCache or "
                    "StaticCache"
                )
            if isinstance(layer, StaticLayer):
                check_static(plan)
    state = state_of(cache)
    if state is None and (not wanted or _is_empty(cache)):
        return
    filled = {} if state is None else state.filled_by
    for name in filled | wanted:
        if filled.get(name) != wanted.get(name):
            raise ValueError(
                f"past_key_values were filled {told(name, filled)}, this call is made "
                f"{told(name, wanted)}: {_SAME_PLAN}"
            )
    rows, branches = len(layers[0].keys), layers[0].branches
    if rows != batch * branches:
        raise ValueError(
            f"past_key_values hold {rows // branches} samples, this call has {batch}: continue a "
            "cache with as many samples as filled it"
        )


def check_static(plan: BranchPlan) -> None:
    """Raise ValueError where a plan cannot be followed with a static cache."""
    edit = plan.language
    if edit and edit.formula.counts_every_key:
        raise ValueError(
            f"normalization={edit.normalization!r} with language_method={edit.method!r} counts all "
            "keys, those a static cache has not filled yet included: expected a dynamic cache"
        )


def _is_empty(cache: Any) -> bool:
    length = cache.get_seq_length()
    if not torch.compiler.is_compiling() or isinstance(length, int):
        return int(length) == 0
    require(length == 0, f"past_key_values were filled without branches: {_SAME_PLAN}")
    return True


def told(name: str, settings: Mapping[str, Any]) -> str:
    """One of a plan's key settings, for a message; none: there are no branches."""
    value = settings.get(name)
    if not settings:
        return "without branches"
    if isinstance(value, tuple):  # of truth values, one a layer
        name = name.replace("edited", "layers")
        value = [layer for layer, edited in enumerate(value) if edited]
    return f"with {name}={value!r}"


def check_encoded(encoded: Mapping[str, Any] | None, plan: BranchPlan | None, width: int) -> None:
    """Raise ValueError unless features that were encoded before, `mm_encoder_outputs`, are those
    of the plan's branches side by side: `width` channels, the decoder's, a branch."""
    branches = 1 if plan is None else 1 + plan.image_branches
    for name, output in (encoded or {}).items():
        for features in getattr(output, "pooler_output", None) or ():
            if features.shape[-1] != branches * width:
                raise ValueError(
                    f"mm_encoder_outputs[{name!r}] have {features.shape[-1]} channels, this call "
                    f"needs {branches * width} ({branches} x {width}): encode pictures with the "
                    "CausalMM configuration that they are used with, "
                    "get_image_features(..., causalmm=model.causalmm_plan(config))"
                )
