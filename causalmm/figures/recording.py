"""The queries and keys of one layer, recorded where its attention is called.

For one forward a tower gets an attention function of its own by transformers' registry: SDPA, which
notes what the layer called it with. The tower's attention is then set back.
Tests: tests/figures/test_figures_maps.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "causalmm_recording"


class Call(NamedTuple):
    """One attention call on one row: position embeddings applied, float32, on the CPU."""

    query: Tensor  # [1, H, N, D]
    key: Tensor  # [1, G, N, D], G KV heads
    scale: float
    layer: int
    start: int = 0
    """Position of its first patch in the picture, where the layer attends to parts of one."""

    @property
    def heads(self) -> int:
        return self.query.shape[1]


def attention_modules(tower: nn.Module) -> list[nn.Module]:
    """The attention of each layer of a vision encoder or a decoder, in transformers' form."""
    return [module for module in tower.modules() if hasattr(module, "is_causal")]


def record_vision(
    model: Any, inputs: Mapping[str, Tensor], layer: int, sizes: Sequence[int]
) -> list[list[Call]]:
    """The calls for each image, then for each frame (frame pair) of the videos.

    One call each, or one a tile of it, or one a window in a layer that attends within windows.
    `sizes`: how many positions images and frames have in the vision encoder, in order.
    """
    calls = iter(_record(model, model.get_encoder("image"), inputs, layer))
    pictures = []
    for size in sizes:
        parts, start = [], 0
        while start < size:
            parts.append(next(calls)._replace(start=start))
            start += parts[-1].key.shape[2]
        pictures.append(parts)
    return pictures


def record_language(model: Any, inputs: Mapping[str, Tensor], layer: int) -> Call:
    """The call over the prompt, one row without padding."""
    (call,) = _record(model, model.get_decoder(), inputs, layer)
    return call


@torch.no_grad()
def _record(model: Any, tower: Any, inputs: Mapping[str, Tensor], layer: int) -> list[Call]:
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    module = attention_modules(tower)[layer]
    own = tower.config._attn_implementation
    tower.set_attn_implementation(NAME)
    module.recorded = recorded = []
    try:
        model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        del module.recorded
        tower.set_attn_implementation(own)
    return [Call(*row, layer) for row in recorded]


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, *others: Any, scaling: float, **kwargs: Any
) -> Any:
    if hasattr(module, "recorded"):
        for row in zip(query.float().cpu().split(1), key.float().cpu().split(1), strict=True):
            module.recorded.append((*row, scaling))
    return sdpa_attention_forward(module, query, key, *others, scaling=scaling, **kwargs)
