"""Randomness as a function: the random number of a place instead of the next one of a stream.

S draws, H heads, Q queries, K keys. A number depends on (seed, draw, layer, head, query position,
key position) and nothing else: not on batch, padding, chunking, cache, device or order of calls.
Words are unsigned 32-bit numbers, held in int64 so that products do not overflow.
Held by tests/test_hashing.py.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)

WORD = 2**32 - 1
# Without an offset word 0 would be a fixed point: mix(0) == 0.
OFFSET = 0x9E3779B9


def mix(word: Word) -> Word:
    """Scramble 32-bit words, one to one: every input bit reaches every output bit.

    The constants are below 2^31, so a product stays below 2^63.
    """
    word = word ^ (word >> 16)  # a new tensor, so the steps below may work in place
    word *= 0x21F0AAAD
    word &= WORD
    word ^= word >> 15
    word *= 0x735A2D97
    word &= WORD
    word ^= word >> 15
    return word


def fold(state: int | Tensor, value: Word) -> Word:
    """The state after taking in one more coordinate; the coordinate may be negative."""
    # Hashing the coordinate first keeps neighbours apart: rows whose states differ in low bits
    # only would otherwise hold the same numbers in another order.
    return mix(state ^ mix((value + OFFSET) & WORD))


def stream(seed: int, draw: int, layer: int) -> int:
    """The 32-bit state that a layer's numbers in one draw start from. Any integer is a seed."""
    state = fold(0, seed & WORD)
    while (seed := seed >> 32) not in (0, -1):
        state = fold(state, seed & WORD)
    sign = seed  # -1 is not 2^32 - 1
    for value in (sign, draw, layer):
        state = fold(state, value)
    return state


def uniform(
    seed: int,
    draws: Sequence[int] | Tensor,
    layer: int,
    heads: int,
    query_position: Tensor,
    key_position: Tensor,
) -> Tensor:
    """Numbers in the open interval (0, 1), float32 [S, ..., H, Q, K].

    Positions are integers [..., Q] and [..., K], on the device of the result; the dimensions before
    them (the samples, where each has its own left padding) are those of the result.
    """
    samples = [1] * (max(query_position.ndim, key_position.ndim) - 1)
    head = _heads(seed, draws, layer, heads, key_position.device).view(-1, *samples, heads, 1)
    row = fold(head, query_position.unsqueeze(-2))
    words = fold(row.unsqueeze(-1), key_position[..., None, None, :])
    # 23 bits and a half fit a float32 exactly; with 24 the largest would round to 1.
    return ((words >> 9).float() + 0.5) * 2.0**-23


def permutation(
    seed: int,
    draw: int,
    layer: int,
    head: int,
    n: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """A shuffling of the n x n entries of one head's map, int64 [n * n]."""
    state = fold(stream(seed, draw, layer), head)
    position = torch.arange(n, device=device)
    row = fold(state, position)
    return fold(row.unsqueeze(-1), position).flatten().argsort(stable=True)


def _heads(
    seed: int, draws: Sequence[int] | Tensor, layer: int, heads: int, device: torch.device
) -> Tensor:
    states = [stream(seed, int(draw), layer) for draw in draws]
    state = torch.tensor(states, dtype=torch.int64, device=device)
    return fold(state.unsqueeze(-1), torch.arange(heads, device=device))
