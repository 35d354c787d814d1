"""How fluent a branch still is, and how much of the image it still reads.

Perplexity, exp(nats / tokens), of two things under the branch alone: the plain model's own greedy
descriptions of pictures, `ANSWER_TOKENS` at most with the token that ends them, after the same
picture and prompt; and the texts of questions without any picture, as bare text. A branch that
breaks the language finds both improbable; one that only lost the image, the descriptions alone.
Under scope "image", and with heads found by image tokens, text without a picture is factual.

Image mass: the share of its attention that a text query gives to image keys while it reads those
descriptions, the mean over queries, heads and edited decoder layers, factual and edited.
Tests: tests/evaluation/test_fluency.py.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

PROMPT = "Describe this image."
ANSWER_TOKENS = 16
COLUMNS = ("perplexity", "text perplexity", "plain image mass", "image mass")
_MOST_NATS = 700.0
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Fluency:
    """Of one branch alone. Of the plain model: its own, and its attention in every layer."""

    answer_nats: float
    """The negative log-likelihood of the plain answers."""
    answer_tokens: int
    text_nats: float
    text_tokens: int
    image_mass: tuple[float, ...] = ()
    """From 0 to 1, of the factual model in each edited decoder layer; of the vision tower none."""
    branch_image_mass: tuple[float, ...] = ()
    """The same of the branch; of the plain model none."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Fluency":
        """Of `to_dict`'s form. Raises TypeError for anything else."""
        masses = {name: tuple(values.pop(name)) for name in ("image_mass", "branch_image_mass")}
        return cls(**values, **masses)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def numbers(self) -> dict[str, float]:
        """For the report: perplexities, and masses in per cent, those that there are."""
        values = (
            _perplexity(self.answer_nats, self.answer_tokens),
            _perplexity(self.text_nats, self.text_tokens),
            _per_cent(self.image_mass),
            _per_cent(self.branch_image_mass),
        )
        pairs = zip(COLUMNS, values, strict=True)
        return {name: value for name, value in pairs if value is not None}


def spread(values: Sequence[_T], number: int) -> list[_T]:
    """At most so many of the different values, from everywhere in their order."""
    different = list(dict.fromkeys(values))
    number = min(number, len(different))
    return [different[place * len(different) // number] for place in range(number)]


def _per_cent(layers: Sequence[float]) -> float | None:
    return 100 * sum(layers) / len(layers) if layers else None


def _perplexity(nats: float, tokens: int) -> float:
    """NaN without tokens; at most what a float can hold."""
    return math.exp(min(nats / tokens, _MOST_NATS)) if tokens else math.nan
