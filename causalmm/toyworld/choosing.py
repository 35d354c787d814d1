"""Choosing a checkpoint's own CausalMM configuration: `diagnose` on development scenes.

The questions are those on colours: of objects in their usual colour, which the prior answers right,
and in another one, where it is wrong. The first configuration of the ranking is taken, whether or
not its gain lasts on the half of the images that it was not ranked on, and is reported on the test
split with paired intervals, whatever the outcome. Tests: tests/toyworld/test_choosing.py.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from causalmm.config import CausalMMConfig
from causalmm.errors import FailureError
from causalmm.evaluation.diagnosis import command
from causalmm.evaluation.diagnosis.measurement import Configuration
from causalmm.layers import resolve_layers
from causalmm.toyworld.benchmarks import BenchmarkSettings, write_prior
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

REPORTED = ("existence random", "existence adversarial", "canonical colour", "odd colour")
BASE = CausalMMConfig(gamma=0.5, epsilon=0.1)
"""Of every configuration that is compared."""
SPLIT = "development"
IMAGES = 60
"""Of each set of questions."""
SUFFIX = " Please answer yes or no."
METHODS = ("uniform", "reversed", "reverse_and_normalize", "blind")
"""`random` and `shuffle` are left out for time: their branches say nearly what `uniform` says."""
WINDOWS = "all,thirds,third:+3"
_KEPT = ("tower", "method", "scope", "heads", "setting", "fluency")
_GAINS = ("AUC gain", "gain")


def choose(
    checkpoint: Path, family: str, folder: Path, images: int = IMAGES, more: Sequence[str] = ()
) -> tuple[CausalMMConfig, dict[str, Any]]:
    """The first configuration by `diagnose` on development scenes, and the record of the choice.

    Pictures and measurements go into `folder`, and what is there is not made again; `more` are
    flags of `diagnose` besides. Raises FailureError where the command fails.
    """
    prior = folder / "prior"
    if not prior.is_dir():
        prior.mkdir(parents=True)
        write_prior(prior, BenchmarkSettings(family=family, split=SPLIT, images=images))
    flags = [
        *("--questions", prior / "toy_pope_canonical.json"),
        *("--contradicting", prior / "toy_pope_odd.json"),
        *("--images", prior / "images", "--suffix", SUFFIX, "--limit", images),
        *("--gamma", BASE.gamma, "--epsilon", BASE.epsilon),
        *("--methods", *METHODS, "--windows", WINDOWS, *more),
    ]
    out = folder / "diagnosis"
    if command.main([str(each) for each in (*flags, "--model", checkpoint, "--out", out)]):
        raise FailureError("no configuration is chosen: diagnose failed")
    return read_choice(json.loads((out / command.TABLE).read_text(encoding="utf-8")))


def read_choice(table: Mapping[str, Any]) -> tuple[CausalMMConfig, dict[str, Any]]:
    """The same of a table.json."""
    first, run = table["ranked"][0], table["run"]
    layers = resolve_layers("layers", tuple(first["layers"]), run["layers"][first["tower"]])
    edited = Configuration(first["tower"], first["method"], layers, first["scope"], first["heads"])
    chosen = edited.over(BASE)
    rows = [
        {name: each[name] for name in _KEPT}
        | {
            half: {name: each[half][name] for name in _GAINS}
            for half in ("development", "held_out")
        }
        for each in table["ranked"]
    ]
    return chosen, {
        "split": SPLIT,
        "ranked_by": table["rank"],
        "questions": table["questions"],
        "images": table["images"],
        "plain": table["plain"]["held_out"] | {"fluency": table["plain"]["fluency"]},
        "ranked": rows,
        "chosen": chosen.to_dict(),
    }


def on_test(
    model: Any, processor: Any, family: str, config: CausalMMConfig, *, images: int
) -> dict[str, Any]:
    """The chosen configuration and plain decoding on test scenes, with paired intervals."""
    report: dict[str, Any] = {}
    for name in REPORTED:
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
