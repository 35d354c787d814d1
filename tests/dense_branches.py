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

import dense_methods
import torch
from family_rows import FamilyRow, row_of
from random_numbers import uniform
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from causalmm.counterfactual import random_weights
from causalmm.figures.recording import attention_modules

NAME = "dense_branches_for_tests"
Edit = Callable[[Tensor, Tensor], Tensor]
Heads = dict[int, tuple[int, ...]] | int | None


@dataclass
class Falsified:
    """What one branch edits: method, layers and draw of either tower."""

    vision: str | None = None
    vision_layers: tuple[int, ...] = ()
    language: str | None = None
    language_layers: tuple[int, ...] = ()
    language_heads: Heads = None
    """By layer, or how many of each are found by their attention on the image; None: all."""
    vision_variant: str = "visible"
    language_variant: str = "visible"
    """A normalization, or scope "image" (tests/dense_methods.py)."""
    seed: int = 0
    draw: int = 0


def _edit(
    falsified: Falsified,
    tower: str,
    method: str,
    layer: int,
    weights: Tensor,
    attention_mask: Tensor | None,
    image: Tensor,
    start: int,
) -> Tensor:
    """The counterfactual map [B, H, Q, K] of a layer, given its softmax weights; `image`: bool
    [Q, K], image keys of text; `start`: the position of the first key."""
    heads, queries, keys = weights.shape[1:]
    seed, draw = falsified.seed, falsified.draw
    places = start + torch.arange(keys)

    def numbers() -> Tensor:
        drawn = uniform(seed, (draw,), layer, heads, places[-queries:], places)
        return drawn.reshape(1, heads, queries, keys)

    def orders() -> Tensor:
        return torch.stack(
            [random_weights.permutation(seed, draw, layer, head, places) for head in range(heads)]
        )

    seen = torch.ones_like(weights, dtype=torch.bool)
    if attention_mask is not None:
        seen = (attention_mask == 0).expand_as(weights)
    pairs = image.expand_as(weights)
    given = dense_methods.Map(weights, seen, numbers, orders, keys - queries, pairs)
    return dense_methods.edited(tower, method, getattr(falsified, f"{tower}_variant"), given)


def _edited_heads(falsified: Falsified, host: "Host", layer: int, count: int) -> Tensor:
    """Bool [H]."""
    heads = falsified.language_heads
    if isinstance(heads, int):
        heads = {layer: host.mass[layer].topk(heads).indices.tolist()}
    every = range(count) if heads is None else heads.get(layer, ())
    return torch.tensor([head in every for head in range(count)])


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
    host: Host = module.dense_host
    falsified, image = host.falsified, torch.zeros(weights.shape[2:], dtype=torch.bool)
    if tower == "language":
        tokens = host.image[: weights.shape[3]]
        image = tokens & ~tokens[-weights.shape[2] :, None]
    if falsified is not None:
        method, layers = {
            "vision": (falsified.vision, falsified.vision_layers),
            "language": (falsified.language, falsified.language_layers),
        }[tower]
        if layer in layers:
            starts = host.next_starts(layer, len(weights)) if tower == "vision" else [0]
            rows = weights.split(len(weights) // len(starts))
            edited = torch.cat(
                [
                    _edit(falsified, tower, method, layer, row, attention_mask, image, start)
                    for row, start in zip(rows, starts, strict=True)
                ]
            )
            if tower == "language":
                heads = _edited_heads(falsified, host, layer, weights.shape[1])
                edited = torch.where(heads[:, None, None], edited, weights)
            weights = edited
    elif tower == "language" and weights.shape[2] > 1:
        host.mass[layer] = (weights * image).sum(dim=(2, 3))[0]
    output = weights @ value.float()
    return output.transpose(1, 2).contiguous().to(query.dtype), weights


class Host:
    """Holds which branch the upstream model is running right now."""

    falsified: Falsified | None = None
    image: Tensor
    """Which tokens of the sample are image tokens, those to come included."""

    def __init__(self, model: Any, row: FamilyRow) -> None:
        self.model, self.row = model, row
        self.starts: dict[int, list[int]] = {}
        """By vision layer, where the parts of pictures that are still to come begin."""
        self.mass: dict[int, Tensor] = {}
        """By layer, how much of its attention each head's text gave to the image in the last
        prompt that was run without a branch, [H]."""

    def begin(self, inputs: dict[str, Tensor]) -> None:
        """Take in a prompt that is about to be run."""
        config = self.model.config
        if (found := self.row.vision_starts) is not None:
            layers = range(len(attention_modules(self.model.get_encoder("image"))))
            self.starts = {layer: found(config, inputs, layer) for layer in layers}

    def next_starts(self, layer: int, rows: int) -> list[int]:
        """Where the pictures, or parts of such, in the next rows of a vision layer begin."""
        if self.row.vision_starts is None:
            return [0]
        starts, self.starts[layer] = self.starts[layer][:rows], self.starts[layer][rows:]
        return starts


def attach(model: Any, family: str | FamilyRow) -> Host:
    """Route an upstream model's attention through `dense_attention`."""
    AttentionInterface.register(NAME, dense_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
    host = Host(model, row_of(family))
    towers = {"vision": model.get_encoder("image"), "language": model.get_decoder()}
    for tower, modules in towers.items():
        for layer, module in enumerate(attention_modules(modules)):
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
    tokens = [getattr(model.config, f"{medium}_token_id", -1) for medium in ("image", "video")]
    to_come = torch.zeros(len(answer), dtype=torch.bool)
    prompt = inputs["input_ids"][0]
    host.image = torch.cat([torch.isin(prompt, torch.tensor(tokens)), to_come])
    host.begin(inputs)
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
