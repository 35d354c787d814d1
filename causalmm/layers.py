"""Which layers an intervention edits, in Python slice syntax over a tower's layer list.

A specification is "all", a slice such as ":", "-8:", "10:20" or "half:", or a list of numbers.
"half" and "third" stand for L//2 and L//3 of a tower with L layers and may carry a minus sign
("-third:" is the last third). "10:+3" is three layers from layer 10 on, fewer where the tower ends
before: "third:+3" fits a tower of any depth. "full" is the layers with full attention: all, but in
a vision tower most of whose layers see windows only. Tests: tests/test_layers.py.
"""

import re
from collections.abc import Sequence

LayerSpec = str | tuple[int, ...]

_BOUND = r"-?(?:\d+|half|third)"
_SLICE = re.compile(rf"({_BOUND})?:({_BOUND})?(?::(\d+))?")
_WINDOW = re.compile(rf"({_BOUND}):\+([1-9]\d*)")
FULL = "full"
EXPECTED = (
    '"all", "full", a slice such as "-8:", "10:20" or "half:", a start and a number of layers such '
    'as "third:+3", or layer numbers such as 3,5'
)


def check_layers(name: str, spec: str | Sequence[int]) -> LayerSpec:
    """Return `spec` in its stored form (a string, or a tuple of ints).

    Raises ValueError where it could not be a layer specification for any model.
    """
    if isinstance(spec, str):
        text = spec.strip()
        if text in ("all", FULL) or _SLICE.fullmatch(text) or _WINDOW.fullmatch(text):
            return text
        if re.fullmatch(r"-?\d+(\s*,\s*-?\d+)*", text):
            return tuple(int(part) for part in text.split(","))
        raise ValueError(f"{name}={spec!r}: expected {EXPECTED}")
    if not isinstance(spec, Sequence) or not spec:
        raise ValueError(f"{name}={spec!r}: expected {EXPECTED}")
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in spec):
        raise ValueError(f"{name}={spec!r}: expected {EXPECTED}")
    return tuple(spec)


def resolve_layers(
    name: str, spec: LayerSpec, count: int, full: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Layer numbers that `spec` selects in a tower with `count` layers, ascending.

    `full` are the numbers of those with full attention; None: all.
    Unlike Python's slices, a bound outside the tower is refused: it names layers that do not exist
    or, in a vision tower, layers above the one whose features the model reads.

    Raises ValueError for a bound or number out of range and for an empty selection.
    """
    if isinstance(spec, tuple):
        for layer in spec:
            if not -count <= layer < count:
                raise ValueError(f"{name}={list(spec)}: layer {layer} is outside {_span(count)}")
        return tuple(sorted({layer % count for layer in spec}))
    if spec == FULL and full is not None:
        if not full:
            raise ValueError(f"{name}={spec!r}: no layer of this tower has full attention")
        return tuple(full)
    if spec in ("all", FULL):
        return tuple(range(count))
    if match := _WINDOW.fullmatch(spec):
        start, stop, step = _bound(match[1], count), None, None
    elif match := _SLICE.fullmatch(spec):
        start, stop, step = (_bound(text, count) for text in match.groups())
    else:
        raise ValueError(f"{name}={spec!r}: expected {EXPECTED}")
    for bound in (start, stop):
        if bound is not None and not -count <= bound <= count:
            raise ValueError(f"{name}={spec!r}: {bound} is outside {_span(count)}")
    if step == 0:
        raise ValueError(f"{name}={spec!r}: the step of a slice is at least 1")
    layers = tuple(range(count))[start:stop:step]
    if _WINDOW.fullmatch(spec):
        layers = layers[: int(match[2])]
    if not layers:
        raise ValueError(f"{name}={spec!r}: selects none of {_span(count)}")
    return layers


def _span(count: int) -> str:
    return f"the {count} layers an edit can act on, 0 to {count - 1}"


def _bound(text: str | None, count: int) -> int | None:
    if text is None:
        return None
    sign, word = (-1, text[1:]) if text.startswith("-") else (1, text)
    named = {"half": count // 2, "third": count // 3}
    return sign * (named[word] if word in named else int(word))
