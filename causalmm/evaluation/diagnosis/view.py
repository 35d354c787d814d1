"""What a view says of a two-way question: the factual model, a branch alone, or the adjusted."""

from typing import NamedTuple


class ViewChoice(NamedTuple):
    """What a view says of one question."""

    choice: int | None
    """0 or 1 of the question's choices; None: cannot be read."""
    probabilities: tuple[float, float]
    """Of either choice: the sum over the tokens that spell it."""
    entropy: float
    divergence: float | None
    """KL(factual || view); None where the view gives no probability to a token that the factual
    one gives some, as the plausibility mask does."""
