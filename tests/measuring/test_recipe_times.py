"""Hours of recipes, computed by hand from made-up figures."""

import pytest
import recipe_times
from recipe_times import Timed, hours, questions, runs

from causalmm.reproduce.recipe import find_recipe, make_recipe

WAYS = {"plain": Timed(8, 1.0, 0.1), "multimodal": Timed(8, 2.0, 0.2)}


def test_by_hand():
    recipe = make_recipe(
        {
            "title": "t", "source": "s", "model": "m", "dtype": "auto", "benchmark": "pope",
            "needs": "n", "data": {"questions": ["a_pope_b.json"]}, "base": ["greedy"], "seeds": 5,
            "rows": {
                "greedy": {"mode": "plain"},
                "sampled": {"mode": "plain", "temperature": 1},
                "mask": {"gamma": 0, "temperature": 1},
                "ours": {},
                "layer": {"mode": "language", "language_layers": "each"},
                "prompt": {"control": "yes prompt"},
            },
        },
        "table.yaml",
        "table",
    )  # fmt: skip
    assert [runs(recipe, row) for row in recipe.rows.values()] == [1, 5, 5, 5, 32 * 5, 1]
    plain, dear = 375 * 1.3, 375 * 2.6
    assert hours(recipe, WAYS) == pytest.approx((12 * plain + 165 * dear) / 3600)


def test_the_nine_files_of_pope():
    assert questions(find_recipe("pope")) == 27_000


def test_the_command_says_that_it_computes(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["recipe_times.py"])
    recipe_times.main()
    said = capsys.readouterr().out
    assert said.startswith("computed, on one NVIDIA H200, from ")
    assert " 46 runs of 27,000 questions: 16.6 h" in said
