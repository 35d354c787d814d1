"""Randomness as a function: the random number of a place instead of the next one of a stream.

S draws, H heads, Q queries, K keys. A number depends on (seed, draw, layer, head, query position,
key position) and nothing else: not on batch, padding, chunking, cache, device or order of calls.
Words are unsigned 32-bit numbers: Python's integers; in NumPy uint32; in tensors int64, so that
products do not overflow. Halves of a number have the same bits and a sign.
Held by tests/counterfactual/test_random_weights.py.
"""

import operator
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor, np.ndarray)

WORD = 2**32 - 1
# Without an offset word 0 would be a fixed point: mix(0) == 0.
OFFSET = 0x9E3779B9
# Below 2^31, so that products of words stay below 2^63.
FIRST, SECOND = 0x21F0AAAD, 0x735A2D97
# Words with a sign to numbers: no rounding makes one of them 0.
SCALE, MIDDLE = 2.0**-32, 0.5 + 2.0**-24


def mix(word: Word) -> Word:
    """Scramble 32-bit words, one to one: every input bit reaches every output bit."""
    word = word ^ (word >> 16)
    word = (word * FIRST) & WORD
    word = word ^ (word >> 15)
    word = (word * SECOND) & WORD
    return word ^ (word >> 15)


def fold(state: int | Tensor | np.ndarray, value: Word) -> Word:
    """The state after taking in one more coordinate; the coordinate may be negative."""
    # Hashing the coordinate first keeps neighbours apart: rows whose states differ in low bits
    # only would otherwise hold the same numbers in another order.
    return mix(state ^ mix((value + OFFSET) & WORD))


def stream(seed: int, draw: int, layer: int) -> int:
    """The 32-bit state that a layer's numbers in one draw start from. Any integer is a seed."""
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


def uniform(
    seed: int,
    draws: Sequence[int] | Tensor,
    layer: int,
    heads: int | range,
    query_position: Tensor,
    key_position: Tensor,
) -> Tensor:
    """Numbers in the interval (0, 1], float32 [S, ..., H, Q, K]; `heads`: how many, or which.

    Positions are integers [..., Q] and [..., K], on the device of the result; the dimensions before
    them (the samples, where each has its own left padding) are those of the result.
    """
    device = query_position.device
    drawn = streams(seed, draws, layer, device)
    return of_streams(drawn, numbered(heads, device), query_position, key_position)


def of_streams(
    streams: Tensor, heads: Tensor, query_position: Tensor, key_position: Tensor
) -> Tensor:
    """`uniform` for any `streams` [S], of other layers too, and for the numbers of heads [H]."""
    rows = query_halves(streams, heads, query_position)
    keys = key_halves(key_position)
    if rows.ndim - 3 < keys.ndim - 1:  # only the keys have samples
        rows = rows.unsqueeze(1)
    return numbers(rows.unsqueeze(-1), keys[..., None, None, :])


def streams(seed: int, draws: Sequence[int] | Tensor, layer: int, device: torch.device) -> Tensor:
    """The `stream` of each draw: [S], int64."""
    found = [stream(seed, int(draw), layer) for draw in draws]
    if device.type == "cpu":
        return torch.tensor(found)
    # A list would have to travel to the device, which would wait for it.
    return torch.cat([torch.full((1,), word, device=device) for word in found])


def query_halves(streams: Tensor, heads: Tensor, query_position: Tensor) -> Tensor:
    """One half of `uniform`, odd words with a sign: [S, ..., H, Q], int32 on a CPU, else int64.

    `streams` [S]: what the function of that name gives; `heads` [H]: their numbers.
    """
    head = fold(_words(streams)[:, None], _words(heads))
    samples = [1] * (query_position.ndim - 1)
    head = head.reshape(-1, *samples, len(heads), 1)
    return _half(fold(head, _words(query_position)[..., None, :]))


def key_halves(key_position: Tensor) -> Tensor:
    """The other half: [..., K], int32 on a CPU, else int64."""
    return _half(mix((_words(key_position) + OFFSET) & WORD))


def number(queries: Tensor, keys: Tensor) -> Tensor:
    """The numbers, float32, of halves that broadcast.

    The halves are scrambled already, so that little is left to do for each pair: their product,
    whose high bits depend on all of theirs, is folded into its low ones and spread again.
    """
    word = _signed(queries.long() * keys.long())
    word = _signed((word ^ (word >> 15)) * SECOND)
    # SCALE and MIDDLE, written out: a compiler of changing lengths takes named floats for inputs.
    return word.float() * 2.0**-32 + (0.5 + 2.0**-24)


def numbers(queries: Tensor, keys: Tensor, space: Tensor | None = None) -> Tensor:
    """`number`, in place and in 32 bits, where products wrap: a sixth of the time.

    `space`: int32 [2, at least as many as there are numbers], to hold them and their scratch.
    """
    if torch.compiler.is_compiling():  # to generated code, wrapping may be undefined
        return number(queries, keys)
    shape = torch.broadcast_shapes(queries.shape, keys.shape)
    if space is None:
        space = torch.empty(2, shape.numel(), dtype=torch.int32, device=queries.device)
    words, scratch = space[:, : shape.numel()].view(2, *shape)
    torch.mul(queries.int(), keys.int(), out=words)
    torch.bitwise_right_shift(words, 15, out=scratch)
    words ^= scratch
    words *= SECOND
    found = scratch.view(torch.float32).copy_(words)
    return torch.add(torch.tensor(MIDDLE), found, alpha=SCALE, out=found)


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


def numbered(heads: int | range, device: torch.device) -> Tensor:
    """The numbers of heads, given how many or which: [H]."""
    heads = range(heads) if isinstance(heads, int) else heads
    return torch.arange(heads.start, heads.stop, device=device)


def _words(values: Tensor) -> Word:
    """Integers as words to compute with, a CPU's in NumPy: of few, a tensor's operation takes ten
    times as long."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return values & WORD
    return values.numpy().astype(np.uint32)


def _half(words: Word) -> Tensor:
    """Odd, so that a product with it loses nothing, and with a sign."""
    words = words | 1
    return _signed(words) if isinstance(words, Tensor) else torch.from_numpy(words.view(np.int32))


def _signed(words: Tensor) -> Tensor:
    """The lowest 32 bits of int64 as a number in [-2^31, 2^31)."""
    return ((words + 2**31) & WORD) - 2**31
