"""Example pictures with a question each: scenes of the toy world on which an answer changes.

They are those of examples/, drawn again, because that folder is in no wheel.
Tests: tests/app/test_examples.py.
"""

from pathlib import Path
from typing import NamedTuple

from causalmm.toyworld.evaluation import question_set

_SCENES = (
    ("odd colour", "llava", 41, "mushroom"),
    ("odd colour", "llava", 27, "key"),
    ("existence adversarial", "llava", 24, "boat"),
    ("odd colour", "qwen2_vl", 28, "apple"),
    ("existence adversarial", "qwen2_vl", 17, "sun"),
    ("odd colour", "llava", 60, "key"),
)
"""Question set, the family whose sizes its scenes have, the number of a scene, and what is asked
for."""


class Example(NamedTuple):
    """A picture's file and a question about it."""

    file: str
    question: str


def draw_examples(folder: Path) -> list[Example]:
    """Every example, its picture written into `folder` (made if missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, family, index, asked in _SCENES:
        drawn = question_set(name, family, "test", index + 1)
        number, scene = drawn[-1].number, drawn[-1].scene
        texts = [each.question.text for each in drawn if each.number == number]
        question = next(text for text in texts if asked in text)
        path = folder / f"{asked}-{number}.png"
        scene.image.save(path)
        found.append(Example(str(path), question))
    return found
