"""What comes back from a model for a question. Nothing here loads torch."""

from typing import NamedTuple


class Answer(NamedTuple):
    """What a model answered."""

    text: str
    finish_reason: str
    """"stop" or "length", as in OpenAI's form."""
    prompt_tokens: int
    completion_tokens: int
    """With the token that ends the answer."""
    batch: int
    """How many rows were decoded together."""


class Refusal(NamedTuple):
    """Why a model does not answer, in one sentence."""

    message: str
    status: int = 400
