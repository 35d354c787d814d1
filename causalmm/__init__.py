"""CausalMM (arXiv 2410.04780): backdoor-adjusted contrastive decoding for multimodal models."""

from causalmm.config import CausalMMConfig
from causalmm.trace import BranchTrace, StepLogits

__all__ = ["BranchTrace", "CausalMMConfig", "StepLogits"]
