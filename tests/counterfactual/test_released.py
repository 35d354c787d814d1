"""The released formulas on maps small enough to check by hand."""

import pytest
import torch
from torch.testing import assert_close

from causalmm.counterfactual import released

# Three queries of a causal map; the first row is uniform over its single key.
CAUSAL = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.2, 0.5, 0.3]])[None, None]
FULL = torch.tensor([[0.5, 0.5], [0.9, 0.1]])[None, None]


def test_language_uniform_divides_by_all_keys():
    third = 1 / 3
    expected = torch.tensor([[third, 0, 0], [third, third, 0], [third, third, third]])
    assert_close(released.language_uniform(CAUSAL)[0, 0], expected)


def test_language_reverse_subtracts_from_the_largest_of_the_row():
    expected = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0.3, 0, 0.2]])
    assert_close(released.language_reverse(CAUSAL)[0, 0], expected)


def test_language_reverse_and_normalize_is_undefined_on_a_uniform_row():
    nan = torch.nan
    expected = torch.tensor([[nan, nan, nan], [1.0, 0, 0], [0.6, 0, 0.4]])
    result = released.language_reverse_and_normalize(CAUSAL)
    assert_close(result[0, 0], expected, equal_nan=True)


def test_language_random_shares_out_over_hidden_keys_too():
    numbers = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.2, 0.2, 0.1]])
    expected = torch.tensor([[0.1, 0, 0], [0.5, 0.25, 0], [0.4, 0.4, 0.2]])
    assert_close(released.language_random(CAUSAL, numbers)[0, 0], expected)


def test_language_rows_that_continue_a_cache_see_the_keys_before_them():
    last = CAUSAL[:, :, 2:]
    assert_close(released.language_uniform(last), torch.full((1, 1, 1, 3), 1 / 3))


def test_language_visible_keys_can_be_given():
    padded = torch.tensor([[False, True, True]])
    result = released.language_uniform(CAUSAL, padded)[0, 0]
    assert_close(result, torch.tensor([[0, 1 / 3, 1 / 3]]).expand(3, 3))


def test_vision_formulas():
    assert_close(released.vision_uniform(FULL), torch.full_like(FULL, 0.5))
    assert_close(released.vision_reversed(FULL), 0.9 - FULL)
    numbers = torch.tensor([[0.1, 0.9], [0.4, 0.6]])
    assert_close(released.vision_random(FULL, numbers)[0, 0], 2 * numbers)


def test_vision_reversed_takes_the_largest_of_each_head_and_image():
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    result = released.vision_reversed(maps)
    for image in range(2):
        for head in range(3):
            own = maps[image, head]
            assert_close(result[image, head], own.max() - own)


def test_vision_shuffle_uses_one_permutation_a_head_for_all_images():
    maps = torch.arange(2 * 2 * 4.0).view(2, 2, 2, 2)
    order = torch.tensor([[3, 2, 1, 0], [1, 0, 2, 3]])
    expected = [[[3.0, 2, 1, 0], [5.0, 4, 6, 7]], [[11.0, 10, 9, 8], [13.0, 12, 14, 15]]]
    assert_close(released.vision_shuffle(maps, order).flatten(2), torch.tensor(expected))


def test_features_are_weighed_by_the_mean_map_of_the_heads():
    features = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(0))
    maps = torch.stack([torch.tensor([[1.0, 2], [3, 4]]), torch.zeros(2, 2)])[None]
    weights = torch.tensor([0.5, 1.0, 1.5, 2.0])[None, :, None]
    assert_close(released.apply_to_features(features, maps), features * weights)


@pytest.mark.parametrize("size", [5, 8, 17])
def test_a_constant_map_stays_constant_when_resized(size):
    features = torch.ones(2, 16, 3)
    maps = torch.full((2, 4, size, size), 0.25)
    assert_close(released.apply_to_features(features, maps), features * 0.25)


def test_resizing_averages_what_falls_between_corners():
    # 4 x 4 -> 2 x 2 without aligned corners samples the middle of each 2 x 2 block.
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    result = released.apply_to_features(torch.ones(1, 4, 1), maps)
    assert_close(result.flatten(), torch.tensor([2.5, 4.5, 10.5, 12.5]))
