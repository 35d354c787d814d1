"""The backdoor adjustment: subtract what the model would have said anyway.

    adjusted = (1 + sum of γ) · l - sum over branches of γ · l_branch
    adjusted[l < max(l) + ln ε] = -inf

`l` are the factual logits, float32, [..., vocab]; each branch's come from a counterfactual
attention (CausalMM, arXiv 2410.04780, and the plausibility constraint of contrastive decoding,
arXiv 2210.15097). Pure functions of tensors. Held by tests/test_adjust.py.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Contrast(NamedTuple):
    """One counterfactual branch: its strength and its logits [..., vocab]."""

    gamma: float
    logits: Tensor


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
    adjusted = factual
    if contrasts:
        adjusted = (1 + sum(contrast.gamma for contrast in contrasts)) * factual
        for contrast in contrasts:
            adjusted = adjusted - contrast.gamma * contrast.logits.float()
    return mask_implausible(adjusted, factual, epsilon)


def mask_implausible(adjusted: Tensor, factual: Tensor, epsilon: float) -> Tensor:
    """Set to -inf every token whose factual probability is below ε times the best one's.

    ε = 0 keeps every token. The best factual token always survives.
    """
    if epsilon == 0:
        return adjusted
    cutoff = factual.amax(dim=-1, keepdim=True) + math.log(epsilon)
    return adjusted.masked_fill(factual < cutoff, -torch.inf)
