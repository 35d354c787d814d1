"""What a demonstration model can do on scenes it never saw, and where its priors show.

A closed question is right when the most probable first token is the right answer's; captions are
scored by CHAIR (arXiv 1809.02156). Intervals are 95 % bootstrap intervals over images.
Held by tests/toyworld/test_toyworld.py.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from causalmm.config import CausalMMConfig
from causalmm.evaluation.benchmarks.vocabulary import Vocabulary
from causalmm.toyworld import questions as ask
from causalmm.toyworld.lessons import prompt_parts
from causalmm.toyworld.questions import SceneQuestion
from causalmm.toyworld.recipes import RECIPES
from causalmm.toyworld.scenes import Scene, SceneStyle, scene
from causalmm.toyworld.vocabulary import CANONICAL, COLOURS, SYNONYMS

SETS = (
    "existence random",
    "existence adversarial",
    "canonical colour",
    "odd colour",
    "statements",
    "count",
    "position",
)
_NAMES = Vocabulary(SYNONYMS)
_RESAMPLES = 1000
# Scenes of different sets have different numbers, so that no set repeats another's pictures.
_SPACING = 100_000
_ONE_GROUP = SceneStyle(coherent=1.0, counts=(0.33, 0.33, 0.34, 0.0))


@dataclass(frozen=True, eq=False)
class Asked:
    """One question about one scene; questions about the same image share its number."""

    number: int
    scene: Scene
    question: SceneQuestion


def question_set(name: str, family: str, split: str, images: int) -> list[Asked]:
    """The questions of one set about `images` scenes of a split.

    Raises ValueError for an unknown set.
    """
    if name not in SETS:
        raise ValueError(f"set {name!r}: expected one of {', '.join(SETS)}")
    style = {
        "existence random": _ONE_GROUP,
        "existence adversarial": _ONE_GROUP,
        "canonical colour": replace(_ONE_GROUP, canonical=1.0),
        "odd colour": replace(_ONE_GROUP, canonical=0.0),
        "position": SceneStyle(counts=(0.0, 0.4, 0.4, 0.2)),
    }.get(name, SceneStyle())
    asked = []
    for index, (number, drawn) in enumerate(_drawn(SETS.index(name), family, split, images, style)):
        rng = random.Random(f"{name} {split} {index}")
        asked += [Asked(number, drawn, question) for question in _questions(name, drawn, rng)]
    return asked


def _drawn(
    block: int, family: str, split: str, images: int, style: SceneStyle
) -> Iterator[tuple[int, Scene]]:
    """Scenes of a block of numbers, in the family's sizes by turns."""
    sizes = RECIPES[family].sizes
    for index in range(images):
        number = block * _SPACING + index
        sized = replace(style, size=sizes[index % len(sizes)])
        yield number, scene(number, split=split, style=sized)


def _questions(name: str, drawn: Scene, rng: random.Random) -> list[SceneQuestion]:
    item = rng.choice(drawn.items)
    if name.startswith("existence"):
        own_group = 1.0 if name == "existence adversarial" else 0.0
        absent = ask.absent_name(drawn.names, own_group, rng)
        return [ask.existence(item.name, True), ask.existence(absent, False)]
    if name.endswith("colour"):
        return [ask.colour(item.name, item.colour)]
    if name == "count":
        return [ask.count(len(drawn.items))]
    if name == "position":
        first, second = rng.sample(range(len(drawn.items)), 2)
        one, other = drawn.items[first].name, drawn.items[second].name
        return [ask.position(one, other, first < second)]
    wrong = ask.other_colour(item.colour, item.name, rng)
    told, other = rng.sample(list(COLOURS), 2)
    usual = CANONICAL[item.name]
    unusual = rng.choice([each for each in COLOURS if each != usual])
    return [
        ask.image_statement(ask.presence(item.name), True),
        ask.image_statement(ask.presence(ask.absent_name(drawn.names, 0.25, rng)), False),
        ask.image_statement(ask.colour_rule(item.name, item.colour), True),
        ask.image_statement(ask.colour_rule(item.name, wrong), False),
        ask.sense_statement(item.name, rng.choice((usual, unusual))),
        ask.context_statement(item.name, told, rng.choice((told, other))),
    ]


@torch.inference_mode()
def answered_right(
    model: Any,
    processor: Any,
    family: str,
    asked: Sequence[Asked],
    causalmm: CausalMMConfig | None = None,
    batch: int = 64,
) -> np.ndarray:
    """Whether each question is answered right, bool [questions]."""
    tokenizer = processor.tokenizer
    space = RECIPES[family].space
    extra = {} if causalmm is None else {"causalmm": causalmm}
    right = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        inputs = _inputs(processor, family, part)
        logits = model(**inputs, **extra, logits_to_keep=1).logits[:, -1]
        for row, each in zip(logits, part, strict=True):
            answer = tokenizer(space + each.question.answer, add_special_tokens=False).input_ids
            right.append(int(row.argmax()) == answer[0])
    return np.array(right)


def caption_scenes(family: str, split: str, images: int) -> list[Asked]:
    """Ordinary scenes to be described."""
    asked = []
    for number, drawn in _drawn(len(SETS), family, split, images, SceneStyle()):
        described = [(item.name, item.colour) for item in drawn.items]
        asked.append(Asked(number, drawn, ask.caption(described)))
    return asked


@torch.inference_mode()
def captions(
    model: Any,
    processor: Any,
    family: str,
    asked: Sequence[Asked],
    causalmm: CausalMMConfig | None = None,
    batch: int = 64,
) -> list[str]:
    """Greedy captions of at most 40 tokens."""
    extra = {} if causalmm is None else {"causalmm": causalmm}
    texts: list[str] = []
    for start in range(0, len(asked), batch):
        inputs = _inputs(processor, family, asked[start : start + batch])
        tokens = model.generate(**inputs, **extra, max_new_tokens=40, do_sample=False)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        texts += processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _inputs(processor: Any, family: str, asked: Sequence[Asked]) -> Any:
    texts = ["".join(prompt_parts(family, processor, each.question.text)) for each in asked]
    images = [each.scene.image for each in asked]
    return processor(images=images, text=texts, padding=True, return_tensors="pt")


def mentioned(text: str) -> set[str]:
    """Classes that a text names, in singular or plural."""
    return set(_NAMES.mentions(text))


def chair(texts: Sequence[str], asked: Sequence[Asked]) -> dict[str, Any]:
    """CHAIR_i (share of mentions that are not there; a class counts once a caption), CHAIR_s, and
    recall, with intervals."""
    rows = np.array(
        [
            (len(said - there), len(said), len(said & there), len(there), bool(said - there))
            for said, there in (
                (mentioned(text), set(each.scene.names))
                for text, each in zip(texts, asked, strict=True)
            )
        ],
        dtype=float,
    )
    return {
        "chair_i": _ratio(rows[:, 0], rows[:, 1]),
        "chair_s": _ratio(rows[:, 4], np.ones(len(rows))),
        "recall": _ratio(rows[:, 2], rows[:, 3]),
        "captions": len(rows),
    }


def accuracy(right: np.ndarray, asked: Sequence[Asked]) -> dict[str, Any]:
    """Per cent right with its interval; questions about one image are resampled together."""
    total, size = _by_image(right.astype(float), asked)
    return {**_ratio(total, size), "questions": len(right)}


def difference(right: np.ndarray, base: np.ndarray, asked: Sequence[Asked]) -> dict[str, Any]:
    """Paired difference of accuracies in points, with its interval."""
    total, size = _by_image(right.astype(float) - base.astype(float), asked)
    return {**_ratio(total, size), "questions": len(right)}


def _by_image(values: np.ndarray, asked: Sequence[Asked]) -> tuple[np.ndarray, np.ndarray]:
    _, image = np.unique([each.number for each in asked], return_inverse=True)
    return np.bincount(image, values), np.bincount(image).astype(float)


def _ratio(part: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
    """100 x sum(part) / sum(whole) over images, with a seeded bootstrap interval."""
    picks = np.random.default_rng(0).integers(0, len(part), (_RESAMPLES, len(part)))
    resampled = 100 * part[picks].sum(axis=1) / np.maximum(whole[picks].sum(axis=1), 1e-9)
    low, high = np.percentile(resampled, [2.5, 97.5])
    value = 100 * part.sum() / max(whole.sum(), 1e-9)
    return {
        "value": round(float(value), 2),
        "interval": [round(float(low), 2), round(float(high), 2)],
    }


def held_out(
    model: Any,
    processor: Any,
    family: str,
    *,
    split: str = "test",
    images: int = 400,
    causalmm: CausalMMConfig | None = None,
) -> dict[str, Any]:
    """Every set's accuracy and the captions' CHAIR on held-out scenes."""
    report: dict[str, Any] = {}
    for name in SETS:
        asked = question_set(name, family, split, images)
        right = answered_right(model, processor, family, asked, causalmm)
        report[name] = accuracy(right, asked)
    asked = caption_scenes(family, split, images)
    report["captions"] = chair(captions(model, processor, family, asked, causalmm), asked)
    return report
