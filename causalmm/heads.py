"""Which query heads of an edited decoder layer are edited.

A specification is "all", heads of every edited layer such as "0,3", heads a layer such as
"10=0,3;11=5" (or a mapping from layers to heads), or "image:K": in each edited layer, the K heads
that give most of their attention to image keys in the prompt. Tests: tests/test_heads.py.
"""

import re
from collections.abc import Mapping, Sequence

ALL = "all"
EXPECTED = (
    '"all", heads such as 0,3, heads a layer such as "10=0,3;11=5", or "image:K", the K heads with '
    "the most attention on image tokens"
)
_NUMBERS = r"\d+(?:\s*,\s*\d+)*"
_IMAGE = re.compile(r"image:([1-9]\d*)")
_LAYER = re.compile(rf"\s*(\d+)\s*=\s*({_NUMBERS})\s*")


def check_heads(name: str, spec: object) -> str:
    """Return `spec` in its stored form, in which equal ones are equal.

    Raises ValueError where it could not be a specification for any model.
    """
    if isinstance(spec, Mapping):
        spec = ";".join(f"{layer}={_joined(heads)}" for layer, heads in spec.items())
    elif isinstance(spec, Sequence) and not isinstance(spec, str):
        spec = _joined(spec)
    text = spec.strip() if isinstance(spec, str) else ""
    if text == ALL or _IMAGE.fullmatch(text):
        return text
    if re.fullmatch(_NUMBERS, text):
        return _joined(_numbers(text))
    parts = [_LAYER.fullmatch(part) for part in text.split(";")]
    layers = [int(part[1]) for part in parts if part]
    if len(layers) < len(parts) or len(set(layers)) < len(layers):
        raise ValueError(f"{name}={spec!r}: expected {EXPECTED}")
    heads = {int(part[1]): _joined(_numbers(part[2])) for part in parts}
    return ";".join(f"{layer}={heads[layer]}" for layer in sorted(heads))


def image_heads(spec: str) -> int:
    """K of "image:K"; 0 for other specifications."""
    found = _IMAGE.fullmatch(spec)
    return int(found[1]) if found else 0


def resolve_heads(
    name: str, spec: str, layers: Sequence[int], count: int
) -> dict[int, tuple[int, ...]] | None:
    """The edited heads of each edited layer, of `count` heads; None: all, or found in the prompt.

    Raises ValueError for heads that a layer does not have and for layers that are not edited.
    """
    if (wanted := image_heads(spec)) > count:
        raise ValueError(f"{name}={spec!r}: a decoder layer has {count} heads")
    if spec == ALL or wanted:
        return None
    if "=" not in spec:
        heads = dict.fromkeys(layers, tuple(_numbers(spec)))
    else:
        parts = (part.split("=") for part in spec.split(";"))
        heads = {int(layer): tuple(_numbers(numbers)) for layer, numbers in parts}
    for layer, numbers in heads.items():
        if layer not in layers:
            edited = ", ".join(map(str, layers))
            raise ValueError(f"{name}={spec!r}: layer {layer} is not edited, which are {edited}")
        if max(numbers) >= count:
            raise ValueError(
                f"{name}={spec!r}: head {max(numbers)} is outside the {count} heads of a decoder "
                f"layer, 0 to {count - 1}"
            )
    return heads


def _numbers(text: str) -> list[int]:
    return sorted({int(number) for number in text.split(",")})


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
