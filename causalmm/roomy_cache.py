"""A cache with room for the steps to come.

The DynamicCache of transformers copies all keys and values at every step; with many rows behind a
long prompt that takes longer than the rest of the step. Held by tests/test_roomy_cache.py.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Places made at a time: so many steps share one copy."""


def roomy_cache(config: PreTrainedConfig) -> DynamicCache:
    """A DynamicCache for the decoder of this configuration; sliding layers stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class RoomyLayer(DynamicLayer):
    """A DynamicLayer whose keys and values [B, G, K, D] are the filled part of larger tensors.

    Where something else has put others in their place, the next update copies those once. Keeps no
    graph for gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self._key_room: Tensor | None = None
        self._value_room: Tensor | None = None

    @torch.no_grad()
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, G, Q, D]; returns all of them, as of DynamicLayer."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self._key_room = _appended(self.keys, key_states, self._key_room)
        self.values, self._value_room = _appended(self.values, value_states, self._value_room)
        return self.keys, self.values

    def reset(self) -> None:
        """Drop everything."""
        super().reset()
        self._key_room = self._value_room = None


def _appended(held: Tensor, new: Tensor, room: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both along axis 2, and the room that they are the beginning of."""
    length = held.shape[2] if held.numel() else 0
    total = length + new.shape[2]
    if room is None or not _begins(room, held) or total > room.shape[2]:
        room = new.new_empty(*new.shape[:2], total + ROOM, new.shape[3])
        if length:
            room[:, :, :length] = held
    room[:, :, length:total] = new
    return room[:, :, :total], room


def _begins(room: Tensor, held: Tensor) -> bool:
    """Whether that is the beginning of this room."""
    return (
        held.data_ptr() == room.data_ptr()
        and held.stride() == room.stride()
        and held.shape[:2] == room.shape[:2]
    )
