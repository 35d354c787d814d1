"""A cache with room for the steps to come.

The DynamicCache of transformers copies all keys and values at every step; with many rows behind a
long prompt that takes longer than the rest of the step. Everything else, what `generate` returns
included, is as with that one. Tests: tests/decoding/test_kv_cache.py.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

CAPACITY_STEP = 64
"""Places made at a time: so many steps share one copy."""


def preallocated_cache(config: PreTrainedConfig) -> DynamicCache:
    """A DynamicCache for the decoder of this configuration; sliding layers stay as they are."""
    return preallocate(DynamicCache(config=config))


def preallocate(cache: DynamicCache) -> DynamicCache:
    """Give the layers of an empty cache room; sliding ones stay as they are. Returns the cache."""
    cache.layers = [
        PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class _Buffer(NamedTuple):
    """Keys or values [B, G, K, D], and the longer tensor that begins with them."""

    filled: Tensor
    whole: Tensor

    def takes(self, held: Tensor, total: int) -> bool:
        """Whether these can be prolonged to so many where they are."""
        # A tensor of inference mode cannot be written to outside of it.
        writable = torch.is_inference_mode_enabled() or not self.whole.is_inference()
        return held is self.filled and total <= self.whole.shape[2] and writable


class PreallocatedLayer(DynamicLayer):
    """A DynamicLayer whose keys and values [B, G, K, D] are the filled part of larger tensors.

    What was handed out stays as it is: only what follows it is written to, and only while nothing
    else took its place. A prefill, what a gradient flows through and what a compiler traces are
    kept as by DynamicLayer; the first step after them moves all into a room.
    """

    def __init__(self) -> None:
        super().__init__()
        self._key_buffer: _Buffer | None = None
        self._value_buffer: _Buffer | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, G, Q, D]; returns all of them, as of DynamicLayer."""
        if (
            torch.compiler.is_compiling()
            or not self.get_seq_length()
            or self._needs_graph(key_states, value_states)
        ):
            self._drop_buffers()
            return super().update(key_states, value_states)
        self._hold(
            _append(self.keys, key_states, self._key_buffer),
            _append(self.values, value_states, self._value_buffer),
        )
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, with room behind it: the next update need not move the copies."""
        if self.get_seq_length():
            self._hold(_repeat(self.keys, repeats), _repeat(self.values, repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only."""
        self._drop_buffers()
        super().batch_select_indices(indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the rows in another order."""
        self._drop_buffers()
        super().reorder_cache(beam_idx)

    def reset(self) -> None:
        """Drop everything."""
        self._drop_buffers()
        super().reset()

    def __getstate__(self) -> dict[str, Any]:
        # Two layers that shared a room would write over each other's next keys.
        return self.__dict__ | {"_key_buffer": None, "_value_buffer": None}

    def _hold(self, keys: _Buffer, values: _Buffer) -> None:
        self._key_buffer, self._value_buffer = keys, values
        self.keys, self.values = keys.filled, values.filled

    def _drop_buffers(self) -> None:
        """Before others take the place of what is held: its memory must not outlive that."""
        self._key_buffer = self._value_buffer = None

    def _needs_graph(self, *new: Tensor) -> bool:
        parts = (*new, self.keys, self.values)
        return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


def _allocate(like: Tensor, rows: int, length: int) -> Tensor:
    return like.new_empty(rows, like.shape[1], length + CAPACITY_STEP, like.shape[3])


def _append(held: Tensor, new: Tensor, room: _Buffer | None) -> _Buffer:
    length, total = held.shape[2], held.shape[2] + new.shape[2]
    if room is not None and room.takes(held, total):
        whole = room.whole
    else:
        whole = _allocate(new, len(new), total)
        whole[:, :, :length] = held
    whole[:, :, length:total] = new
    return _Buffer(whole[:, :, :total], whole)


def _repeat(held: Tensor, repeats: int) -> _Buffer:
    rows, length = len(held), held.shape[2]
    whole = _allocate(held, rows * repeats, length)
    whole.unflatten(0, (rows, repeats))[..., :length, :] = held[:, None]
    return _Buffer(whole[:, :, :length], whole)
