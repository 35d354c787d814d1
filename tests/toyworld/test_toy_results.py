"""The results table says what the comparisons say, and one command makes it."""

import json
from pathlib import Path

import pytest

from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.families.registry import demos
from causalmm.toyworld.commands import toy_results

ROOT = Path(__file__).resolve().parents[2]


def estimate(value, low, high):
    return {"value": value, "interval": [low, high]}


def test_differences_without_zero_are_marked(monkeypatch):
    column = toy_results.Column("pope", "toy/random", "accuracy", "POPE")
    monkeypatch.setattr(toy_results, "COLUMNS", (column,))

    def score(value, low, high, **more):
        return {"name": "toy/random", "metrics": {"accuracy": estimate(value, low, high)}, **more}

    differences = [
        score(-0.04, -1.26, 1.0, run="sample", base="greedy"),
        score(7.0, 7.0, 7.0, run="sample", base="sample+mask"),
        score(2.0, 0.05, 4.0, run="vcd", base="greedy"),
    ]
    comparison = {
        "reports": {"greedy": {"scores": [score(81.25, 80, 90)]}, "sample": {}, "vcd": {}},
        "differences": differences,
    }
    assert toy_results.table({"pope": comparison}).splitlines() == [
        "|  | POPE |",
        "| --- | --- |",
        "| greedy | 81.2 [80.0, 90.0] |",
        "| sampled | +0.0 [-1.3, +1.0] |",
        "| VCD (mitigv) | **+2.0** [+0.1, +4.0] |",
    ]


def test_the_questions_are_those_of_real_benchmarks():
    found = toy_results.questions(Path("bench"))
    assert {name for name, _ in found.values()} <= set(BENCHMARKS)
    assert {column.run for column in toy_results.COLUMNS} == set(found)


def test_the_table_in_the_docs_is_that_of_the_record():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for model in demos():
        file = ROOT / "docs" / f"toy-results-{model}.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        assert toy_results.table(record["comparisons"]) in page


@pytest.mark.slow
@pytest.mark.parametrize("model", demos())
def test_one_command_makes_the_table(model, tmp_path, capsys):
    argv = [model, "--images", "2", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert toy_results.main(argv) == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / f"toy-results-{model}.json").read_text(encoding="utf-8"))
    assert shown.strip() == toy_results.table(record["comparisons"])
    rows = [line.split(" | ")[0].removeprefix("| ") for line in shown.splitlines()]
    assert "greedy" in rows
    assert {f"CausalMM {mode}" for mode in toy_results.MODES} <= set(rows)
    assert ("VCD (mitigv)" in rows) == (model == "demo-llava")
