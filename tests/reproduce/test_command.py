"""`reproduce` runs every row with one load, goes on after a kill, and reports."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_evaluation import save_pictures, save_questions, save_yes_no_checkpoint

from causalmm.cli.session import Session
from causalmm.evaluation.answers_file import read_answers
from causalmm.reproduce import command
from causalmm.reproduce.recipe import find_recipe, names
from causalmm.toyworld.benchmark_runs import make_bench, questions

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {
    "title": "A small table",
    "source": "nobody's",
    "model": "model",
    "dtype": "float32",
    "benchmark": "pope",
    "needs": "tiny_pope_random.json",
    "data": {"questions": ["tiny_pope_random.json"], "images": ".", "suffix": ""},
    "max_new_tokens": 2,
    "seeds": 2,
    "seed": 5,
    "base": ["greedy"],
    "rows": {
        "greedy": {"mode": "plain"},
        "regular": {"mode": "plain", "temperature": 1},
        "ours": {"gamma": 2},
        "layer": {"mode": "language", "language_layers": "each", "language_method": "uniform"},
        "prompted": {"control": "yes prompt"},
        "in doubt": {"control": "yes in doubt"},
    },
    "published": [
        {
            "row": "ours",
            "set": "tiny/random",
            "metric": "accuracy",
            "value": 88.93,
            "source": "x",
            "trust": "S",
        }
    ],
}
LAYERS = [f"layer {number}" for number in range(4)]
FOLDERS = [
    *("greedy", "in doubt", *LAYERS, "ours,seed=5", "ours,seed=6", "prompted"),
    *("regular,seed=5", "regular,seed=6"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    save_yes_no_checkpoint("llava", folder / "model")
    save_pictures(folder)
    save_questions(folder)
    (folder / "small.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return folder


def asks(folder, out, *more):
    given = ["run", folder / "small.yaml", "--model", folder / "model", "--data", folder]
    return [str(each) for each in (*given, "--out", out, *more)]


def answers(out):
    return {
        each.name: {id: answer.answer for id, answer in read_answers(each).items()}
        for each in sorted(out.iterdir())
        if each.is_dir()
    }


@pytest.fixture(scope="module")
def whole(folder):
    """Run to the end."""
    assert command.main(asks(folder, folder / "whole")) == 0
    return answers(folder / "whole")


def test_every_row_is_run_with_one_load(folder, whole, monkeypatch, tmp_path):
    assert sorted(whole) == sorted(FOLDERS)
    starts, start = [], Session.start
    monkeypatch.setattr(Session, "start", lambda *given: starts.append(1) or start(*given))
    assert command.main(asks(folder, tmp_path / "out", "--limit", "1")) == 0
    assert starts == [1]
    assert {len(each) for each in answers(tmp_path / "out").values()} == {3}


def test_what_is_done_is_not_asked_again(folder, whole, monkeypatch):
    monkeypatch.setattr(Session, "start", None)
    assert command.main(asks(folder, folder / "whole")) == 0


def test_another_recipe_in_the_same_folder_is_refused(folder, whole, capfd):
    assert command.main(asks(folder, folder / "whole", "--seeds", "3")) == 2
    said = capfd.readouterr().err
    assert "was begun with another recipe or other flags" in said
    assert said.count("\n") == 1


def test_the_report_is_text_json_and_a_figure(folder, whole, tmp_path, capfd):
    given = [
        "report",
        folder / "whole",
        "--out",
        tmp_path / "r.json",
        "--figure",
        tmp_path / "r.png",
    ]
    assert command.main(list(map(str, given))) == 0
    said = capfd.readouterr().out
    assert "88.93 (S)" in said
    assert "tiny/random, read by the rule strict" in said
    numbers = json.loads((tmp_path / "r.json").read_text())
    rows = dict.fromkeys(cell["row"] for cell in numbers["cells"])
    assert list(rows) == ["greedy", "regular", "ours", *LAYERS, "prompted", "in doubt"]
    assert numbers["missing"] == []
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["run", "small", "--out", "x"], "unknown recipe 'small': expected one of"),
        (["report", "."], "holds no recipe.json: expected the --out of `run`"),
        (["show", "pope", "--", "--images", "x"], "flags behind -- are for `run`"),
        (["run", "pope", "--out", "x", "--limit", "0"], "is not an integer >= 1"),
    ],
)
def test_wrong_requests_are_one_sentence(argv, sentence, capfd):
    assert command.main(argv) == 2
    said = capfd.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_the_row_is_named_where_it_is_wrong(folder, tmp_path, capfd):
    wrong = RECIPE | {"rows": {"greedy": {"mode": "plain"}, "ours": {"gamma": -1}}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    given = asks(folder, tmp_path / "out")
    given[1] = str(tmp_path / "wrong.yaml")
    assert command.main(given) == 2
    assert "recipe wrong, row ours: " in capfd.readouterr().err


def test_list_and_show(capfd):
    assert command.main(["list"]) == 0
    assert [line.split()[0] for line in capfd.readouterr().out.splitlines()] == list(names())
    assert command.main(["show", "pope"]) == 0
    said = capfd.readouterr().out
    assert "multimodal, coco/adversarial, accuracy: 83.7 (S)" in said
    assert "γ and ε of the language and multimodal rows" in said


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_answers(folder, whole, tmp_path):
    given = [sys.executable, "-m", "causalmm", "reproduce", *asks(folder, tmp_path / "out")]
    running = subprocess.Popen(
        given, cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    for _ in range(600):
        if len(list((tmp_path / "out").glob("*/answers.jsonl"))) >= 2:
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert command.main(asks(folder, tmp_path / "out")) == 0
    assert answers(tmp_path / "out") == whole


@pytest.mark.slow
def test_two_processes_give_the_same_answers(folder, whole, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
    launch += ["--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"]
    given = [*launch, "-m", "causalmm", "reproduce", *asks(folder, tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(given, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    assert answers(tmp_path / "out") == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(
    ("model", "family"), [("demo-llava", "llava"), ("demo-qwen2vl", "qwen2_vl")]
)
def test_every_recipe_on_the_demonstration_models(name, model, family, tmp_path, capfd):
    bench = make_bench(tmp_path / "bench", family, 4, "test")
    recipe = find_recipe(name)
    _, own = next(each for each in questions(bench).values() if each[0] == recipe.benchmark)
    # An instance of VLind-Bench that --limit cuts is not counted.
    limit = "6" if recipe.benchmark == "vlind" else "2"
    given = ["run", name, "--model", model, "--dtype", "float32", "--seeds", "2", "--limit", limit]
    given += ["--out", tmp_path / "out", "--", *own]
    assert command.main(list(map(str, given))) == 0
    released = [row for row, flags in recipe.rows.items() if "causalmm-released" in flags.values()]
    told = capfd.readouterr().err
    for row in released:
        assert (f"row {row} is left out for {model}" in told) == (family != "llava")
    assert command.main(["report", str(tmp_path / "out")]) == 0
    said = capfd.readouterr().out
    assert "not finished" not in said
    assert "| greedy " in said
