"""Qwen2-VL with CausalMM: transformers' `Qwen2VLForConditionalGeneration`, plus `causalmm=`."""

from typing import Any

__all__ = ["Qwen2VLForConditionalGeneration"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: torch and transformers take seconds, and torchvision must be made
    # importable before transformers looks for it.
    if name != "Qwen2VLForConditionalGeneration":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from causalmm.compat import ensure_torchvision

    ensure_torchvision()
    from qwen2vl_causalmm.model import Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration
