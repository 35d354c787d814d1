"""A small yes/no benchmark on disk: pictures, question files, checkpoints that know the words."""

import json
from pathlib import Path

from PIL import Image
from tiny_checkpoints import save_checkpoint

SPELLINGS = ("yes", "yeS", "yEs", "yES", "Yes", "YeS", "YEs", "YES", "no", "nO", "No", "NO")
SIZES = {"a": (60, 40), "b": (30, 90), "c": (20, 20), "d": (56, 56)}
QUESTIONS = {"a": 3, "b": 1, "c": 1, "d": 2}
"""Of each picture: some share one, two stand alone."""
TEXTS = ("is there a banana ?", "is this what there is ?", "what banana is this ?")


def save_yes_no_checkpoint(family: str, folder: Path) -> Path:
    """A random model that knows yes and no in so many spellings that it often says them."""
    save_checkpoint(family, folder)
    file = folder / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    for number, word in enumerate(SPELLINGS):
        assert text.count(f'"word{number}"') == 1
        text = text.replace(f'"word{number}"', f'"{word}"')
    file.write_text(text, encoding="utf-8")
    return folder


def save_pictures(folder: Path) -> None:
    for turn, (name, size) in enumerate(SIZES.items()):
        image = Image.radial_gradient("L").rotate(80 * turn).resize(size)
        image.save(folder / f"{name}.png")


def save_questions(folder: Path) -> Path:
    """A file of POPE's form; the questions about one picture do not all lie together."""
    pictures = [name for turn in range(3) for name, count in QUESTIONS.items() if turn < count]
    rows = [
        {
            "question_id": number,
            "image": f"{name}.png",
            "text": TEXTS[number % 3],
            "label": ("yes", "no")[number % 2],
        }
        for number, name in enumerate(pictures, 1)
    ]
    file = folder / "tiny_pope_random.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
