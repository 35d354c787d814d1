"""A conversation about pictures in which every question has two answers.

The model is shown what it said itself: the plain answers for the next plain one, the adjusted ones
for the next adjusted one. Files are kept as paths and opened again at every turn, so that an
uploaded file can be deleted. Tests: tests/app/test_conversation.py.
"""

from dataclasses import dataclass, replace
from typing import Any

from causalmm.app.limits import Limits
from causalmm.app.uploads import check_video_size, open_picture
from causalmm.errors import RequestError
from causalmm.inputs.messages import check_prompt, one_turn, open_messages, text_part

PLAIN, CAUSALMM = "plain", "causalmm"
"""The two answers."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question and its answers, by PLAIN and CAUSALMM."""

    question: str
    answers: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Of one model, about the same files from its first question on."""

    model: str
    pictures: tuple[str, ...] = ()
    video: str | None = None
    turns: tuple[Turn, ...] = ()

    def said(self, turn: Turn) -> "Conversation":
        """With one more turn."""
        return replace(self, turns=(*self.turns, turn))

    def check(self, question: str, limits: Limits) -> None:
        """Raise RequestError for a question that may not be asked next."""
        check_prompt(question)
        if not self.pictures and self.video is None:
            raise RequestError("there is no picture: upload one, or pick an example")
        if len(self.pictures) > limits.pictures:
            raise RequestError(
                f"{len(self.pictures)} pictures are too many: expected at most {limits.pictures}"
            )
        if len(question) > limits.characters:
            raise RequestError(
                f"the question has {len(question):,} characters: expected at most "
                f"{limits.characters:,}"
            )
        if len(self.turns) >= limits.turns:
            raise RequestError(
                f"the conversation has {limits.turns} questions, the most it may have: start "
                "another one"
            )

    def opened(self, limits: Limits) -> list[dict[str, Any]]:
        """The parts of a message that show the files. Raises RequestError where one cannot be
        opened or is larger than allowed."""
        pictures = [open_picture(path, limits) for path in self.pictures]
        [turn] = one_turn(pictures, None, self.video)
        if self.video is not None:
            check_video_size(self.video, limits)
            turn["content"][-1]["max_frames"] = limits.frames
        [turn] = open_messages([turn])
        return turn["content"]

    def messages(
        self, which: str, question: str, shown: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """What the model is asked for the answer `which`, the files' parts `shown` first."""
        found: list[dict[str, Any]] = []
        for turn in self.turns:
            found.append({"role": "user", "content": [text_part(turn.question)]})
            found.append({"role": "assistant", "content": [text_part(turn.answers[which])]})
        found.append({"role": "user", "content": [text_part(question)]})
        found[0]["content"] = [*shown, *found[0]["content"]]
        return found
