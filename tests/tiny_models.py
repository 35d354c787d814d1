"""Tiny random models of the real classes: ours and upstream's with the same weights, and inputs.

Weights are drawn wider than at initialisation, so that attention is far from uniform and every
counterfactual visibly changes the output.
"""

import copy
from typing import Any

import torch
from family_rows import FamilyRow, row_of
from tiny_words import PAD
from torch import Tensor

from causalmm.families.family import load_reference


def model_pair(
    family: str | FamilyRow, attention: str = "eager", **changes: Any
) -> tuple[Any, Any]:
    """Our model and upstream's, float32, same weights, generating without an end token."""
    wanted = row_of(family)
    config, ours = wanted.config(**changes), load_reference(wanted.family.model_class)
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):  # transformers draws weights from the global stream
        torch.manual_seed(0)
        reference = wanted.upstream(copy.deepcopy(config)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in reference.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Vectors are norms and biases: keep norms near 1 and biases near 0.
            parameter.add_(noise * (0.25 if parameter.ndim > 1 else 0.05))
    model = ours(copy.deepcopy(config)).eval()
    model.load_state_dict(reference.state_dict())
    for each in (model, reference):
        each.generation_config.eos_token_id = None
        each.generation_config.pad_token_id = PAD
    return model, reference


PICTURES = ("pixel_values", "image_grid_thw", "image_sizes")
"""Inputs that say what an image is: its pixels, its size in patches or in pixels."""


def sample(family: str | FamilyRow, seed: int, **shape: Any) -> dict[str, Tensor]:
    """Model inputs of one prompt, as `FamilyRow.sample`."""
    return row_of(family).sample(seed, **shape)


def pad_together(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One left-padded batch of single samples."""
    length = max(each["input_ids"].shape[1] for each in samples)
    batch: dict[str, list[Tensor]] = {name: [] for name in samples[0]}
    fill = {"input_ids": PAD, "attention_mask": 0, "mm_token_type_ids": 0}
    for each in samples:
        for name, value in each.items():
            if name in fill:
                missing = length - value.shape[1]
                value = torch.nn.functional.pad(value, (missing, 0), value=fill[name])
            batch[name].append(value)
    return {name: torch.cat(values) for name, values in batch.items()}
