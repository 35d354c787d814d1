"""A benchmark's question and the answer it got: what the runner and the scorers share.

Generate, then score: the two sides meet only here, joined by id and never by line number. An answer
that failed carries an error and no text, so nothing can take it for an answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one image, ready to be asked."""

    id: str
    """Unique among all questions of a run, e.g. "coco/random/17"."""
    image: str
    """Name of the image, relative to the benchmark's image folder. Questions about one image share
    it: it is what the bootstrap resamples and what the runner keeps together."""
    path: str
    """Where the image lies; "" where the question shows none."""
    prompt: str
    """As sent, suffixes included."""
    choices: tuple[str, str] | None = None
    """The two possible answers in lower case, the positive one first ("yes", "no"); None: free
    text."""
    label: str | None = None
    """The right one of `choices`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else scoring needs: split, task, stage, objects."""

    def answered(self, answer: str | None, **fields: Any) -> "Answer":
        """The answer to this question; `fields` are others of an `Answer`."""
        about = {"question_id": self.id, "image": self.image, "prompt": self.prompt}
        return Answer(answer=answer, **about, **fields)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one question got, as a line of the answers file."""

    question_id: str
    image: str
    prompt: str
    answer: str | None
    """None where `error` says why there is none."""
    error: str | None = None
    seconds: float = 0.0
    """Wall time of this question: its share where several were decoded together."""
    scores: Mapping[str, tuple[float, float]] | None = None
    """Probability of either choice at the deciding token, under "factual", "adjusted" and the name
    of each counterfactual branch ("vision", "language", "joint"), and where a mask follows the
    contrast "unmasked" for the adjusted ones before it."""


class ViewChoice(NamedTuple):
    """What a view (the factual model, a branch alone, the adjusted model) says at the first token
    of a two-way answer."""

    choice: int | None
    """0 or 1 of the question's choices; None: cannot be read."""
    first: float
    """Probability of the first choice: the sum over the tokens that spell it."""
    second: float
    entropy: float
    divergence: float | None
    """KL(factual || view); None where the view gives no probability to a token that the factual
    one gives some, as the plausibility mask does."""

    @property
    def probabilities(self) -> tuple[float, float]:
        """Of either choice."""
        return self.first, self.second
