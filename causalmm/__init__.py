"""CausalMM (arXiv 2410.04780): backdoor-adjusted contrastive decoding for multimodal models."""

from causalmm.families.compat import watch_torchvision

__all__ = ["BranchTrace", "CausalMMConfig", "StepLogits", "answer_questions"]

_HOME = {
    "BranchTrace": "causalmm.decoding.trace",
    "CausalMMConfig": "causalmm.config",
    "StepLogits": "causalmm.decoding.trace",
    "answer_questions": "causalmm.inputs.questions",
}

watch_torchvision()


def __getattr__(name: str) -> object:
    # Loaded on first use: an installed causalmm is imported whenever Python starts.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
