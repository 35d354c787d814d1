"""The adjustment equals its formula, written out token by token, and never loses the best token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causalmm.config import MAX_STRENGTH
from causalmm.decoding.contrast import Contrast, adjust, expected_logits, ruled_out

FACTUAL = torch.tensor([[2.0, 1.0, -3.0], [0.0, 0.5, 0.25]])
VISION = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
LANGUAGE = torch.tensor([[0.0, 1.0, 4.0], [3.0, 1.0, 1.0]])


def by_hand(factual, branches, epsilon):
    probabilities = [math.exp(value) for value in factual]
    adjusted = []
    for token, value in enumerate(factual):
        score = (1 + sum(gamma for gamma, _ in branches)) * value
        adjusted.append(score - sum(gamma * logits[token] for gamma, logits in branches))
    step = max(adjusted) - min(adjusted) + 1024
    return [
        score - step if probabilities[token] < epsilon * max(probabilities) else score
        for token, score in enumerate(adjusted)
    ]


@pytest.mark.parametrize("epsilon", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("strengths", [(1.0, 0.5), (0.0, 2.0)])
def test_equals_the_formula_by_hand(epsilon, strengths):
    contrasts = [Contrast(strengths[0], VISION), Contrast(strengths[1], LANGUAGE)]
    expected = [
        by_hand(
            FACTUAL[row].tolist(),
            [(strengths[0], VISION[row].tolist()), (strengths[1], LANGUAGE[row].tolist())],
            epsilon,
        )
        for row in range(2)
    ]
    torch.testing.assert_close(adjust(FACTUAL, contrasts, epsilon), torch.tensor(expected))


def test_no_branch_and_no_mask_changes_nothing():
    assert torch.equal(adjust(FACTUAL, [], 0), FACTUAL)


def test_equal_branches_cancel():
    adjusted = adjust(FACTUAL, [Contrast(1.5, FACTUAL), Contrast(0.5, FACTUAL)], 0)
    torch.testing.assert_close(adjusted, FACTUAL)


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=8),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_best_token_survives_in_every_dtype(logits, epsilon, dtype):
    factual = torch.tensor([logits], dtype=dtype)
    adjusted = adjust(factual, [Contrast(1.0, factual.flip(-1))], epsilon)
    assert adjusted.dtype == torch.float32
    assert adjusted.isfinite().all()
    allowed = factual.float() >= factual.float().amax() + math.log(epsilon or 1e-300)
    assert adjusted[allowed].min() > adjusted[~allowed].max() if not allowed.all() else True
    assert (adjusted.softmax(-1)[~allowed] == 0).all()


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=20),
    st.floats(1e-6, 1),
    st.sampled_from([0.0, 0.5, 1.0, 30.0, MAX_STRENGTH]),
    st.floats(0.1, 9),
)
def test_ruled_out_tokens_keep_their_order_below_all_others(logits, epsilon, gamma, temperature):
    factual = torch.tensor(logits)
    contrasts = [Contrast(gamma, factual.flip(0).sin())]
    unmasked, masked = (adjust(factual, contrasts, each) for each in (0, epsilon))
    allowed = factual >= factual.amax() + math.log(epsilon)
    assert torch.equal(masked[allowed], unmasked[allowed])
    below, above = masked[~allowed], masked[allowed]
    assert (below[:, None] < above).all()
    assert masked.isfinite().all()
    order = unmasked[~allowed].argsort()
    assert (below[order].diff() >= 0).all()
    assert torch.equal(ruled_out(masked), ~allowed) or gamma > 1
    assert (masked / temperature).softmax(-1)[~allowed].sum() == 0


def test_several_draws_are_averaged_as_log_probabilities():
    draws = torch.stack([VISION, LANGUAGE])
    expected = (VISION.log_softmax(-1) + LANGUAGE.log_softmax(-1)) / 2
    torch.testing.assert_close(expected_logits(draws), expected)
    assert torch.equal(expected_logits(draws[:1]), VISION)
