"""LLaVA-1.5 with CausalMM: transformers' `LlavaForConditionalGeneration`, plus `causalmm=`."""

from importlib import import_module
from typing import Any

import causalmm  # noqa: F401 - makes torchvision importable

__all__ = ["LlavaForConditionalGeneration", "from_llava"]

_HOME = {
    "LlavaForConditionalGeneration": "llava_causalmm.model",
    "from_llava": "llava_causalmm.authors.model",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: torch and transformers take seconds.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
