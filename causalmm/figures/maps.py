"""Attention maps of a recorded call: the factual one, and what each counterfactual makes of it.

A map is the attention output for the identity as values. So a counterfactual map comes out of the
functions that a branch runs (causalmm/counterfactual/attention.py), called as the branch calls
them. H heads, N positions. Tests: tests/figures/test_figures_maps.py.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from causalmm.config import CausalMMConfig
from causalmm.counterfactual.attention import language_attention, vision_attention
from causalmm.counterfactual.attention_mask import AttentionMask, ImageTokens
from causalmm.counterfactual.methods import METHODS
from causalmm.errors import RequestError
from causalmm.figures.recording import Call

LARGEST = 2**29
"""Weights of a map, of all heads: 2 GiB, some of which are held at a time."""


def all_maps(
    calls: Sequence[Call],
    tower: str,
    head: int | None,
    config: CausalMMConfig,
    image: Tensor | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """("factual", map), then each method of the tower with its map [N, N].

    Of one call, or of one for each window of a picture: between windows there is no attention. Of
    one head or (None) the mean over the heads; a method that has no formula of this normalization
    and scope is left out. `image`: which positions of the language model are image
    tokens, bool [N], for scope "image". Raises RequestError where a map would not fit into memory.
    """
    causal = tower == "language"
    scope = config.language_scope if causal else "all"

    def drawn(weigh: Callable[[Call], Tensor]) -> Tensor:
        return torch.block_diag(*(of_head(weigh(call), head) for call in calls))

    check_size(sum(call.key.shape[2] for call in calls))
    yield "factual", drawn(partial(factual, causal=causal))
    settings = {"normalization": config.normalization, "seed": config.seed}
    settings |= {"causal": causal, "scope": scope, "image": image}
    for method in METHODS:
        known = scope in method.scopes and config.normalization in method.normalizations
        if method.tower == tower and known:
            yield method.name, drawn(partial(counterfactual, method=method.name, **settings))


def factual(call: Call, causal: bool) -> Tensor:
    """Softmax weights [H, N, N]; causal: a position sees itself and those before it.

    Raises RequestError where they would not fit into memory.
    """
    check_size(call.key.shape[2], call.heads)
    key = call.key.repeat_interleave(call.heads // call.key.shape[1], dim=1)
    scores = (call.query @ key.mT * call.scale)[0]
    if causal:
        hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(dim=-1)


def check_size(size: int, heads: int = 1) -> None:
    """Raise RequestError where maps of `size` positions would not fit into memory."""
    if heads * size**2 > LARGEST:
        raise RequestError(
            f"a map of {size} x {size} weights and {heads} heads is too large to be drawn: "
            "take a smaller image"
        )


def counterfactual(
    call: Call,
    method: str,
    *,
    causal: bool,
    normalization: str,
    seed: int,
    draw: int = 0,
    scope: str = "all",
    image: Tensor | None = None,
) -> Tensor:
    """Weights [H, N, N] under a method of the language model (causal) or the vision encoder.

    `image`: which positions are image tokens, bool [N]; scope "image" needs it.
    """
    count = call.key.shape[2]
    identity = torch.eye(count, device=call.key.device).expand(1, call.key.shape[1], count, count)
    given = (method, call.query, call.key, identity)
    settings = {
        "scale": call.scale,
        "normalization": normalization,
        "seed": seed,
        "draws": (draw,),
        "layer": call.layer,
    }
    if not causal:
        positions = call.start + torch.arange(count, device=call.key.device).unsqueeze(0)
        return vision_attention(*given, positions=positions, **settings)[0]
    tokens = None if image is None else ImageTokens(keys=image[None], queries=image[None])
    visible = AttentionMask(causal=True, image=tokens)
    return language_attention(*given, visible=visible, scope=scope, **settings)[0]


def of_head(weights: Tensor, head: int | None) -> Tensor:
    """One head's map, or the mean over the heads: [H, N, N] -> [N, N]."""
    return weights.mean(dim=0) if head is None else weights[head]
