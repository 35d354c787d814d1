"""LLaVA-NeXT with CausalMM: upstream's `LlavaNextForConditionalGeneration`, plus `causalmm=`."""

from causalmm.families.family import lazy_exports
from llavanext_causalmm.family import FAMILY

__all__ = ["LlavaNextForConditionalGeneration"]  # noqa: F822 - by __getattr__

__getattr__ = lazy_exports(__name__, FAMILY.model_class)
