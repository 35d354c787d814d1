"""Training batches: several questions share one image prefix, each as if it were asked alone.

A row is [ image prefix | question and answer 1 | question and answer 2 | ... ]. A 4-D mask lets a
token see the prefix and its own question only, and positions start again after the prefix, so every
question is computed exactly as in a row of its own. The first steps may be pictures only, for the
auxiliary head. A batch is a function of (family, seed, step).
Held by tests/toyworld/test_toyworld.py.
"""

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalmm.toyworld.questions import SceneQuestion, blind_questions, rephrase, training_questions
from causalmm.toyworld.recipes import RECIPES
from causalmm.toyworld.scenes import Scene, SceneStyle, scene
from causalmm.toyworld.settings import TrainingSettings
from causalmm.toyworld.vocabulary import CLASSES, COLOURS

IGNORED = -100
# Scenes with questions and scenes without, of all seeds, have different numbers.
_SPACING = 5_000_000
# Rows are padded to multiples of it: on a CPU, kernels are made and kept for each new shape.
LENGTH_STEP = 32


@dataclass(frozen=True)
class Lessons(torch.utils.data.Dataset):
    """Batches of images, one an index: first `cell_steps` of pictures only, then with questions."""

    settings: TrainingSettings
    processor: Any

    def __getitem__(self, step: int) -> dict[str, Any]:
        settings = self.settings
        sizes = RECIPES[settings.family].sizes
        style = replace(settings.style, size=sizes[step % len(sizes)])
        if step < settings.cell_steps:
            first = _SPACING * (2 * settings.seed + 1) + step * settings.cell_rows
            return pictures(self.processor, _scenes(first, settings.cell_rows, style))
        step -= settings.cell_steps
        own_group = settings.own_group if step < settings.steps else settings.late_own_group
        first = _SPACING * 2 * settings.seed + step * settings.rows
        scenes = _scenes(first, settings.rows, style)
        rng = random.Random(f"{RECIPES[settings.family].stream} {settings.seed} {step}")
        asked = [
            training_questions(
                each.items, rng, own_group, settings.existence_pairs, settings.text_rows > 0
            )
            for each in scenes
        ]
        # Numbers of its own, so that the share of rephrased questions changes nothing else.
        words = random.Random(f"words {settings.seed} {step}")
        asked = [
            [rephrase(each, words) if words.random() < settings.rephrased else each for each in row]
            for row in asked
        ]
        batch = collate(settings.family, self.processor, scenes, asked, settings.statement_weight)
        if settings.text_rows:
            blind = random.Random(f"text {settings.seed} {step}")
            asked = [blind_questions(blind)[-1] for _ in range(settings.text_rows)]
            batch["text"] = text_rows(settings.family, self.processor, asked)
        return batch


def pictures(processor: Any, scenes: list[Scene]) -> dict[str, Tensor]:
    """The image processor's tensors and the cell labels of images of one size."""
    images = processor.image_processor(images=[each.image for each in scenes], return_tensors="pt")
    return {**images, **_cell_labels(scenes)}


def collate(
    family: str,
    processor: Any,
    scenes: list[Scene],
    asked: list[list[SceneQuestion]],
    statement_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Inputs, labels and cell labels of images of one size and their questions.

    input_ids, labels, segment, position int64 [B, T] (segment 0: prefix, -1: padding; position
    counted from the end of the prefix), `weights` float32 [B, T] of the labels, `names` and
    `colours` int64 [B, cells] (0: none), and the image processor's tensors.
    """
    rows = [
        _row(family, processor, each.image.size, questions, statement_weight)
        for each, questions in zip(scenes, asked, strict=True)
    ]
    return {**pictures(processor, scenes), **_padded(processor, rows)}


def text_rows(family: str, processor: Any, asked: list[SceneQuestion]) -> dict[str, Tensor]:
    """input_ids, labels, segment, position and weights [B, T] of questions without an image, one a
    row: as in `collate`, with an empty prefix."""
    rows = []
    for question in asked:
        row = _empty_row()
        messages = [{"role": "user", "content": [{"type": "text", "text": question.text}]}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        _add(row, family, processor, processor.tokenizer(text).input_ids, question.answer)
        rows.append(row)
    return _padded(processor, rows)


def block_mask(segment: Tensor) -> Tensor:
    """Which token sees which: bool [B, 1, T, T]. Padding sees itself, so that no row is empty."""
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    own = segment[:, None, :] == segment[:, :, None]
    prefix = segment[:, None, :] == 0
    return (causal & (own | prefix)).unsqueeze(1)


def round_up(length: int) -> int:
    """The next multiple of `LENGTH_STEP`."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def prompt_parts(family: str, processor: Any, question: str) -> tuple[str, str]:
    """The chat template's text of a question: up to the end of its image, and the rest."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    head, marker, rest = text.partition(RECIPES[family].marker)
    return head + marker, rest


def _scenes(first: int, count: int, style: SceneStyle) -> list[Scene]:
    return [scene(number, split="train", style=style) for number in range(first, first + count)]


def _row(
    family: str,
    processor: Any,
    size: tuple[int, int],
    questions: list[SceneQuestion],
    statement_weight: float,
) -> dict[str, list[Any]]:
    tokenizer = processor.tokenizer
    tokens = (size[0] // 14) * (size[1] // 14)
    placeholder = RECIPES[family].placeholder
    prefix_text, _ = prompt_parts(family, processor, questions[0].text)
    prefix = tokenizer(prefix_text.replace(placeholder, placeholder * tokens)).input_ids
    row = _empty_row()
    row["input_ids"] += prefix
    row["labels"] += [IGNORED] * len(prefix)
    row["segment"] += [0] * len(prefix)
    row["position"] += [0] * len(prefix)
    row["weights"] += [0.0] * len(prefix)
    for question in questions:
        _, rest = prompt_parts(family, processor, question.text)
        asked = tokenizer(rest, add_special_tokens=False).input_ids
        weight = statement_weight if question.kind == "statement" else 1.0
        _add(row, family, processor, asked, question.answer, weight)
    return row


def _empty_row() -> dict[str, list[Any]]:
    return {"input_ids": [], "labels": [], "segment": [], "position": [], "weights": []}


def _add(
    row: dict[str, list[Any]],
    family: str,
    processor: Any,
    asked: list[int],
    answer: str,
    weight: float = 1.0,
) -> None:
    """Append a question and its answer as the row's next segment."""
    tokenizer = processor.tokenizer
    taught = tokenizer(RECIPES[family].space + answer, add_special_tokens=False).input_ids
    taught.append(tokenizer.eos_token_id)
    number = max(row["segment"], default=0) + 1
    length = len(asked) + len(taught)
    row["input_ids"] += asked + taught
    row["labels"] += [IGNORED] * len(asked) + taught
    row["segment"] += [number] * length
    row["position"] += list(range(length))
    row["weights"] += [weight] * length


def _padded(processor: Any, rows: list[dict[str, list[Any]]]) -> dict[str, Tensor]:
    length = round_up(max(len(row["input_ids"]) for row in rows))
    fill = {"input_ids": processor.tokenizer.pad_token_id, "labels": IGNORED, "segment": -1}
    return {
        name: torch.tensor(
            [row[name] + [fill.get(name, 0)] * (length - len(row[name])) for row in rows]
        )
        for name in rows[0]
    }


def _cell_labels(scenes: list[Scene]) -> dict[str, Tensor]:
    names, colours = [], []
    palette = list(COLOURS)
    for each in scenes:
        class_of = np.array([0, *(CLASSES.index(item.name) + 1 for item in each.items)])
        colour_of = np.array([0, *(palette.index(item.colour) + 1 for item in each.items)])
        names.append(class_of[each.cells].ravel())
        colours.append(colour_of[each.cells].ravel())
    return {
        "names": torch.from_numpy(np.stack(names)),
        "colours": torch.from_numpy(np.stack(colours)),
    }
