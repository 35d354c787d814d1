"""Random numbers as a function of their place, not as the next ones of a stream.

A number depends on (seed, draw, layer, head, query position, key position) and on nothing else: not
on batch, padding, chunking, cache, device or order of calls. It is made of two hashes, one of the
query and one of the key. B rows, H heads, Q queries, K keys, S draws.
Words are unsigned 32-bit numbers, held in Python's int or in int64 tensors, so that products do not
overflow. Hashes are odd words with a sign, int32.
Tests: tests/counterfactual/test_random_weights.py.
"""

import operator
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from causalmm.counterfactual.attention_mask import AttentionMask

Word = TypeVar("Word", int, Tensor)

WORD = 2**32 - 1
# Without an offset word 0 would be a fixed point: mix(0) == 0.
OFFSET = 0x9E3779B9
# Below 2^31, so that products of words stay below 2^63.
FIRST, SECOND = 0x21F0AAAD, 0x735A2D97


class RandomHashes(NamedTuple):
    """What the random numbers of one attention call are made of."""

    queries: Tensor
    """int32 [B, H, Q]."""
    keys: Tensor
    """int32 [B or 1, K]."""

    def block(
        self, heads: slice = slice(None), queries: slice = slice(None), keys: slice = slice(None)
    ) -> "RandomHashes":
        """Those of some heads, queries and keys."""
        return RandomHashes(self.queries[:, heads, queries], self.keys[:, keys])

    def to(self, device: torch.device) -> "RandomHashes":
        """The same on another device."""
        return RandomHashes(self.queries.to(device), self.keys.to(device))

    def numbers(self) -> Tensor:
        """r_ij in the interval (0, 1]: float32 [B, H, Q, K]."""
        return number(self.queries.unsqueeze(-1), self.keys[:, None, None, :])


def random_hashes(
    mask: AttentionMask,
    shape: tuple[int, int, int, int],
    device: torch.device,
    seed: int,
    draws: Sequence[int],
    layers: Sequence[int],
) -> list[RandomHashes]:
    """The hashes of an attention call in each of the layers, computed together.

    `mask` describes the samples that each draw repeats, `shape` [B, H, Q, K] the weights. Raises
    ValueError for a mask that gives one key several positions.
    """
    rows, heads, queries, keys = shape
    mask = mask.repeat(len(draws)).numbered()
    states = as_words([stream(seed, draw, layer) for layer in layers for draw in draws], device)
    states = states.view(len(layers), -1).repeat_interleave(rows // len(draws), dim=1)
    found = query_hashes(states, heads, mask.query_positions(queries, keys, device))
    others = key_hashes(mask.key_positions(keys, device)).view(-1, keys)
    return [RandomHashes(layer, others) for layer in found]


def mix(word: Word) -> Word:
    """Scramble 32-bit words, one to one: every input bit reaches every output bit."""
    word = word ^ (word >> 16)
    word = (word * FIRST) & WORD
    word = word ^ (word >> 15)
    word = (word * SECOND) & WORD
    return word ^ (word >> 15)


def fold(state: int | Tensor, value: Word) -> Word:
    """The state after taking in one more coordinate; the coordinate may be negative."""
    # Hashing the coordinate first keeps neighbours apart: rows whose states differ in low bits
    # only would otherwise hold the same numbers in another order.
    return mix(state ^ mix((value + OFFSET) & WORD))


def stream(seed: int, draw: int, layer: int) -> int:
    """The word that a layer's numbers in one draw start from. Any integer is a seed."""
    # A compiler that was handed the seed as a symbol takes its value here: of symbols, the words
    # would become expressions without end.
    seed = operator.index(seed)
    state = fold(0, seed & WORD)
    while not -1 <= (seed := seed >> 32) <= 0:
        state = fold(state, seed & WORD)
    sign = seed  # -1 is not 2^32 - 1
    for value in (sign, draw, layer):
        state = fold(state, value)
    return state


def as_words(words: Sequence[int], device: torch.device) -> Tensor:
    """The words as a tensor, int64."""
    if device.type == "cpu":
        return torch.tensor(words)
    # A list would have to travel to the device, which would wait for it.
    return torch.cat([torch.full((1,), word, device=device) for word in words])


def query_hashes(states: Tensor, heads: int, query_position: Tensor) -> Tensor:
    """Hashes of queries, int32 [..., H, Q], of words [...] and positions [..., Q]."""
    head = fold(states.unsqueeze(-1), torch.arange(heads, device=states.device))
    return _signed(fold(head.unsqueeze(-1), query_position.unsqueeze(-2)) | 1).int()


def key_hashes(key_position: Tensor) -> Tensor:
    """Hashes of keys: int32, the shape of the positions."""
    return _signed(mix((key_position + OFFSET) & WORD) | 1).int()


def number(query: Tensor, key: Tensor) -> Tensor:
    """The numbers in the interval (0, 1], float32, of hashes that broadcast.

    The hashes are scrambled already, so that little is left to do for each pair: their product,
    whose high bits depend on all of theirs, is folded into its low ones and spread again.
    """
    if torch.compiler.is_compiling():
        # In generated code the overflow of 32 bits may be undefined.
        word = _signed(query.long() * key.long())
        word = _signed((word ^ (word >> 15)) * SECOND)
        # Written out: a compiler of changing lengths takes named floats for inputs.
        return word.float() * 2.0**-32 + (0.5 + 2.0**-24)
    # In 32 bits products wrap, and take a sixth of the time.
    word = query * key
    word ^= word >> 15
    word *= SECOND
    # The addend keeps 0 out: no rounding gives it.
    return word.float().mul_(2.0**-32).add_(0.5 + 2.0**-24)


def permutation(seed: int, draw: int, layer: int, head: int, positions: Tensor) -> Tensor:
    """A shuffling of the n x n entries of one head's map, by positions [..., n]: [..., n * n]."""
    row = fold(fold(stream(seed, draw, layer), head), positions)
    words = fold(row.unsqueeze(-1), positions.unsqueeze(-2))
    return words.flatten(-2).argsort(dim=-1, stable=True)


def _signed(words: Tensor) -> Tensor:
    """The lowest 32 bits of int64 as a number in [-2^31, 2^31)."""
    return ((words + 2**31) & WORD) - 2**31
