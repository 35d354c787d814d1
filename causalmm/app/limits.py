"""What one page may take of the machine that serves it. Tests: tests/app/test_limits.py."""

from dataclasses import dataclass, fields

MIB = 2**20
MOST_WAITING = 32
"""Of the 40 threads that a server has for its events, each question that waits takes one."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what is uploaded, kept and computed, each a whole number above 0.

    Raises ValueError for another value.
    """

    file_bytes: int = 20 * MIB
    """Of one uploaded file."""
    stored_bytes: int = 512 * MIB
    """Of all uploaded files together; more are refused until some were deleted."""
    kept_seconds: int = 3600
    """After which an uploaded file is deleted."""
    pictures: int = 8
    """Of one conversation."""
    pixels: int = 24_000_000
    """Of one picture, or of a video's frame."""
    frames: int = 32
    """Of a video that the model sees."""
    characters: int = 8000
    """Of one question."""
    turns: int = 16
    """Of one conversation."""
    new_tokens: int = 512
    """Of one answer."""
    waiting: int = 8
    """Questions that wait, at most `MOST_WAITING`; one at a time is answered."""
    sessions: int = 64
    """Open pages of which the conversation is remembered."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{each.name}={value!r}: expected an integer >= 1")
        if self.waiting > MOST_WAITING:
            raise ValueError(f"waiting={self.waiting}: expected at most {MOST_WAITING}")
