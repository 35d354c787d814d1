"""Modules of Qwen2-VL's vision tower in forms that train faster on a CPU, with the same weights.

Upstream's tower attends to each picture of a batch alone, and makes patches by a three-dimensional
convolution whose gradient is slow. A training batch holds pictures of one size, so that both are
single matrix products. Held by tests/toyworld/test_train_demo.py.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from causalmm.toyworld.quick_attention import same_sizes


class _Patches(nn.Module):
    """The kernel of the convolution is as large as a patch, so each patch is one product."""

    def __init__(self, upstream: Any) -> None:
        super().__init__()
        self.proj = upstream.proj

    def forward(self, pixels: Tensor) -> Tensor:
        return linear(pixels, self.proj.weight.flatten(1))


class _SameSizes(nn.Module):
    """Attention within each of several pictures of as many patches."""

    def __init__(self, upstream: Any, rotate: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.qkv, self.proj = upstream.qkv, upstream.proj
        self.num_heads = upstream.num_heads
        self.rotate = rotate

    def forward(
        self, hidden: Tensor, cu_seqlens: Tensor, position_embeddings: Any, **_: Any
    ) -> Tensor:
        pictures = len(cu_seqlens) - 1
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        query, key = self.rotate(query, key, *position_embeddings)
        query, key, value = (
            each.unflatten(0, (pictures, -1)).transpose(1, 2) for each in (query, key, value)
        )
        context = same_sizes(query, key, value)
        return self.proj(context.transpose(1, 2).reshape(len(hidden), -1))


def quicken(tower: Any) -> None:
    """Put both into a `Qwen2VisionTransformer`. Weights keep their names in its state."""
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

    tower.patch_embed = _Patches(tower.patch_embed)
    for block in tower.blocks:
        block.attn = _SameSizes(block.attn, apply_rotary_pos_emb_vision)
