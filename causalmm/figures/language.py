"""Numbers of the figure `attention-language`: the attention matrix over a prompt, made readable.

A run of tokens that stand for a picture is one place of the matrix; every other token is a place of
its own. A ratio compares a weight with an even share over the positions that may be seen: 1 means
no preference. P places. Tests: tests/figures/test_figures_maps.py.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from causalmm.config import CausalMMConfig
from causalmm.errors import RequestError
from causalmm.figures import maps
from causalmm.figures.recording import Call

READABLE = 120
"""Places that a matrix can show."""


class Place(NamedTuple):
    """Tokens start to stop - 1 of the prompt, shown as one."""

    label: str
    start: int
    stop: int
    picture: bool = False


class Matrices(NamedTuple):
    """Ratios by the name of a map, "factual" or a method: [P, P], NaN where nothing may be seen."""

    places: list[Place]
    ratios: dict[str, Tensor]


def matrices(
    call: Call,
    ids: list[int],
    tokenizer: Any,
    pads: dict[int, str],
    config: CausalMMConfig,
    head: int | None,
) -> Matrices:
    """The matrices of one head or (None) the mean over heads.

    `pads`: what a token id stands for, where it stands for a picture. Raises RequestError for a
    prompt too long to be shown.
    """
    shown = places(ids, tokenizer, pads)
    if len(shown) > READABLE:
        raise RequestError(
            f"the prompt has {len(shown)} tokens beside its pictures: a matrix of more than "
            f"{READABLE} cannot be read"
        )
    image = torch.tensor([token in pads for token in ids])
    found = maps.all_maps([call], "language", head, config, image)
    return Matrices(shown, {name: ratio(weights, shown) for name, weights in found})


def places(ids: list[int], tokenizer: Any, pads: dict[int, str]) -> list[Place]:
    """The prompt's places in order."""
    found: list[Place] = []
    previous = None
    for index, token in enumerate(ids):
        if token in pads and token == previous:
            found[-1] = found[-1]._replace(stop=index + 1)
        else:
            label = pads.get(token) or token_label(tokenizer, token)
            found.append(Place(label, index, index + 1, token in pads))
        previous = token
    return found


def ratio(weights: Tensor, shown: list[Place]) -> Tensor:
    """Of a causal map to the even one, summed over keys and queries: [N, N] -> [P, P]."""
    even = torch.ones_like(weights).tril()
    even = even / even.sum(dim=-1, keepdim=True)
    summed, expected = (_blocks(each, shown) for each in (weights, even))
    return (summed / expected).masked_fill(expected == 0, torch.nan)


def token_label(tokenizer: Any, token: int) -> str:
    """A token in as few signs as show which it is."""
    text = tokenizer.decode([token]).replace("\n", "↵")
    if not text or "\ufffd" in text:  # a part of a sign
        return tokenizer.convert_ids_to_tokens(token)
    return text.strip() or "␣"


def _blocks(weights: Tensor, shown: list[Place]) -> Tensor:
    """Sums over the rectangles of the places."""
    sizes = [place.stop - place.start for place in shown]
    rows = torch.stack([part.sum(dim=0) for part in weights.split(sizes)])
    return torch.stack([part.sum(dim=1) for part in rows.split(sizes, dim=1)], dim=1)
