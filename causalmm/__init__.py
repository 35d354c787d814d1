"""CausalMM (arXiv 2410.04780): backdoor-adjusted contrastive decoding for multimodal models."""

from causalmm.compat import watch_torchvision

__all__ = ["BranchTrace", "CausalMMConfig", "StepLogits"]

_HOME = {
    "BranchTrace": "causalmm.trace",
    "CausalMMConfig": "causalmm.config",
    "StepLogits": "causalmm.trace",
}

watch_torchvision()


def __getattr__(name: str) -> object:
    # Loaded on first use: an installed causalmm is imported whenever Python starts.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
