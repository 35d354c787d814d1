"""Windows of layers to be compared in a tower: all, halves, thirds, sliding ones, or any slice.

all           one window of every layer
halves        2 of them, one after the other; thirds: 3
sliding:W     W layers at a time, from every layer on; sliding:W:S from every S-th
half:, 10:20  one window, as in `language_layers`
Tests: tests/evaluation/test_diagnose.py.
"""

import re
from collections.abc import Sequence

from causalmm.errors import RequestError
from causalmm.layers import check_layers, resolve_layers

DEFAULT = ("all", "halves", "thirds")
_PARTS = {"all": 1, "halves": 2, "thirds": 3}
_SLIDING = re.compile(r"sliding:([1-9]\d*)(?::([1-9]\d*))?")


def layers_name(layers: Sequence[int]) -> str:
    """Layers as a setting names them: a slice, or numbers where they do not lie together."""
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}:{layers[-1] + 1}"
    return ",".join(map(str, layers))


def read_kinds(text: str) -> list[str]:
    """The kinds in a list with commas. Raises RequestError for what is none."""
    kinds = [each.strip() for each in text.split(",") if each.strip()]
    if not kinds:
        raise RequestError("--windows is empty")
    for kind in kinds:
        if kind not in _PARTS and not _SLIDING.fullmatch(kind):
            try:
                check_layers("--windows", kind)
            except ValueError:
                raise RequestError(
                    f"--windows: {kind!r} is none of {', '.join(_PARTS)}, sliding:W, sliding:W:S "
                    'and a slice such as "half:" or "10:20"'
                ) from None
    return list(dict.fromkeys(kinds))


def windows(kind: str, tower: str, count: int) -> list[tuple[int, ...]]:
    """The layers of each window of a kind in a tower of `count` layers, ascending.

    Raises RequestError where a tower has no such window.
    """
    if (parts := _PARTS.get(kind)) is not None:
        bounds = [count * part // parts for part in range(parts + 1)]
        spans = zip(bounds, bounds[1:], strict=False)
        # A tower of two layers has no three thirds.
        return [tuple(range(first, end)) for first, end in spans if first < end]
    if found := _SLIDING.fullmatch(kind):
        width, step = int(found[1]), int(found[2] or 1)
        if width > count:
            raise RequestError(f"--windows {kind}: the {tower} tower has {count} layers to edit")
        starts = range(0, count - width + 1, step)
        return [tuple(range(first, first + width)) for first in starts]
    try:
        return [resolve_layers("--windows", check_layers("--windows", kind), count)]
    except ValueError as error:
        raise RequestError(f"{tower} tower: {error}") from error
