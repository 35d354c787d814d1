"""Train, evaluate and configure a demonstration model.

    python scripts/train_demo.py llava|qwen2_vl [--only train|evaluate|choose]

Training saves its state under runs/ and goes on from there after a kill. The checkpoint, its
training.json and its causalmm_config.json go to causalmm/toyworld/checkpoints/.
Tests: tests/toyworld/test_train_demo.py.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from causalmm.cli.sole_writer import sole_writer
from causalmm.cli.terminal import complain, exit_code
from causalmm.errors import FailureError
from causalmm.families.family import load_reference
from causalmm.families.registry import find
from causalmm.toyworld import CHECKPOINTS
from causalmm.toyworld.recipes import RECIPES
from causalmm.toyworld.training import Trainer, TrainingSettings


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 1 where it cannot do what it was told."""
    return exit_code(lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=RECIPES)
    parser.add_argument("--only", choices=("train", "evaluate", "choose"))
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=400, help="test scenes a question set")
    parser.add_argument("--out", type=Path, help="checkpoint folder")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of saved states")
    parser.add_argument(
        "--no-compile", action="store_true", help="do not use torch.compile: slower, no compiler"
    )
    args = parser.parse_args(argv)
    out = args.out or CHECKPOINTS / find(args.family).demo
    try:
        if args.only in (None, "train"):
            recipe = RECIPES[args.family].training | ({"steps": args.steps} if args.steps else {})
            settings = TrainingSettings(family=args.family, seed=args.seed, **recipe)
            train(settings, args.runs, out, compiled=not args.no_compile)
        if args.only in (None, "evaluate"):
            evaluate(args.family, out, args.images)
        if args.only in (None, "choose"):
            choose(args.family, out, args.runs, args.images)
    except (ValueError, FailureError) as error:
        complain(str(error))
        return 1
    return 0


def train(settings: TrainingSettings, runs: Path, out: Path, *, compiled: bool) -> None:
    folder = runs / f"{find(settings.family).demo}-{settings.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(settings, folder, compiled=compiled)
    with sole_writer(trainer.state_file):
        trainer.run()
        trainer.export(out)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    record(
        out,
        settings=asdict(settings),
        parameters=parameters,
        training_images=settings.images,
        training_seconds=round(trainer.seconds),
        versions={
            name: version(name)
            for name in ("torch", "transformers", "tokenizers", "pillow", "numpy")
        },
        curve=trainer.curve,
    )


def evaluate(family: str, out: Path, images: int) -> None:
    from causalmm.toyworld.evaluation import held_out

    model, processor = load(family, out)
    started = time.perf_counter()
    report = held_out(model, processor, family, images=images)
    record(out, held_out={"split": "test", "images_a_set": images, **report})
    for name, result in report.items():
        shown = result.get("value", result.get("chair_i"))
        print(f"{name:24} {shown}", file=sys.stderr)
    print(f"evaluated in {time.perf_counter() - started:.0f} s", file=sys.stderr)


def choose(family: str, out: Path, runs: Path, images: int) -> None:
    from causalmm.toyworld import choosing

    config, choice = choosing.choose(out, family, runs / f"{find(family).demo}-choice")
    model, processor = load(family, out)
    test = choosing.on_test(model, processor, family, config, images=images)
    config.save_pretrained(out)
    record(out, choice=choice | {"test": {"images_a_set": images, **test}})


def load(family: str, folder: Path) -> tuple[Any, Any]:
    """A checkpoint as the rest of the project loads it, in float32."""
    from transformers import AutoProcessor

    model_class = load_reference(find(family).model_class)
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


def record(folder: Path, **content: Any) -> None:
    """Add to the checkpoint's training.json."""
    path = folder / "training.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | content, indent=2) + "\n", encoding="utf-8")
