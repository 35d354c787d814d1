"""Qwen2-VL with CausalMM: transformers' `Qwen2VLForConditionalGeneration`, plus `causalmm=`."""

from typing import Any

import causalmm  # noqa: F401 - makes torchvision importable

__all__ = ["Qwen2VLForConditionalGeneration"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: torch and transformers take seconds.
    if name != "Qwen2VLForConditionalGeneration":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qwen2vl_causalmm.model import Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration
