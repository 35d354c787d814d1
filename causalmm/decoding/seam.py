"""The only module of this package that patched modeling files import.

So everything behind it can move without touching a patch. Tests: tests/test_layout.py.
"""

from causalmm.decoding.language_pass import LanguagePass
from causalmm.decoding.vision_pass import PackedInputs, VisionPass

__all__ = ["LanguagePass", "PackedInputs", "VisionPass"]
