"""What a preset declares: a published method as settings of `CausalMMConfig`.

Tests: tests/presets/test_presets.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # of a package above this one
    from causalmm.decoding.plan import Towers


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published method. Settings that it does not name have their defaults."""

    name: str
    title: str
    arxiv: str
    """The number of its paper."""
    formula: str
    """Branch and adjustment in our words: l are the factual logits, p their probabilities."""
    settings: Mapping[str, Any]
    """By the names of the fields of `CausalMMConfig`."""
    may_change: tuple[str, ...]
    """Settings with which it stays this method; all others are fixed, those at defaults too."""
    differs: str
    """What is done otherwise here, what the paper leaves open, and how that was chosen."""
    features_site: bool = False
    """Whether it needs the vision site "features" (one feature layer of CLIP)."""
    least_language_layers: int = 1
    """Decoder layers that it needs."""

    @property
    def needs(self) -> str:
        """What a model must have, in words; empty: nothing that a supported model lacks."""
        needs = ["a model with one vision feature layer (LLaVA, LLaVA-NeXT)"] * self.features_site
        if self.least_language_layers > 1:
            needs.append(f"a decoder of at least {self.least_language_layers} layers")
        return " and ".join(needs)

    def check_model(self, towers: "Towers") -> None:
        """Raise ValueError where a model lacks what the preset needs."""
        lacks_site = self.features_site and not towers.features_site
        if lacks_site or towers.language_layers < self.least_language_layers:
            raise ValueError(f"preset {self.name!r} needs {self.needs}")
