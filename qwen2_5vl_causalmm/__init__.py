"""Qwen2.5-VL with CausalMM: upstream's `Qwen2_5_VLForConditionalGeneration`, plus `causalmm=`."""

from causalmm.families.family import lazy_exports
from qwen2_5vl_causalmm.family import FAMILY

__all__ = ["Qwen2_5_VLForConditionalGeneration"]  # noqa: F822 - by __getattr__

__getattr__ = lazy_exports(__name__, FAMILY.model_class)
