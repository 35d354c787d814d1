"""A recipe is checked when it is read, and those of the package ask for what exists."""

import copy
from pathlib import Path

import pytest
import yaml

from causalmm.config import CausalMMConfig
from causalmm.errors import RequestError
from causalmm.evaluation import commands
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.reproduce.recipe import (
    EACH,
    find_recipe,
    make_recipe,
    names,
    read_recipe,
    to_dict,
)
from causalmm.reproduce.runs import row_flags

LEAST = {
    "title": "A table",
    "source": "a paper",
    "model": "demo-llava",
    "dtype": "float32",
    "benchmark": "pope",
    "needs": "a file",
    "data": {"questions": ["a_pope_b.json"]},
    "rows": {"greedy": {"mode": "plain"}, "ours": None},
    "base": ["greedy"],
}
CELL = {"row": "ours", "set": "a/b", "metric": "F1", "value": 1, "source": "x", "trust": "P"}


def changed(**changes):
    return make_recipe(copy.deepcopy(LEAST) | changes, "table.yaml", "table")


def test_the_least_recipe_and_its_defaults():
    recipe = changed(published=[CELL, CELL | {"value": None, "row": "greedy"}])
    assert (recipe.name, recipe.seeds, recipe.rows["ours"]) == ("table", 1, {})
    assert [cell.value for cell in recipe.published] == [1, None]


def test_a_recipe_is_what_its_dictionary_says():
    for name in names():
        recipe = find_recipe(name)
        assert make_recipe(to_dict(recipe), "again", name) == recipe


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"titel": "x"}, "table.yaml: unknown key 'titel': expected one of title, source"),
        ({"title": " "}, "table.yaml: title: ' ': expected text"),
        ({"dtype": "int8"}, "table.yaml: dtype: 'int8': expected one of auto, float32"),
        ({"benchmark": "popes"}, "table.yaml: benchmark: 'popes': expected one of pope, mme"),
        ({"seeds": 0}, "table.yaml: seeds: 0: expected a whole number above 0"),
        ({"seeds": True}, "table.yaml: seeds: True: expected a whole number above 0"),
        ({"seed": 1.5}, "table.yaml: seed: 1.5: expected a whole number"),
        ({"rows": {}}, r"table.yaml: rows: {}: expected names of rows"),
        ({"rows": {"a": 3}}, "table.yaml: rows: .*expected names of rows, each with its settings"),
        (
            {"rows": {"greedy": {"gama": 1}}},
            "table.yaml: rows: greedy: unknown setting 'gama': expected one of preset, mode",
        ),
        (
            {"rows": {"greedy": {"language_layers": 613}}},
            'rows: greedy: language_layers: 613: write layers in quotes, as "10:13"',
        ),
        (
            {"rows": {"greedy": {"control": "no"}}},
            "rows: greedy: control: 'no': expected one of yes prompt, yes in doubt",
        ),
        ({"data": {"folder": "x"}}, "data: unknown flag 'folder': pope has questions, dataset"),
        ({"base": ["mask"]}, "base: 'mask': expected one of the rows greedy, ours"),
        ({"base": "greedy"}, "base: 'greedy': expected a list of texts"),
        ({"published": [CELL | {"trust": "Q"}]}, "published cell 1: trust: 'Q': expected one of P"),
        ({"published": [CELL | {"value": "9"}]}, "cell 1: value: '9': expected a number or null"),
        ({"published": [{"row": "ours"}]}, "table.yaml: published cell 1 has no set"),
        (
            {"published": [CELL | {"row": "OPERA"}]},
            "published: row 'OPERA': expected one of the rows or others greedy, ours",
        ),
    ],
)
def test_errors_name_file_key_and_what_is_allowed(changes, sentence):
    with pytest.raises(RequestError, match=sentence):
        changed(**changes)


@pytest.mark.parametrize("key", ["title", "rows", "base"])
def test_what_a_recipe_must_have(key):
    given = copy.deepcopy(LEAST)
    del given[key]
    with pytest.raises(RequestError, match=f"table.yaml has no {key}"):
        make_recipe(given, "table.yaml", "table")


def test_files_that_are_no_recipes(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(RequestError, match="expected keys and values, found list"):
        read_recipe(tmp_path / "list.yaml")
    with pytest.raises(RequestError, match="is not YAML"):
        read_recipe(tmp_path / "broken.yaml")
    with pytest.raises(RequestError, match="unknown recipe 'popes': expected one of .*pope"):
        find_recipe("popes")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(LEAST))
    assert find_recipe(str(tmp_path / "own.yaml")).name == "own"


@pytest.mark.parametrize("name", names())
def test_each_row_is_a_request_that_the_command_takes(name):
    recipe = find_recipe(name)
    known = set(BENCHMARKS[recipe.benchmark].flags)
    for row in recipe.rows.values():
        row = {key: 0 if value == EACH else value for key, value in row.items()}
        argv = [recipe.benchmark, "run", "--out", "out", *row_flags(recipe, row, Path("data"))]
        args = commands.parse_args(argv, None)
        assert known <= vars(args).keys()
        settings = {key: getattr(args, key) for key in vars(CausalMMConfig()) if key in args}
        if settings.pop("mode", None) != "plain":
            preset = getattr(args, "preset", None)
            make = CausalMMConfig if preset is None else None
            config = make(**settings) if make else CausalMMConfig.preset(preset, **settings)
            assert config.seed == recipe.seed


@pytest.mark.parametrize("name", names())
def test_each_table_has_greedy_beside_it_and_says_what_is_published(name):
    recipe = find_recipe(name)
    assert recipe.rows["greedy"] == {"mode": "plain"}
    assert "greedy" in recipe.base
    assert recipe.published
    assert recipe.unpublished or recipe.notes
