"""The strength of a contrast at one token: γ · g(t) · gate.

`t` is the place of the decided token in the answer, 1 for the first. Schedule "constant" has g = 1;
schedule "growing" has g(t) = exp(λ t) - 1, and the gate lets a branch act only where the factual
model's best token has a probability below α: both of M3ID (arXiv 2403.14003), whose adjustment is
l + 1[max p < α] · (exp(λ t) - 1) · (l - l_u). Pure functions of tensors.
Tests: tests/decoding/test_strength.py.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from causalmm.config import MAX_STRENGTH

_LARGEST_EXPONENT = 88.0
"""Whose exponential float32 holds."""


@dataclass(frozen=True, kw_only=True)
class TokenStrength:
    """What multiplies the strength of every branch at a token; by default nothing does."""

    forgetting: float | None = None
    """λ of the growing schedule; None: the constant schedule."""
    confident: float = 1.0
    """α of the gate; 1: no gate."""

    def of(self, gamma: float, factual: Tensor, place: int | Tensor) -> float | Tensor:
        """γ · g(t) · gate of a branch: `gamma` itself where nothing multiplies it, else a float32
        tensor that broadcasts to the factual logits [..., vocab]. `place` is t, at least 1.
        """
        strength: float | Tensor = gamma
        if self.forgetting is not None:
            strength = growing(gamma, self.forgetting, place, factual.device)
        if self.confident < 1:
            strength = strength * unsure(factual, self.confident)
        return strength


def growing(
    gamma: float, forgetting: float, place: int | Tensor, device: torch.device | None = None
) -> Tensor:
    """γ · (exp(λ t) - 1), float32 [], and not above the largest γ that is allowed.

    Beyond that float32 cannot hold the difference that is left of two logits.
    """
    if not isinstance(place, Tensor):  # a compiler may have made it a symbol, which math refuses
        place = torch.full((), place, device=device)
    exponent = (forgetting * place.to(device, torch.float32)).clamp(max=_LARGEST_EXPONENT)
    return (gamma * torch.expm1(exponent)).clamp(max=MAX_STRENGTH)


def unsure(factual: Tensor, confident: float) -> Tensor:
    """1 where the best token's probability is below `confident`, else 0: float32 [..., 1].

    Of the factual logits [..., vocab], float32.
    """
    best = factual.amax(dim=-1, keepdim=True) - factual.logsumexp(dim=-1, keepdim=True)
    return (best < math.log(confident)).float()
