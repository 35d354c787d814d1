"""Train, evaluate and configure a demonstration model.

    python scripts/train_demo.py llava|qwen2vl [--only train|evaluate|choose]

Training saves its state under runs/ and goes on from there after a kill. The checkpoint, its
training.json and its causalmm_config.json go to causalmm/toyworld/checkpoints/.
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
from causalmm.toyworld import CHECKPOINTS, FAMILIES
from causalmm.toyworld.training import Trainer, TrainingSettings

# Meant for 45 minutes each on 2 cores; what a run took is in its training.json.
RECIPES: dict[str, dict[str, Any]] = {
    "llava": {
        "steps": 1500,
        "cell_steps": 1500,
        "late_steps": 100,
        "rephrased": 0.2,
        "canonical": 0.8,
    },
    # Images cost more here, so each is asked more about.
    "qwen2vl": {
        "steps": 1400,
        "cell_steps": 480,
        "rephrased": 0.2,
        "existence_pairs": 3,
        "text_rows": 24,
        "statement_weight": 3.0,
        "own_group": 0.2,
        "canonical": 0.8,
    },
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
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
    out = args.out or CHECKPOINTS / f"demo-{args.family}"
    try:
        if args.only in (None, "train"):
            recipe = RECIPES[args.family] | ({"steps": args.steps} if args.steps else {})
            settings = TrainingSettings(family=args.family, seed=args.seed, **recipe)
            train(settings, args.runs, out, compiled=not args.no_compile)
        if args.only in (None, "evaluate"):
            evaluate(args.family, out, args.images)
        if args.only in (None, "choose"):
            choose(args.family, out, args.images // 2)
    except (ValueError, FailureError) as error:
        complain(str(error))
        return 1
    return 0


def train(settings: TrainingSettings, runs: Path, out: Path, *, compiled: bool) -> None:
    folder = runs / f"demo-{settings.family}-{settings.seed}"
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


def choose(family: str, out: Path, images: int) -> None:
    from causalmm.toyworld import choosing

    model, processor = load(family, out)
    config, choice = choosing.choose(model, processor, family, images=images)
    config.save_pretrained(out)
    record(out, choice=choice)


def load(family: str, folder: Path) -> tuple[Any, Any]:
    """A checkpoint as the rest of the project loads it, in float32."""
    if family == "llava":
        from llava_causalmm import LlavaForConditionalGeneration as Model
    else:
        from qwen2vl_causalmm import Qwen2VLForConditionalGeneration as Model
    from transformers import AutoProcessor

    model = Model.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


def record(folder: Path, **content: Any) -> None:
    """Add to the checkpoint's training.json."""
    path = folder / "training.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
