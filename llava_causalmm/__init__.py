"""LLaVA-1.5 with CausalMM: transformers' `LlavaForConditionalGeneration`, plus `causalmm=`."""

from typing import Any

__all__ = ["LlavaForConditionalGeneration"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: torch and transformers take seconds, and torchvision must be made
    # importable before transformers looks for it.
    if name != "LlavaForConditionalGeneration":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from causalmm.compat import ensure_torchvision

    ensure_torchvision()
    from llava_causalmm.model import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration
