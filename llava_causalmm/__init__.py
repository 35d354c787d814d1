"""LLaVA-1.5 with CausalMM: transformers' `LlavaForConditionalGeneration`, plus `causalmm=`."""

from causalmm.families.family import lazy_exports
from llava_causalmm.family import FAMILY

__all__ = ["LlavaForConditionalGeneration", "from_llava"]  # noqa: F822 - by __getattr__

__getattr__ = lazy_exports(__name__, FAMILY.model_class, "llava_causalmm.authors.wrap:from_llava")
