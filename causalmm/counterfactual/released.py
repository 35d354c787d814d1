"""The released formulas, as plain dense functions on an attention map.

B rows, H heads, Q queries, K keys; in the vision encoder Q = K = N. `weights` are softmax maps
[B, H, Q, K]; `visible` is True where attending is allowed (None: the lower triangle) and broadcasts
to them. Chance is an argument. They are written to be read: the oracle of the tests and the source
of the figures. They share nothing with the fast path in attention.py.
Held by tests/counterfactual/test_released.py.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def language_uniform(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """1/K on visible keys, K being the number of all keys: a row sums to less than 1."""
    return _hide(torch.full_like(weights, 1 / weights.shape[-1]), visible)


def language_reverse(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """The row's largest weight minus the weight: the favourite key becomes the ignored one."""
    return _hide(weights.amax(dim=-1, keepdim=True) - weights, visible)


def language_reverse_and_normalize(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """`language_reverse`, each row divided by its sum: 0/0 = NaN where a row is uniform."""
    reversed_weights = language_reverse(weights, visible)
    return reversed_weights / reversed_weights.sum(dim=-1, keepdim=True)


def language_random(weights: Tensor, numbers: Tensor, visible: Tensor | None = None) -> Tensor:
    """Numbers of U(0, 1) divided by their sum over all K keys, hidden ones too, then masked."""
    return _hide((numbers / numbers.sum(dim=-1, keepdim=True)).expand_as(weights), visible)


def vision_uniform(weights: Tensor) -> Tensor:
    """The mean of the map everywhere."""
    return weights.mean(dim=(-2, -1), keepdim=True).expand_as(weights)


def vision_reversed(weights: Tensor) -> Tensor:
    """The largest weight of the whole map (of one head and image) minus the weight."""
    return weights.amax(dim=(-2, -1), keepdim=True) - weights


def vision_random(weights: Tensor, numbers: Tensor) -> Tensor:
    """Twice the numbers of U(0, 1): rows sum to about N."""
    return (2 * numbers).expand_as(weights)


def vision_shuffle(weights: Tensor, permutations: Tensor) -> Tensor:
    """The map's entries in another order: entry t becomes entry permutations[head, t].

    One permutation [N * N] a head, the same for all images: [H, N * N].
    """
    flat = weights.flatten(-2)
    return flat.gather(-1, permutations.expand_as(flat)).view_as(weights)


def apply_to_features(features: Tensor, maps: Tensor) -> Tensor:
    """Weigh image features [B, T, C] by edited maps [B, H, N, N], T a square number.

    Each map as a whole is resized to the patch grid as if it were a picture, then averaged over
    heads: patch t is multiplied by the t-th pixel.
    """
    side = round(features.shape[1] ** 0.5)
    grid = interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)
    return features * grid.mean(dim=1).flatten(1).unsqueeze(-1)


def _hide(weights: Tensor, visible: Tensor | None) -> Tensor:
    if visible is None:
        queries, keys = weights.shape[-2:]
        # The last query sees every key, also where queries continue a cache.
        visible = torch.ones(queries, keys, dtype=torch.bool, device=weights.device)
        visible = visible.tril(keys - queries)
    return weights.masked_fill(~visible, 0.0)
