"""What a call of the model brings with it, checked before any work: a cache, encoded pictures.

Rows: B samples a branch (causalmm/decoding/plan.py). A plan of None stands for the plain model,
which cannot go on with what branches left behind either. Tests: tests/decoding/test_contracts.py.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers.cache_utils import BaseQuantizedLayer, DynamicLayer, StaticLayer

from causalmm.decoding.plan import BranchPlan


def check_cache(cache: Any, plan: BranchPlan | None, batch: int) -> None:
    """Raise ValueError unless a plan's rows can be kept in `cache`, and continue what it holds.

    `batch` is the number of samples. A cache of the plain model must hold that many rows.
    """
    if cache is None:
        return
    if plan is not None:
        for layer in getattr(cache, "layers", [cache]):
            _check_kind(cache, layer)
    for number, held in _held_rows(cache):
        needed = batch * (1 if plan is None else plan.branches_in_layer(number))
        if held != needed:
            raise ValueError(
                f"past_key_values hold {held} rows in layer {number}, this call needs {needed} "
                f"(for a batch of {batch}): continue a cache only with the CausalMM configuration "
                "that filled it, and without one only what was filled without"
            )


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


def _check_kind(cache: Any, layer: Any) -> None:
    # By what is known to work: anything else might drop or change a branch's keys.
    if isinstance(layer, BaseQuantizedLayer) or not isinstance(layer, DynamicLayer | StaticLayer):
        raise ValueError(
            f"causalmm does not support past_key_values of type {type(cache).__name__} with layers "
            f"of type {type(layer).__name__}: expected a DynamicCache or StaticCache"
        )


def _held_rows(cache: Any) -> Iterator[tuple[int, int]]:
    """Number and rows of each layer that holds plain keys [rows, G, K, D]."""
    for number, layer in enumerate(getattr(cache, "layers", ())):
        keys = getattr(layer, "keys", None)
        quantised = isinstance(layer, BaseQuantizedLayer)
        if isinstance(keys, Tensor) and keys.ndim == 4 and not quantised:
            yield number, keys.shape[0]
