"""Procedurally drawn scenes and questions, and the demonstration models trained on them."""

from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Holds the demonstration models demo-llava and demo-qwen2vl, in the transformers folder format."""
