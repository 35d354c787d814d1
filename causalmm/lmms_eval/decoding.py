"""What a task of lmms-eval asks for in decoding, and where its answers end.

Nothing here needs lmms-eval or loads torch. Tests: tests/lmms/test_lmms_eval.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from causalmm.cli.request import SAMPLING_OFF
from causalmm.errors import RequestError

MAX_NEW_TOKENS = 1024
"""Where a task does not say; as for lmms-eval's own LLaVA."""

FEW_SHOT = "\n\n"
"""What lmms-eval sets between examples, and makes the end of an answer where a task names none."""


class _Number(NamedTuple):
    """A generation argument that is a number."""

    default: float
    expected: str
    allowed: Callable[[float], bool]


_NUMBERS = {
    "max_new_tokens": _Number(MAX_NEW_TOKENS, "an integer >= 1", lambda x: x >= 1 and _is_whole(x)),
    "num_beams": _Number(1, "1, a greedy or a drawn answer", lambda x: x == 1),
    "temperature": _Number(0.0, "a number >= 0", lambda x: 0 <= x < math.inf),
    "top_p": _Number(SAMPLING_OFF["top_p"], "a number in [0, 1]", lambda x: 0 <= x <= 1),
    "top_k": _Number(SAMPLING_OFF["top_k"], "an integer >= 0", lambda x: x >= 0 and _is_whole(x)),
    "repetition_penalty": _Number(1.0, "a number > 0", lambda x: 0 < x < math.inf),
}


class Decoding(NamedTuple):
    """How the answers to some requests are decoded."""

    max_new_tokens: int
    sampling: dict[str, Any]
    """For `generate`."""
    until: tuple[str, ...]
    """Strings that end an answer and are no part of it."""
    ignored: tuple[str, ...]
    """Arguments that mean nothing here."""


def read_decoding(given: Mapping[str, Any]) -> Decoding:
    """The decoding of a task's generation arguments.

    It is greedy unless they ask for sampling: do_sample, or a temperature above 0 and no do_sample.
    Raises RequestError for a value that cannot be followed.
    """
    given = {name: value for name, value in given.items() if value is not None}
    values = {name: given.get(name, known.default) for name, known in _NUMBERS.items()}
    for name, value in values.items():
        if not _is_number(value) or not _NUMBERS[name].allowed(value):
            raise RequestError(f"{name}={value!r}: expected {_NUMBERS[name].expected}")
    return Decoding(
        int(values["max_new_tokens"]),
        _sampling(given, values),
        _until(given.get("until", [])),
        tuple(name for name in given if name not in (*_NUMBERS, "do_sample", "until")),
    )


def is_ended(text: str, until: Sequence[str]) -> bool:
    """Whether an answer that begins with this text is over for `cut`."""
    return any(stop in text.lstrip() for stop in until)


def cut(text: str, until: Sequence[str]) -> str:
    """An answer up to the first string that ends it; blanks before its first word do not count."""
    text = text.strip()
    ends = [text.index(stop) for stop in until if stop in text]
    return text[: min(ends, default=len(text))].rstrip()


def _sampling(given: Mapping[str, Any], values: Mapping[str, float]) -> dict[str, Any]:
    penalty = {"repetition_penalty": float(values["repetition_penalty"])}
    settings = penalty if given.keys() & penalty.keys() else {}
    do_sample = given.get("do_sample", values["temperature"] > 0)
    temperature = values["temperature"] if "temperature" in given else SAMPLING_OFF["temperature"]
    if not do_sample or temperature == 0:
        return {"do_sample": False, **settings}
    # All three, because a checkpoint's own may leave one token to choose from.
    limits = {"temperature": temperature, "top_p": values["top_p"], "top_k": int(values["top_k"])}
    return {"do_sample": True, **limits, **settings}


def _until(given: Any) -> tuple[str, ...]:
    # Without FEW_SHOT, as for lmms-eval's own Qwen2.5-VL: there are no examples in a chat, and an
    # answer may have paragraphs.
    strings = [given] if isinstance(given, str) else given
    if not isinstance(strings, list | tuple) or not all(isinstance(x, str | None) for x in strings):
        raise RequestError(f"until={given!r}: expected text or a list of texts")
    return tuple(stop for stop in strings if stop and stop != FEW_SHOT)


def _is_whole(value: float) -> bool:
    return float(value).is_integer()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
