"""CausalMM: backdoor-adjusted contrastive decoding for vision-language models (arXiv 2410.04780)."""

from causalmm.config import CausalMMConfig
from causalmm.trace import BranchTrace, StepLogits

__all__ = ["BranchTrace", "CausalMMConfig", "StepLogits"]
