"""One command asks the benchmarks in every way and writes the tables of the docs."""

import json
from pathlib import Path

import pytest

from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.families.loading import load
from causalmm.families.registry import demos
from causalmm.presets.registry import PRESETS
from causalmm.toyworld import CHECKPOINTS
from causalmm.toyworld.benchmark_runs import compared, questions
from causalmm.toyworld.center_runs import ASKED
from causalmm.toyworld.commands import toy_results
from causalmm.toyworld.results_table import CENTERS, COLUMNS, SAME_AS_A_MODE, tables

ROOT = Path(__file__).resolve().parents[2]


def test_the_questions_are_those_of_real_benchmarks():
    found = questions(Path("bench"))
    assert {name for name, _ in found.values()} <= set(BENCHMARKS)
    assert {column.comparison for column in COLUMNS} == set(found)
    assert {column.comparison for column in CENTERS} == set(ASKED) <= set(found)


@pytest.mark.parametrize("model", demos())
def test_a_grid_has_every_preset_that_the_model_can_run(model):
    modes, half, presets = toy_results.ways(load(str(CHECKPOINTS / model), device="cpu").model)
    assert modes == {"mode": ["vision", "language", "multimodal", "joint"]}
    assert half == {"mode": "language", "language_layers": "half:"}
    left_out = {"causalmm-released"} if model == "demo-qwen2vl" else set()
    assert set(presets["preset"]) == set(PRESETS) - set(SAME_AS_A_MODE) - left_out


def test_differences_to_other_bases_are_kept_of_controls_alone(tmp_path):
    questions = tmp_path / "toy_pope_odd.json"
    row = {"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}
    questions.write_text(json.dumps(row) + "\n", encoding="utf-8")
    answer = {"question_id": "toy/odd/1", "image": "a.jpg", "prompt": "Is it?", "answer": "yes"}
    for run in ("greedy", "sample", "preset=vcd"):
        (tmp_path / run).mkdir()
        text = json.dumps(answer | {"error": None, "seconds": 0.1, "scores": None}) + "\n"
        (tmp_path / run / "answers.jsonl").write_text(text, encoding="utf-8")
    runs = [tmp_path / run for run in ("greedy", "sample", "preset=vcd")]
    flags = ["--questions", questions, "--suffix", ""]
    found = compared("pope", runs, flags, ["greedy", "sample"], tmp_path / "comparison.json")
    assert set(found["reports"]) == {"greedy", "sample", "preset=vcd"}
    assert [(each["base"], each["run"]) for each in found["differences"]] == [
        ("greedy", "sample"),
        ("greedy", "preset=vcd"),
        ("sample", "greedy"),
    ]


def test_the_tables_in_the_docs_are_those_of_the_record():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for model in demos():
        file = ROOT / "docs" / f"toy-results-{model}.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        for table in tables(record):
            assert table in page


@pytest.mark.slow
@pytest.mark.parametrize("model", demos())
def test_one_command_makes_the_tables(model, tmp_path, capsys):
    argv = [model, "--images", "2", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert toy_results.main(argv) == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / f"toy-results-{model}.json").read_text(encoding="utf-8"))
    assert shown.strip() == "\n\n".join(tables(record))
    rows = [line.split(" | ")[0].removeprefix("| ") for line in shown.splitlines()]
    assert {"greedy", "CausalMM vision", "VCD (`vcd`)", "the same, centered"} <= set(rows)
    assert ("VCD by mitigv" in rows) == (model == "demo-llava")
    assert set(record["times"]) == set(record["comparisons"]["pope"]["reports"]) - {"mitigv"}
