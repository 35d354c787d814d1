"""The pictures of a sample noised by hand: the schedule of VCD written out, one picture at a time.

It shares with the package only what defines a uniform random number (tests/random_numbers.py).
"""

import numpy as np
import torch
from random_numbers import uniform

PICTURES = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}
"""Inputs that hold pixels, and the sizes of those that are packed patches."""


def alpha_bar(step):
    """How much of the picture's variance is left after a step of the schedule."""
    rise = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000)))
    return float(np.prod(1 - (rise * (0.5e-2 - 1e-5) + 1e-5)[: step + 1]))


def normal(seed, draw, rows, columns):
    """Standard normal numbers [rows, columns] from two uniform ones each."""
    places = torch.arange(rows), torch.arange(columns)
    radius, angle = (uniform(seed, (draw,), which, 1, *places)[0, 0] for which in (-1, -2))
    return torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * torch.pi * angle)


def noised(picture, seed, draw, step):
    """One picture, [C, H, W] or patches [P, C]."""
    noise = normal(seed, draw, picture[..., 0].numel(), picture.shape[-1]).view_as(picture)
    kept = alpha_bar(step)
    return kept**0.5 * picture + (1 - kept) ** 0.5 * noise


def with_noise(inputs, seed, draw, step):
    """Model inputs with every picture noised, as upstream's model takes them."""
    changed = dict(inputs)
    for name, grid in PICTURES.items():
        if (pixels := inputs.get(name)) is None:
            continue
        if grid in inputs:
            pictures = pixels.split(inputs[grid].prod(dim=-1).tolist())
            changed[name] = torch.cat([noised(each, seed, draw, step) for each in pictures])
        else:
            changed[name] = torch.stack([noised(each, seed, draw, step) for each in pixels])
    return changed
