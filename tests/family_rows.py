"""What the tests need of a family besides its declaration: one `FamilyRow` each.

Tests are parametrised over FAMILIES, and ask the row or the declaration instead of a family's name.
A family of another package gives its row to the contract tests with `--family-row MODULE:ROW`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor

from causalmm.families.family import Family, load_reference
from causalmm.families.registry import OWN

_ROWS = {
    "llava": "tiny_llava:ROW",
    "qwen2_vl": "tiny_qwen2_vl:ROW",
    "qwen2_5_vl": "tiny_qwen2_5_vl:ROW",
    "llava_next": "tiny_llava_next:ROW",
    "qwen3_vl": "tiny_qwen3_vl:ROW",
}


@dataclass(frozen=True, kw_only=True)
class FamilyRow:
    """Tiny parts of a family, of tests/tiny_words.py's vocabulary."""

    family: Family
    upstream: type
    """Transformers' model class."""
    config: Callable[..., Any]
    """Of a tiny model; `layers` is the depth of the decoder."""
    sample: Callable[..., dict[str, Tensor]]
    """Model inputs of one prompt: `seed`, words `before` the image and `after` it."""
    two_images: dict[str, Any]
    """Keywords of `sample` for two images."""
    processor: Callable[[], Any]
    """For the pictures and tokens of `config`."""
    video: Callable[..., dict[str, Tensor]] | None = None
    """The same as `sample` with an image and a video, where the family reads videos."""
    vision_starts: Callable[[Any, dict[str, Tensor], int], list[int]] | None = None
    """Where the vision tower attends to parts of a picture: of a configuration, a sample and a
    layer, the positions in their pictures at which these begin, in order. None: to whole ones."""
    class_token: bool = False
    """Whether the vision tower has a token in front of its patches."""
    shown: str = ""
    """The words of "what ?" and one picture by the chat template."""
    answered: str = ""
    """The end of two turns by the chat template."""
    hub_names: dict[str, str] = field(default_factory=dict)
    """Beginnings of names of weights, and what they are in the checkpoints on the hub."""
    unsaid: tuple[str, ...] = ()
    """Settings of the processor that older transformers did not save."""
    processor_parts: tuple[str, ...] = ()
    """Where they are in processor_config.json; none: in the file itself."""

    @property
    def name(self) -> str:
        return self.family.name


def row_of(family: str | FamilyRow) -> FamilyRow:
    """The row of a family's name; a row is returned as it is."""
    return family if isinstance(family, FamilyRow) else load_reference(_ROWS[checked(family)])


def checked(family: str) -> str:
    """The name of a family that has a row. Raises LookupError for another."""
    if family not in _ROWS:
        raise LookupError(f"family {family!r} has no row in tests/family_rows.py: add one")
    return family


FAMILIES = tuple(checked(load_reference(reference).name) for reference in OWN)
"""The names of this project's families."""
TWO_FAMILIES = FAMILIES[:2]
"""For what a command does around a model, where families differ by their declarations only: one
that reads images of one size, and one that reads videos and images of any size."""


def slow_unless(fast: bool, *values: Any) -> Any:
    """Values of one set of parameters, for the slow tests alone unless `fast`."""
    return pytest.param(*values, marks=() if fast else pytest.mark.slow)


def fast_first(count: int, values: Sequence[Any]) -> list[Any]:
    """Values of a parameter, of which the fast tests have the first `count`."""
    return [slow_unless(number < count, value) for number, value in enumerate(values)]


def families_with(name: str, values: Sequence[Any], fast: Any, *, family: str = "family") -> Any:
    """Parameters `family` and `name`: every value for each family. The fast tests have all of them
    for the first family, and `fast` for the others."""
    return pytest.mark.parametrize(
        (family, name),
        [
            slow_unless(each == FAMILIES[0] or value == fast, each, value)
            for each in FAMILIES
            for value in values
        ],
    )


SIBLINGS = ("llava_next", "qwen2_5_vl")
"""Families with another's decoder, LLaVA's and Qwen2-VL's. tests/decoding has them in the slow
tests, tests/families in the fast ones too."""


def slow_sibling(family: str, *values: Any) -> Any:
    """A set of parameters, slow for a sibling."""
    return slow_unless(family not in SIBLINGS, family, *values)


DECODERS = [slow_sibling(family) for family in FAMILIES]
