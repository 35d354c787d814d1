"""Random numbers are a function of their place, and look random."""

import pytest
import torch
from random_numbers import uniform

from causalmm.counterfactual import random_weights
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.random_weights import (
    WORD,
    fold,
    mix,
    number,
    permutation,
    random_hashes,
    stream,
)

PLACES = torch.arange(96)
FROZEN_STREAMS = [3239987726, 1094761656, 1648917469]
FROZEN_NUMBERS = [0.85589886, 0.83359087, 0.23776394]


def numbers(seed=0, draws=(0,), layer=0, heads=2, query=PLACES, key=PLACES):
    return uniform(seed, draws, layer, heads, query, key)


def test_numbers_are_repeatable_and_above_0_and_at_most_1():
    first = numbers(draws=(0, 1))
    assert first.shape == (2, 2, 96, 96)
    assert first.dtype == torch.float32
    assert first.gt(0).all()
    assert first.le(1).all()
    assert torch.equal(first, numbers(draws=(0, 1)))


@pytest.fixture(scope="module")
def compiled_number():
    """`number` as a compiler sees it, which takes 64 bits for the words."""
    torch._dynamo.reset()
    return torch.compile(number, backend="eager", fullgraph=True, dynamic=True)


def hashes_of(word):
    """Hashes whose number is made of this last word, or None: the steps of `number` backwards."""
    folded = word * pow(random_weights.SECOND, -1, 2**32) & WORD
    if folded >> 31:  # folding clears the sign
        return None
    product = folded ^ folded >> 15 ^ folded >> 30
    signed = (product ^ 2**31) - 2**31
    return torch.tensor([[signed], [1]], dtype=torch.int32) if product % 2 else None


@pytest.mark.parametrize("first", [2**31, 2**31 - 400, 0, WORD - 400])
def test_the_most_extreme_words_stay_inside_the_interval(first, compiled_number):
    """The lowest, the highest, and those around the middle, where the sign changes."""
    tried = 0
    for word in range(first, first + 401):
        if (hashes := hashes_of(word)) is not None:
            tried += 1
            signed = (word ^ 2**31) - 2**31
            exact = signed / 2**32 + 0.5
            found = number(*hashes)
            assert 0 < found <= 1
            assert abs(found.item() - exact) < 2**-23
            assert torch.equal(compiled_number(*hashes), found)
    assert tried > 40


def test_compiled_numbers_are_the_same(compiled_number):
    chance = torch.Generator().manual_seed(0)
    sizes = ((3, 40, 1), (1, 1, 500))
    queries, keys = (torch.randint(-(2**31), 2**31, size, generator=chance) | 1 for size in sizes)
    queries[0, :4, 0] = keys[0, 0, :4] = torch.tensor([1, -1, 2**31 - 1, 1 - 2**31])
    queries, keys = queries.int(), keys.int()
    before = queries.clone(), keys.clone()
    assert torch.equal(compiled_number(queries, keys), number(queries, keys))
    assert torch.equal(queries, before[0])
    assert torch.equal(keys, before[1])


REAL = torch.arange(11) >= torch.tensor([[0], [4], [9]])
MASKS = {
    "causal": AttentionMask(query_start=8),
    "padded": AttentionMask(keys=REAL, query_start=8),
    "dense": AttentionMask(mask=REAL[:, None, None].expand(-1, 1, 3, -1), query_start=8),
    "counter": AttentionMask(query_start=torch.tensor(8)),
}


@pytest.mark.parametrize("mask", MASKS)
def test_hashes_of_several_layers_give_the_numbers_of_each(mask):
    draws, mask = (0, 3), MASKS[mask]
    shape, device = (6, 4, 3, 11), torch.device("cpu")
    found = random_hashes(mask, shape, device, -7, draws, (1, 2, 5))
    own = mask.query_positions(3, 11), mask.key_positions(11)
    for layer, hashes in zip((1, 2, 5), found, strict=True):
        expected = uniform(-7, draws, layer, 4, *own)  # [S, n or none, H, Q, K]
        expected = expected if expected.ndim == 5 else expected.unsqueeze(1)
        expected = expected.expand(-1, 3, -1, -1, -1).flatten(0, 1)
        assert torch.equal(hashes.numbers(), expected)
        part = hashes.block(heads=slice(1, 3), queries=slice(2, 3), keys=slice(4, 9)).numbers()
        assert torch.equal(part, expected[:, 1:3, 2:3, 4:9])


def test_numbers_do_not_depend_on_chunks_draws_or_heads_asked_for_together():
    whole = numbers(draws=(0, 3), heads=4)
    assert torch.equal(numbers(draws=(3,), heads=4), whole[1:])
    assert torch.equal(numbers(draws=torch.tensor([3]), heads=2), whole[1:, :2])
    assert torch.equal(numbers(draws=(0, 3), heads=4, query=PLACES[40:50]), whole[..., 40:50, :])
    assert torch.equal(numbers(draws=(0, 3), heads=4, key=PLACES[7:]), whole[..., 7:])


def test_each_sample_has_its_own_positions():
    lead = torch.tensor([[0], [5], [90]])  # paddings; negative positions are allowed
    batch = numbers(draws=(0, 1), query=PLACES - lead, key=PLACES - lead)
    assert batch.shape == (2, 3, 2, 96, 96)
    for sample, start in enumerate(lead.flatten().tolist()):
        alone = numbers(draws=(0, 1), query=PLACES[: 96 - start], key=PLACES[: 96 - start])
        assert torch.equal(batch[:, sample, :, start:, start:], alone)


def test_every_coordinate_gives_other_numbers():
    seeds = (0, 1, -1, 2**32 - 1, 2**32, -(2**32), 2**64 - 1, 2**64, 10**30, -(10**30))
    variants = [numbers(seed=seed) for seed in seeds]
    variants += [numbers(draws=(1,)), numbers(layer=1), numbers(draws=(1,), layer=1)]
    variants += [numbers(query=PLACES + 96), numbers(key=PLACES + 96)]
    rows = torch.stack([variant[:, 0] for variant in variants] + [variants[0][:, 1]])
    rows = rows.flatten(1) - 0.5
    correlation = torch.corrcoef(rows).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / rows.shape[1] ** 0.5


def test_numbers_are_uniform():
    sample = numbers(heads=8).flatten().double()
    for power in (1, 2, 3, 4):
        expected = 1 / (power + 1)
        error = (1 / (2 * power + 1) - expected**2) ** 0.5 / len(sample) ** 0.5
        assert abs(sample.pow(power).mean() - expected) < 5 * error
    counts = torch.histc(sample, bins=64, min=0, max=1)
    chi2 = ((counts - len(sample) / 64) ** 2 / (len(sample) / 64)).sum()
    assert 25 < chi2 < 120  # 63 degrees of freedom


def test_neighbours_are_uncorrelated():
    sample = numbers(draws=(0, 1), heads=4).double() - 0.5
    neighbours = {
        "keys": (sample[..., 1:], sample[..., :-1]),
        "queries": (sample[..., 1:, :], sample[..., :-1, :]),
        "heads": (sample[:, 1:], sample[:, :-1]),
        "draws": (sample[1], sample[0]),
        "transposed": (sample.triu(1), sample.mT.triu(1)),
        "diagonals": (sample[..., 1:, 1:], sample[..., :-1, :-1]),
    }
    for name, (left, right) in neighbours.items():
        correlation = (left * right).sum() * 12 / left.count_nonzero()
        assert correlation.abs() < 5 / left.count_nonzero() ** 0.5, name


def test_maps_have_no_structure():
    """As matrices of independent numbers: rows unlike each other, and no pattern of low rank, which
    products of two halves would have. Largest singular value 2 sqrt(n) for variance 1 (Bai & Yin,
    1988), of the numbers and of what their lower digits alone make of them."""
    size = 192
    places = torch.arange(size)
    sample = numbers(heads=8, query=places, key=places).double()[0]
    waves = [sample * 12**0.5 - 3**0.5]
    waves += [(2 * torch.pi * times * sample).cos() * 2**0.5 for times in (1, 16, 2**10, 2**20)]
    for wave in waves:
        alike = wave @ wave.mT
        assert torch.linalg.eigvalsh(alike).max() < (1.06 * 2) ** 2 * size
        for products in (alike, wave.mT @ wave):
            apart = products[:, torch.eye(size).logical_not()]
            assert apart.abs().max() < 6 * size**0.5


def test_mix_is_one_to_one_and_the_same_on_integers_and_tensors():
    words = torch.arange(0, WORD + 1, 65521)
    mixed = mix(words)
    assert words[1] == 65521  # the argument is left alone
    assert mixed.unique().numel() == words.numel()
    assert mixed.min() >= 0
    assert mixed.max() <= WORD
    assert mixed[:200].tolist() == [mix(word) for word in words[:200].tolist()]
    assert fold(7, words)[:200].tolist() == [fold(7, word) for word in words[:200].tolist()]
    assert mix(WORD) != WORD
    assert fold(0, 0) != 0


def test_streams_are_words_and_frozen():
    """A seed must reproduce its results in the next release, too."""
    assert [stream(0, 0, 0), stream(1, 2, 3), stream(-5, 0, 31)] == FROZEN_STREAMS
    torch.testing.assert_close(numbers()[0, 0, 0, :3], torch.tensor(FROZEN_NUMBERS))


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_permutation_is_a_permutation(n):
    order = permutation(0, 0, 0, 0, torch.arange(n))
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n * n))


def test_permutations_differ_by_coordinate_and_look_random():
    orders = [
        permutation(*place, positions=torch.arange(40))
        for place in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    ]
    assert torch.equal(orders[0], permutation(0, 0, 0, 0, torch.arange(40)))
    for left in range(5):
        for right in range(left):
            assert (orders[left] == orders[right]).sum() < 8  # 1 expected
    identity = torch.arange(1600)
    for order in orders:
        assert torch.corrcoef(torch.stack([order, identity]).double())[0, 1].abs() < 5 / 40
