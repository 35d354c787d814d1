"""Noise on pixels is normal, a function of its place, and mixed in by the published schedule."""

import pytest
import torch
from noised_pictures import alpha_bar, normal
from torch.testing import assert_close

from causalmm.counterfactual.pixel_noise import STEPS, gaussian, kept_share, noised

PLACES = torch.arange(600)


@pytest.mark.parametrize("step", [0, 1, 250, 500, 998, 999])
def test_the_schedule(step):
    assert_close(kept_share(step).item(), alpha_bar(step), atol=1e-6, rtol=1e-4)


def test_a_picture_fades_with_every_step():
    kept = torch.stack([kept_share(step) for step in range(STEPS)])
    assert (kept.diff() < 0).all()
    assert kept[0] > 0.999
    assert kept[-1] < 0.1


def test_a_picture_keeps_its_share_and_its_dtype():
    pixels, noise = torch.randn(2, 5, 7), torch.randn(5, 7)
    kept = alpha_bar(500)
    assert_close(noised(pixels, noise, 500), kept**0.5 * pixels + (1 - kept) ** 0.5 * noise)
    half = noised(pixels.bfloat16(), noise, 500)
    assert half.dtype == torch.bfloat16
    # Rounded once, at the end.
    assert torch.equal(half, noised(pixels.bfloat16().float(), noise, 500).bfloat16())


def test_numbers_are_standard_normal():
    numbers = gaussian(3, 0, PLACES, 500).flatten().double()
    assert numbers.isfinite().all()
    expected = (torch.arange(len(numbers)) + 0.5) / len(numbers)
    distance = (torch.special.ndtr(numbers.sort().values) - expected).abs().max()
    assert distance < 1.95 / len(numbers) ** 0.5  # Kolmogorov: of one sample in 1000 it is larger
    assert 4 < numbers.abs().max() < 7


def test_numbers_are_uncorrelated():
    first, other = (gaussian(0, draw, PLACES, 500).double() for draw in (0, 1))
    pairs = {
        "columns": (first[:, 1:], first[:, :-1]),
        "rows": (first[1:], first[:-1]),
        "draws": (first, other),
        "seeds": (first, gaussian(1, 0, PLACES, 500)),
        "squares": (first[:, 1:] ** 2 - 1, first[:, :-1] ** 2 - 1),
    }
    for name, (left, right) in pairs.items():
        assert abs((left * right).mean()) < 10 / left.numel() ** 0.5, name


def test_numbers_depend_on_their_place_only():
    whole = gaussian(5, 2, PLACES, 40)
    assert torch.equal(gaussian(5, 2, PLACES[100:110], 30), whole[100:110, :30])
    assert torch.equal(whole, normal(5, 2, 600, 40))
