"""Find scenes on which the adjustment changes a demonstration model's answer, for better or worse.

    python scripts/find_examples.py

Looks through test scenes with each model's own configuration, greedy, and writes the pictures,
examples.json and README.md of examples/.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from causalmm.cli.terminal import exit_code
from causalmm.config import CausalMMConfig
from causalmm.families.loading import load
from causalmm.families.registry import families
from causalmm.toyworld import CHECKPOINTS

LOOKED_AT = ("existence adversarial", "odd colour")
HELPED, HURT = 2, 1
"""Examples a model and question set."""
INTRODUCTION = """# Examples

Test scenes of the toy world on which the small demonstration models change their answer, found by
`python scripts/find_examples.py`: they show what the adjustment does, picked for that, and say
nothing of how often. How often is in each checkpoint's `training.json`. *Helped*: the plain answer
is wrong, the adjusted one right; *hurt*: the other way round. Greedy, each model's own
configuration (`causalmm_config.json`).

| picture | model | prompt | right | plain | CausalMM | |
|---|---|---|---|---|---|---|
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return exit_code(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300, help="scenes a question set")
    parser.add_argument("--out", type=Path, default=Path("examples"))
    args = parser.parse_args(argv)
    args.out.mkdir(exist_ok=True)
    demos = {family.demo: name for name, family in families().items() if family.demo}
    trained = [demo for demo in demos if (CHECKPOINTS / demo / "model.safetensors").is_file()]
    found = [each for demo in trained for each in find(demo, demos[demo], args.images, args.out)]
    (args.out / "examples.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    rows = "".join(
        f"| ![]({each['image']}) | {each['model']} | {each['prompt']} | {each['right']} "
        f"| {each['plain']} | {each['causalmm']} | {each['effect']} |\n"
        for each in found
    )
    (args.out / "README.md").write_text(INTRODUCTION + rows, encoding="utf-8")


def find(demo: str, family: str, images: int, out: Path) -> list[dict[str, Any]]:
    """Examples of one model, their pictures saved."""
    from causalmm.toyworld.evaluation import answered_right, question_set

    model, processor, ask = open_demo(demo)
    config = CausalMMConfig.from_pretrained(CHECKPOINTS / demo)
    found = []
    for name in LOOKED_AT:
        asked = question_set(name, family, "test", images)
        plain = answered_right(model, processor, family, asked)
        adjusted = answered_right(model, processor, family, asked, config)
        wanted = {"helped": HELPED, "hurt": HURT}
        for each, before, after in zip(asked, plain, adjusted, strict=True):
            effect = "helped" if after else "hurt"
            if before == after or not wanted[effect]:
                continue
            wanted[effect] -= 1
            file = f"{demo.removeprefix('demo-')}_{each.number}_{effect}.png"
            each.scene.image.save(out / file)
            answers = ask(each.scene.image, each.question.text, config)
            found.append(
                {
                    "image": file,
                    "model": demo,
                    "prompt": each.question.text,
                    "right": each.question.answer,
                    **answers,
                    "effect": effect,
                }
            )
    return found


def open_demo(demo: str) -> tuple[Any, Any, Any]:
    """A demonstration model, its processor, and a function that answers plainly and adjusted."""
    from causalmm.inputs.questions import answer_questions

    model, processor = load(str(CHECKPOINTS / demo))

    def ask(image: Any, prompt: str, config: CausalMMConfig) -> dict[str, str]:
        settings = {"max_new_tokens": 40, "do_sample": False}
        ways = {"plain": None, "causalmm": config}
        return {
            name: answer_questions(model, processor, image, [prompt], causalmm=way, **settings)[0]
            for name, way in ways.items()
        }

    return model, processor, ask
