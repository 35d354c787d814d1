"""Choosing a checkpoint's own CausalMM configuration on the development split.

Every configuration of a small grid answers the same closed questions. Of the four whose mean gain
over plain decoding is largest, the best one wins whose captions do not invent over a point more
than plain ones; if none is so, the one whose captions invent least. The winner is reported on the
test split with paired intervals, whatever the outcome.
Held by tests/toyworld/test_train_demo.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from causalmm.config import CausalMMConfig
from causalmm.toyworld.evaluation import (
    Asked,
    accuracy,
    answered_right,
    caption_scenes,
    captions,
    chair,
    difference,
    question_set,
)

CHOSEN_ON = ("existence random", "existence adversarial", "canonical colour", "odd colour")
_FINALISTS = 4
_CAPTION_SLACK = 1.0


def grid() -> Iterator[CausalMMConfig]:
    """The configurations that are compared."""
    plain = CausalMMConfig()
    for gamma in (0.5, 1.0):
        for layers in ("half:", "all"):
            for method in ("uniform", "random"):
                yield replace(
                    plain,
                    mode="language",
                    language_method=method,
                    language_layers=layers,
                    gamma=gamma,
                )
        for method in ("uniform", "random"):
            yield replace(plain, mode="vision", vision_method=method, gamma=gamma)
        for mode in ("multimodal", "joint"):
            yield replace(
                plain, mode=mode, vision_method="uniform", language_method="uniform", gamma=gamma
            )


def choose(
    model: Any, processor: Any, family: str, *, images: int = 200
) -> tuple[CausalMMConfig, dict[str, Any]]:
    """The configuration that does best on development scenes, and the record of the choice."""
    sets = {name: question_set(name, family, "development", images) for name in CHOSEN_ON}
    plain = {name: answered_right(model, processor, family, asked) for name, asked in sets.items()}
    rows = []
    for config in tqdm(list(grid()), desc=f"{family}: choosing"):
        gains = {}
        for name, asked in sets.items():
            right = answered_right(model, processor, family, asked, config)
            gains[name] = difference(right, plain[name], asked)
        mean = float(np.mean([gain["value"] for gain in gains.values()]))
        rows.append({"config": config.to_dict(), "mean_gain": round(mean, 3), "gains": gains})
    rows.sort(key=lambda row: -row["mean_gain"])
    chosen, described = _with_sound_captions(model, processor, family, rows, images)
    record = {
        "split": "development",
        "images_a_set": images,
        "plain": {name: accuracy(plain[name], asked) for name, asked in sets.items()},
        "rows": rows,
        "captions": described,
        "chosen": chosen.to_dict(),
        "test": on_test(model, processor, family, chosen, images=2 * images),
    }
    return chosen, record


def _with_sound_captions(
    model: Any, processor: Any, family: str, rows: list[dict[str, Any]], images: int
) -> tuple[CausalMMConfig, list[dict[str, Any]]]:
    asked = caption_scenes(family, "development", images)
    plain = chair(captions(model, processor, family, asked), asked)
    described = [{"config": None, **plain}]
    limit = plain["chair_i"]["value"] + _CAPTION_SLACK
    for row in rows[:_FINALISTS]:
        config = CausalMMConfig.from_dict(row["config"])
        found = chair(captions(model, processor, family, asked, config), asked)
        described.append({"config": config.to_dict(), **found})
        if found["chair_i"]["value"] <= limit:
            return config, described
    least = min(described[1:], key=lambda each: each["chair_i"]["value"])
    return CausalMMConfig.from_dict(least["config"]), described


def on_test(
    model: Any, processor: Any, family: str, config: CausalMMConfig, *, images: int
) -> dict[str, Any]:
    """The chosen configuration and plain decoding on test scenes, with paired intervals."""
    report: dict[str, Any] = {}
    for name in CHOSEN_ON:
        asked: list[Asked] = question_set(name, family, "test", images)
        plain = answered_right(model, processor, family, asked)
        adjusted = answered_right(model, processor, family, asked, config)
        report[name] = {
            "plain": accuracy(plain, asked),
            "adjusted": accuracy(adjusted, asked),
            "difference": difference(adjusted, plain, asked),
        }
    asked = caption_scenes(family, "test", images)
    report["captions"] = {
        "plain": chair(captions(model, processor, family, asked), asked),
        "adjusted": chair(captions(model, processor, family, asked, config), asked),
    }
    return report
