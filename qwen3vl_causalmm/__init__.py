"""Qwen3-VL with CausalMM: upstream's `Qwen3VLForConditionalGeneration`, plus `causalmm=`."""

from causalmm.families.family import lazy_exports
from qwen3vl_causalmm.family import FAMILY

__all__ = ["Qwen3VLForConditionalGeneration"]  # noqa: F822 - by __getattr__

__getattr__ = lazy_exports(__name__, FAMILY.model_class)
