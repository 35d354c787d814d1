"""Numbers of the figure `attention-vision`: how much of its attention a query gives each patch.

An even share is 1/N of N positions, the class token among them; a ratio says how many even shares a
patch gets. So 1 means no preference, whatever the size of the picture.
Tests: tests/figures/test_figures_maps.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from causalmm.config import CausalMMConfig
from causalmm.errors import RequestError
from causalmm.figures import maps
from causalmm.figures.flags import MEAN, SUMMARY, Query
from causalmm.figures.pictures import Picture
from causalmm.figures.recording import Call


class Overlay(NamedTuple):
    """Attention of one query under one map."""

    ratios: Tensor
    """Even shares of each patch [rows, columns]."""
    summary: float | None
    """Share of the class token; None where there is none."""


class QueryRow(NamedTuple):
    """A query and its overlays by the map's name: "factual" and the methods."""

    query: Query
    overlays: dict[str, Overlay]


def rows(
    calls: Sequence[Call],
    picture: Picture,
    queries: Sequence[Query],
    head: int | None,
    config: CausalMMConfig,
) -> list[QueryRow]:
    """A row a query, of one head or (None) the mean over heads; the picture's calls, of which those
    for tiles that are not shown are left out.

    Raises RequestError for a query that this picture does not have.
    """
    for query in queries:
        _check(query, picture)
    calls = [call for call in calls if call.start <= int(picture.places.max())]
    found = [QueryRow(query, {}) for query in queries]
    for name, weights in maps.all_maps(calls, "vision", head, config):
        for row in found:
            row.overlays[name] = overlay(weights, picture, row.query)
    return found


def overlay(weights: Tensor, picture: Picture, query: Query) -> Overlay:
    """What a query gives to whom, under a map [N, N]."""
    if query == MEAN:
        shares = weights[picture.places.flatten()].mean(dim=0)
    elif query == SUMMARY:
        shares = weights[picture.summary]
    else:
        shares = weights[picture.places[query]]
    summary = None if picture.summary is None else shares[picture.summary].item()
    return Overlay(shares[picture.places] * len(shares), summary)


def _check(query: Query, picture: Picture) -> None:
    height, width = picture.places.shape
    if query == SUMMARY and picture.summary is None:
        raise RequestError("query cls: this model has no class token")
    if isinstance(query, tuple) and not (query[0] < height and query[1] < width):
        raise RequestError(
            f"query {query[0]},{query[1]}: the picture has {height} rows and {width} columns of "
            "patches, counted from 0"
        )
