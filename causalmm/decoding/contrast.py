"""The backdoor adjustment: subtract what the model would have said anyway.

    adjusted = (1 + sum of γ) · l - sum over branches of γ · l_branch
    adjusted[l < max(l) + ln ε] -= STEP

A contrast may be centered: γ · ((l - l_branch) - mean), with what the difference is on average.

`l` are the factual logits, float32, [..., vocab]; each branch's come from a counterfactual
attention (CausalMM, arXiv 2410.04780, and the plausibility constraint of contrastive decoding,
arXiv 2210.15097). Pure functions of tensors. Tests: tests/decoding/test_contrast.py.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MARGIN = 1024.0
"""Logits between the lowest allowed token and the highest of the others. exp(-104) is 0 in float32,
so probabilities are 0 up to a temperature of 9. Near 1024, float32 still tells 1e-4 apart."""


class Contrast(NamedTuple):
    """One counterfactual branch: its strength (as a tensor [..., 1] one a token, see
    causalmm/decoding/strength.py), its logits [..., vocab], and the mean [vocab] of the difference
    to the factual ones, if that is subtracted (causalmm/decoding/center.py)."""

    gamma: float | Tensor
    logits: Tensor
    mean: Tensor | None = None


def expected_logits(draws: Tensor) -> Tensor:
    """Logits of a branch from its S draws, [S, ..., vocab] -> [..., vocab], float32.

    With several draws this is the mean of their log-probabilities, the Monte-Carlo estimate of the
    expectation over counterfactual attention; a single draw is returned as it is.
    """
    draws = draws.float()
    return draws[0] if draws.shape[0] == 1 else draws.log_softmax(dim=-1).mean(dim=0)


def adjust(factual: Tensor, contrasts: Sequence[Contrast], epsilon: float) -> Tensor:
    """Adjusted logits [..., vocab], float32, of factual logits [..., vocab] and their branches."""
    factual = factual.float()
    adjusted = (1 + sum(contrast.gamma for contrast in contrasts)) * factual
    for contrast in contrasts:
        adjusted = adjusted - contrast.gamma * contrast.logits.float()
        if contrast.mean is not None:
            adjusted = adjusted - contrast.gamma * contrast.mean.to(adjusted.device)
    return mask_implausible(adjusted, factual, epsilon)


def ruled_out(logits: Tensor) -> Tensor:
    """Which tokens no probability is left for: bool, like the adjusted logits [..., vocab].

    Those that ε ruled out, and any that a contrast alone took as far down.
    """
    return logits.amax(dim=-1, keepdim=True) - logits >= MARGIN


def mask_implausible(adjusted: Tensor, factual: Tensor, epsilon: float) -> Tensor:
    """Put every token whose factual probability is below ε times the best one's below the others.

    They all go down by one step, which is finite: their order stays, for a constraint, a minimum
    length or a beam may have to choose among them. The step is larger than the row's whole range by
    `MARGIN`, so none of them is preferred to an allowed token, and beside one its probability is 0
    in float32. ε = 0 keeps every token where it is. The best factual token is always allowed.
    """
    if epsilon == 0:
        return adjusted
    cutoff = factual.amax(dim=-1, keepdim=True) + math.log(epsilon)
    lowest, highest = adjusted.aminmax(dim=-1, keepdim=True)
    step = highest - lowest + MARGIN
    return torch.where(factual < cutoff, adjusted - step, adjusted)
