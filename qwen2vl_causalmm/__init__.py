"""Qwen2-VL with CausalMM: transformers' `Qwen2VLForConditionalGeneration`, plus `causalmm=`."""

from causalmm.families.family import lazy_exports
from qwen2vl_causalmm.family import FAMILY

__all__ = ["Qwen2VLForConditionalGeneration"]  # noqa: F822 - by __getattr__

__getattr__ = lazy_exports(__name__, FAMILY.model_class)
