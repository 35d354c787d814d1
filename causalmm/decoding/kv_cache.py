"""The layers of a KV cache that a plan fills.

They keep the state of the keys (causalmm/decoding/branch_state.py), and those of a dynamic cache
are preallocated: the DynamicCache of transformers copies all keys and values at every step, which
with many rows behind a long prompt takes longer than the rest of the step. Everything else, what
`generate` returns included, is as with transformers' own. Tests: tests/decoding/test_kv_cache.py.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, StaticLayer

from causalmm.decoding.branch_state import BranchLayer, state_of
from causalmm.decoding.plan import BranchPlan

CAPACITY_STEP = 64
"""Tokens for which a buffer is allocated at a time: so many steps share one copy."""


class BranchStaticLayer(BranchLayer, StaticLayer):
    """A StaticLayer that keeps the state of its keys. A reset one allocates its buffers anew."""


class _Buffer(NamedTuple):
    """Keys or values [B, G, K, D], and the longer tensor that begins with them."""

    filled: Tensor
    whole: Tensor

    def takes(self, held: Tensor, total: int) -> bool:
        """Whether `held` can be prolonged to `total` tokens in place."""
        # A tensor of inference mode cannot be written to outside of it.
        writable = torch.is_inference_mode_enabled() or not self.whole.is_inference()
        return held is self.filled and total <= self.whole.shape[2] and writable


class PreallocatedLayer(BranchLayer, DynamicLayer):
    """A DynamicLayer whose keys and values [B, G, K, D] are the filled part of larger tensors.

    What was handed out stays as it is: only what follows it is written to, and only while nothing
    else took its place. A prefill, what a gradient flows through and what a compiler traces are
    kept as by DynamicLayer; the first step after them copies all into a buffer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[_Buffer, _Buffer] | None = None  # of keys and values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, G, Q, D]; returns all of them, as of DynamicLayer."""
        new, held = (key_states, value_states), (self.keys, self.values)
        copied = torch.compiler.is_compiling() or not self.get_seq_length()
        if copied or (
            torch.is_grad_enabled() and any(part.requires_grad for part in (*new, *held))
        ):
            self._buffers = None
            return super().update(*new)
        self._buffers = tuple(map(_append, held, new, self._buffers or (None, None)))
        self.keys, self.values = (buffer.filled for buffer in self._buffers)
        return self.keys, self.values

    # Other tensors take the place of the buffers' below: their memory must not outlive that.

    def batch_select_indices(self, indices: Tensor) -> None:
        self._buffers = None
        super().batch_select_indices(indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._buffers = None
        super().reorder_cache(beam_idx)

    def offload(self) -> None:
        self._buffers = None
        super().offload()

    def reset(self) -> None:
        self._buffers = None
        super().reset()

    def __getstate__(self) -> dict[str, Any]:
        # Two layers that shared a buffer would write over each other's next keys.
        return self.__dict__ | {"_buffers": None}


def _append(held: Tensor, new: Tensor, buffer: _Buffer | None) -> _Buffer:
    length, total = held.shape[2], held.shape[2] + new.shape[2]
    if buffer is not None and buffer.takes(held, total):
        whole = buffer.whole
    else:
        whole = new.new_empty(*new.shape[:2], total + CAPACITY_STEP, new.shape[3])
        whole[:, :, :length] = held
    whole[:, :, length:total] = new
    return _Buffer(whole[:, :, :total], whole)


def branch_layers(cache: Cache, plan: BranchPlan, count: int) -> BranchLayer:
    """The first of the `count` layers of a cache that the plan filled or, if empty, is to fill.

    The layers of an empty cache are replaced by ones that keep a state.
    """
    if state_of(cache) is None:
        lengths = [getattr(layer, "max_cache_len", 0) for layer in cache.layers] or [0] * count
        cache.layers = [
            BranchStaticLayer(length) if length else PreallocatedLayer() for length in lengths
        ]
        for number, layer in enumerate(cache.layers):
            layer.branches = plan.branches_in_layer(number)
    return cache.layers[0]
