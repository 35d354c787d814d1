"""How long each recipe would take on one GPU, computed from recorded figures of decode.py.

python benchmarks/recipe_times.py

Nothing is run. A run of a recipe is its questions in batches, each a prefill and a step a token of
the answer, as decode.py timed them; every row with branches is taken for `multimodal`, the dearest
that was timed, and every question for one with a picture of its own (questions about one picture
share its work, so POPE takes less). The figures are of LLaVA-1.5-7B's shape, compiled. Loading,
reading pictures and scoring are left out. Tests: tests/measuring/test_recipe_times.py.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from causalmm.cli.terminal import exit_code
from causalmm.evaluation.benchmarks.pope import BENCHMARK as POPE
from causalmm.reproduce.recipe import EACH, Recipe, find_recipe, names

FIGURES = Path(__file__).parent / "results" / "decode-llava-1.5-7b-cuda-compiled-batch8.json"
OF_A_POPE_FILE = 3000
QUESTIONS = {"mme": 2374, "vlind": 302 * 6 + 2 * (2576 - 302)}
"""MME's two questions an image (arXiv 2306.13394); VLind-Bench's six an instance, and two an image
of 2,576 less one factual image an instance (arXiv 2406.08702), were all of them good ones."""
TOKENS = 3
"""Of an answer of one word: the word, perhaps a full stop, and the end."""
LAYERS = 32
"""Of LLaVA-1.5-7B's decoder, for rows that edit each layer by itself."""


class Timed(NamedTuple):
    """Seconds of a batch."""

    batch: int
    prefill: float
    step: float


def timed(figures: dict[str, Any]) -> dict[str, Timed]:
    """What decode.py recorded of the ways "plain" and "multimodal"."""
    return {
        row["way"]: Timed(row["batch"], row["prefill_s"]["median"], row["step_s"]["median"])
        for row in figures["results"]["rows"]
    }


def hours(recipe: Recipe, ways: dict[str, Timed]) -> float:
    """Of a recipe on one GPU, with its own seeds."""
    return sum(
        runs(recipe, row) * seconds(recipe, ways["multimodal" if branches(row) else "plain"])
        for row in recipe.rows.values()
    ) / 3600  # fmt: skip


def seconds(recipe: Recipe, way: Timed) -> float:
    """Of one run."""
    batches = -(-questions(recipe) // way.batch)
    return batches * (way.prefill + TOKENS * way.step)


def questions(recipe: Recipe) -> int:
    """How many the recipe's benchmark has."""
    if recipe.benchmark == POPE.name:
        return OF_A_POPE_FILE * len(recipe.data["questions"])
    return QUESTIONS[recipe.benchmark]


def branches(row: dict[str, Any]) -> bool:
    """Whether a row decodes branches beside the factual one."""
    return row.get("mode") != "plain" and "control" not in row and row.get("gamma") != 0


def runs(recipe: Recipe, row: dict[str, Any]) -> int:
    """Of a row: one a seed, where anything is drawn in it."""
    drawn = "temperature" in row or branches(row)
    layers = LAYERS if EACH in row.values() else 1
    return layers * (recipe.seeds if drawn else 1)


def main() -> int:
    """Print a table and return 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", type=Path, default=FIGURES)
    figures = json.loads(parser.parse_args().figures.read_text(encoding="utf-8"))
    ways = timed(figures)
    print(f"computed, on one {figures['machine']['gpu']}, from {figures['git_commit']}")
    for name in names():
        recipe = find_recipe(name)
        count = sum(runs(recipe, row) for row in recipe.rows.values())
        print(f"{name:<16} {count:>3} runs of {questions(recipe):>6,} questions: "
              f"{hours(recipe, ways):.1f} h")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
