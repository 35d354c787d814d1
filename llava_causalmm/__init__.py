"""LLaVA-1.5 with CausalMM: transformers' `LlavaForConditionalGeneration`, plus `causalmm=`."""

from importlib import import_module
from typing import Any

__all__ = ["LlavaForConditionalGeneration", "from_llava"]

_HOME = {
    "LlavaForConditionalGeneration": "llava_causalmm.model",
    "from_llava": "llava_causalmm.authors.model",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: torch and transformers take seconds, and torchvision must be made
    # importable before transformers looks for it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from causalmm.compat import ensure_torchvision

    ensure_torchvision()
    return getattr(import_module(_HOME[name]), name)
