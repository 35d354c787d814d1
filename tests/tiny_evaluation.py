"""A small yes/no benchmark on disk: pictures, question files, checkpoints that know the words."""

import json
from pathlib import Path

from PIL import Image
from tiny_checkpoints import save_checkpoint

WORDS = {"word30": "Yes", "word31": "yes", "word32": "No", "word33": "no"}
SIZES = {"a": (60, 40), "b": (30, 90), "c": (20, 20), "d": (56, 56)}
QUESTIONS = {"a": 3, "b": 1, "c": 1, "d": 2}
"""Of each picture: some share one, two stand alone."""
TEXTS = ("is there a banana ?", "is this what there is ?", "what banana is this ?")


def save_yes_no_checkpoint(family: str, folder: Path, words: int = 6) -> Path:
    """A random model whose every answer is made of yes, no and `words` other words."""
    save_checkpoint(family, folder)
    file = folder / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    for old, new in WORDS.items():
        assert text.count(f'"{old}"') == 1
        text = text.replace(f'"{old}"', f'"{new}"')
    file.write_text(text, encoding="utf-8")
    vocabulary = json.loads(text)["model"]["vocab"]
    said = {vocabulary[word] for word in WORDS.values()} | set(range(20, 20 + words))
    settings = folder / "generation_config.json"
    changed = json.loads(settings.read_text()) | {
        "suppress_tokens": sorted(set(vocabulary.values()) - said)
    }
    settings.write_text(json.dumps(changed))
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
