"""Attention that trains faster on a CPU: over maps small enough to stay in its caches, softmax in
the maps' own dtype, and, for rows of several questions, only over keys that a query may see.

PyTorch's fused attention is slower backward than all its products. Held by
tests/toyworld/test_train_demo.py.
"""

from typing import Any

import torch
from torch import Tensor, nn

# What one product's map may hold: 2 MiB in bfloat16.
_MAP = 1 << 20
_QUERIES = 96
PACKED_ROWS = "packed_rows"


@torch.compiler.disable
def same_sizes(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention [N, H, L, d] without a mask, a few rows of the batch at a time."""
    _, heads, length, _ = query.shape
    rows = max(1, _MAP // (heads * length**2))
    return torch.cat(
        [
            _attention(*each)
            for each in zip(query.split(rows), key.split(rows), value.split(rows), strict=True)
        ]
    )


@torch.compiler.disable
def packed_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    prefix: int,
    reach: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers for rows of a prefix and segments after it.

    query [B, H, T, d], key, value [B, kv_heads, T, d], attention_mask [B, 1, T, T] additive. A
    token sees nothing but the first `prefix` tokens and the `reach` up to its own, so a block of
    queries needs no other keys. Returns [B, T, H, d].
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    context = []
    for block, queries in enumerate(query.split(_QUERIES, 2)):
        start, stop = block * _QUERIES, block * _QUERIES + queries.shape[2]
        near = slice(max(prefix, start - reach + 1), max(prefix, stop))
        k, v = (torch.cat([each[:, :, :prefix], each[:, :, near]], 2) for each in (key, value))
        mask = attention_mask[:, :, start:stop]
        mask = torch.cat([mask[..., :prefix], mask[..., near]], -1)
        context.append(_attention(queries, k, v, mask))
    return torch.cat(context, 2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make `packed_rows` known to transformers, as `attn_implementation`."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_ROWS, packed_rows)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    # Rotated queries and keys may be float32, and autocast would make the maps of the softmax so.
    query, key = query.to(value.dtype), key.to(value.dtype)
    with torch.autocast("cpu", enabled=False):
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if mask is not None:
            logits = logits + mask.to(logits.dtype)
        return logits.softmax(-1) @ value
