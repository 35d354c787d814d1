"""An independent slow implementation: one unpatched upstream model run per branch, dense maps.

It shares with the fast path only what defines a random draw
(causalmm.counterfactual.random_weights). Every branch is its own sequence of forwards over an
upstream model whose eager attention is replaced by the table of the design, written out on the full
map, with its own cache from the prompt to the last token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from causalmm.counterfactual import random_weights

NAME = "dense_branches_for_tests"
Edit = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Falsified:
    """What one branch edits: method, layers and draw of either tower."""

    vision: str | None = None
    vision_layers: tuple[int, ...] = ()
    language: str | None = None
    language_layers: tuple[int, ...] = ()
    normalization: str = "visible"
    seed: int = 0
    draw: int = 0


def _random_weights(falsified: Falsified, layer: int, weights: Tensor, query_start: int) -> Tensor:
    heads, queries, keys = weights.shape[1:]
    drawn = random_weights.uniform(
        falsified.seed,
        (falsified.draw,),
        layer,
        heads,
        torch.arange(query_start, query_start + queries),
        torch.arange(keys),
    )
    return drawn.reshape(1, heads, queries, keys)


def _edit_language(
    falsified: Falsified, layer: int, weights: Tensor, visible: Tensor, query_start: int
) -> Tensor:
    released = falsified.normalization == "released"
    seen = visible.expand_as(weights).to(weights.dtype)
    counts = seen.sum(-1, keepdim=True)
    if falsified.language == "uniform":
        return seen / (weights.shape[-1] if released else counts)
    if falsified.language == "random":
        drawn = _random_weights(falsified, layer, weights, query_start)
        total = drawn.sum(-1, keepdim=True) if released else (drawn * seen).sum(-1, keepdim=True)
        return drawn * seen / total
    reversed_ = (weights.amax(-1, keepdim=True) - weights) * seen
    if falsified.language == "reverse":
        return reversed_
    total = reversed_.sum(-1, keepdim=True)
    return torch.where(total > 1e-6, reversed_ / total.clamp_min(1e-12), seen / counts)


def _edit_vision(falsified: Falsified, layer: int, weights: Tensor) -> Tensor:
    released = falsified.normalization == "released"
    size = weights.shape[-1]
    if falsified.vision == "uniform":
        return torch.full_like(weights, 1 / size)
    if falsified.vision == "random":
        drawn = _random_weights(falsified, layer, weights, 0)
        drawn = 2 * drawn if released else drawn / drawn.sum(-1, keepdim=True)
        return drawn.expand_as(weights)
    if falsified.vision == "reversed":
        flipped = weights.amax((-1, -2), keepdim=True) - weights
        return flipped if released else flipped / flipped.sum(-1, keepdim=True)
    heads = [
        weights[:, head]
        .flatten(1)[
            :, random_weights.permutation(falsified.seed, falsified.draw, layer, head, size)
        ]
        .view(-1, size, size)
        for head in range(weights.shape[1])
    ]
    return torch.stack(heads, dim=1)


def dense_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    group = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1)
    tower, layer = module.dense_place
    falsified: Falsified | None = module.dense_host.falsified
    if falsified is not None:
        if tower == "vision" and layer in falsified.vision_layers:
            weights = _edit_vision(falsified, layer, weights)
        if tower == "language" and layer in falsified.language_layers:
            visible = (
                torch.ones_like(weights[:, :1], dtype=torch.bool)
                if attention_mask is None
                else attention_mask == 0
            )
            start = key.shape[2] - query.shape[2]
            weights = _edit_language(falsified, layer, weights, visible, start)
    output = weights @ value.float()
    return output.transpose(1, 2).contiguous().to(query.dtype), weights


class Host:
    """Holds which branch the upstream model is running right now."""

    falsified: Falsified | None = None


def attach(model: Any, family: str) -> Host:
    """Route an upstream model's attention through `dense_attention`."""
    AttentionInterface.register(NAME, dense_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
    host = Host()
    if family == "llava":
        vision = [layer.self_attn for layer in model.model.vision_tower.encoder.layers]
    else:
        vision = [block.attn for block in model.model.visual.blocks]
    language = [layer.self_attn for layer in model.model.language_model.layers]
    for tower, modules in (("vision", vision), ("language", language)):
        for layer, module in enumerate(modules):
            module.dense_place, module.dense_host = (tower, layer), host
    return host


@contextmanager
def running(host: Host, falsified: Falsified | None) -> Iterator[None]:
    host.falsified = falsified
    try:
        yield
    finally:
        host.falsified = None


@torch.no_grad()
def branch_logits(
    model: Any, host: Host, inputs: dict[str, Tensor], answer: Tensor, falsified: Falsified | None
) -> Tensor:
    """Logits [T, vocab] before each of the T tokens of `answer`, for one unpadded sample."""
    cache = DynamicCache(config=model.config.get_text_config())
    steps = []
    with running(host, falsified):
        output = model(**inputs, past_key_values=cache, use_cache=True)
        steps.append(output.logits[0, -1])
        length = inputs["input_ids"].shape[1]
        # Upstream's Qwen2-VL needs positions here: from a full-length mask it would make them for
        # every key. They continue after the image's grid, by the offset its prefill left behind.
        offset = int(getattr(model.model, "rope_deltas", torch.zeros(1)))
        axes = (3, 1, 1) if hasattr(model.model, "rope_deltas") else (1, 1)
        for token in answer[:-1]:
            length += 1
            output = model(
                input_ids=token.view(1, 1),
                attention_mask=torch.ones(1, length, dtype=torch.long),
                position_ids=torch.full(axes, length - 1 + offset),
                past_key_values=cache,
                use_cache=True,
            )
            steps.append(output.logits[0, -1])
    return torch.stack(steps).float()
