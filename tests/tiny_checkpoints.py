"""Tiny random checkpoints on disk, complete with tokenizer, image processor and chat template."""

from pathlib import Path

import torch
from family_rows import FamilyRow, row_of
from tiny_models import model_pair
from tiny_words import FIRST_WORD


def save_checkpoint(family: str | FamilyRow, folder: Path) -> Path:
    """A model of tests/tiny_models.py with its processor, in the transformers format."""
    torch.manual_seed(0)
    model, _ = model_pair(family, "sdpa")
    # Words only: a special token would not show in an answer.
    model.generation_config.suppress_tokens = list(range(FIRST_WORD))
    model.save_pretrained(folder)
    row_of(family).processor().save_pretrained(folder)
    return folder
