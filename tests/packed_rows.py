"""Several samples in one row: their inputs, positions and 4-D masks."""

import torch
from tiny_models import PICTURES

LOWEST = torch.finfo(torch.float32).min


def positions(model, inputs):
    """Position ids of one sample as the model makes them: [1, L], or [4, 1, L] with M-RoPE."""
    text = torch.arange(inputs["input_ids"].shape[1])[None]
    if "image_grid_thw" not in inputs:
        return text
    given = {name: part for name, part in inputs.items() if name != "pixel_values"}
    axes, _ = model.model.get_rope_index(**given)
    return torch.cat([text[None], axes])


def packed(model, samples):
    """The samples one after another in a row, and the positions that keep them apart."""
    row = {
        name: torch.cat([each[name] for each in samples], dim=0 if name in PICTURES else -1)
        for name in samples[0]
        if name != "attention_mask"
    }
    return row, torch.cat([positions(model, each) for each in samples], dim=-1)


def block_mask(samples):
    """True where a token of a row of samples sees another: causal, within its own sample."""
    lengths = [each["input_ids"].shape[1] for each in samples]
    return torch.block_diag(*(torch.ones(n, n) for n in lengths)).tril().bool()[None, None]


def additive(seen, hidden=LOWEST):
    return torch.zeros(seen.shape).masked_fill(~seen, hidden)
