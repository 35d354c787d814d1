"""Pictures noised by a diffusion schedule: the counterfactual image of VCD (arXiv 2311.16922).

    x_t = sqrt(s_t) x + sqrt(1 - s_t) z,    s_t = product of (1 - beta_i) over the steps i <= t

for normalised pixels x and standard normal numbers z; the 1000 values of beta rise from 1e-5 to
0.5e-2 along a sigmoid. Like all random numbers here (random_weights.py), z is a function of its
place: of (seed, draw, place in the picture). So every picture of a batch gets the same noise, and
the one that it gets alone. Tests: tests/counterfactual/test_pixel_noise.py.
"""

import math

import torch
from torch import Tensor

from causalmm.counterfactual.random_weights import (
    as_words,
    key_hashes,
    number,
    query_hashes,
    stream,
)

STEPS = 1000
_LOWEST, _HIGHEST, _STEEPNESS = 1e-5, 0.5e-2, 6.0
_RADIUS, _ANGLE = -1, -2
"""In the place of the number of a layer, which is 0 or more."""


def kept_share(step: int, device: torch.device | None = None) -> Tensor:
    """s_t, the share of the picture's variance that is left after `step` (0 to 999): float32 []."""
    rise = torch.linspace(-_STEEPNESS, _STEEPNESS, STEPS, device=device).sigmoid()
    betas = rise * (_HIGHEST - _LOWEST) + _LOWEST
    return (1 - betas).cumprod(dim=0)[step]


def gaussian(seed: int, draw: int, places: Tensor, width: int) -> Tensor:
    """Standard normal numbers, float32 [P, width], of the rows of pixels at `places`, int64 [P].

    By the formula of Box and Muller, from two uniform numbers each.
    """
    columns = key_hashes(torch.arange(width, device=places.device))

    def uniform(which: int) -> Tensor:
        state = as_words([stream(seed, draw, which)], places.device)
        rows = query_hashes(state, 1, places.unsqueeze(0)).view(-1, 1)
        return number(rows, columns)

    radius = (-2 * uniform(_RADIUS).log()).sqrt()
    return radius * (2 * math.pi * uniform(_ANGLE)).cos()


def noised(pixels: Tensor, noise: Tensor, step: int) -> Tensor:
    """Pixels [N, ...] mixed with noise of the same shape, or [...]; computed in float32, returned
    in the dtype of the pixels."""
    kept = kept_share(step, pixels.device)
    return (kept.sqrt() * pixels.float() + (1 - kept).sqrt() * noise).to(pixels.dtype)
