"""`score` and `compare` read runs from their folders, print tables and write JSON."""

import argparse
import json
from pathlib import Path

import pytest
from answered import answered

from causalmm.errors import FailureError, RequestError
from causalmm.evaluation.answers_file import ANSWERS, CONTROLS, answer_line
from causalmm.evaluation.benchmarks import BENCHMARKS
from causalmm.evaluation.report import text_table
from causalmm.evaluation.scoring import (
    add_compare_flags,
    add_score_flags,
    compare_command,
    named_runs,
    score_command,
)

ROWS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a cup?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a cat?", "label": "no"},
]
QUESTIONS = "toy_pope_odd.json"


@pytest.fixture
def files(tmp_path):
    """Questions and two runs, one right and one half right."""
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / QUESTIONS).write_text(text, encoding="utf-8")
    write_run(tmp_path / "right", ["Yes", "No"])
    write_run(tmp_path / "half", ["Yes", "Ja"])
    return tmp_path


def write_run(folder: Path, texts: list[str]) -> None:
    questions = BENCHMARKS["pope"].read([next(iter(folder.parents[1].rglob(QUESTIONS)))])
    scores = {questions[0].id: {"factual": (0.6, 0.3)}}
    answers = answered(questions[: len(texts)], texts, scores)
    folder.mkdir(parents=True)
    (folder / ANSWERS).write_bytes(b"".join(map(answer_line, answers.values())))
    (folder / "run.json").write_text(json.dumps({"model": f"model {folder.name}"}))


def score(files: Path, *argv: object) -> None:
    command(files, add_score_flags, score_command, argv)


def compare(files: Path, *argv: object) -> None:
    command(files, add_compare_flags, compare_command, argv)


def command(files, add_flags, act, argv) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    BENCHMARKS["pope"].add_flags(parser)
    args = parser.parse_args([*map(str, argv), "--questions", str(files / QUESTIONS)])
    args.benchmark = "pope"
    act(args)


def test_score_prints_a_table(files, capsys):
    score(files, files / "half")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("pope: 2 questions about 1 images")
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed[2:7]]
    assert [row[:2] for row in rows] == [
        ["toy/odd", "strict"],
        ["toy/odd", "official"],
        ["toy/odd", "released"],
    ]
    values = dict(zip(header, rows[0], strict=True))
    assert values["accuracy"] == "50.0 [50.0, 50.0]"
    assert [values[name] for name in ("tp", "fp", "tn", "fn", "unreadable", "failed")] == [
        *("1", "0", "0", "0", "1", "0")
    ]
    assert any(line.startswith("| more probable choice | view ") for line in printed)
    assert printed[-1] == "1 answer cannot be read (first: toy/odd/2, 'Ja')"


def test_score_writes_json_with_what_the_run_was_made_with(files):
    out = files / "score.json"
    for run in (files / "half", files / "half" / ANSWERS):
        score(files, run, "--out", out)
        written = json.loads(out.read_text())
        assert written["benchmark"] == "pope"
        assert written["runs"] == {"half": {"model": "model half"}}
        report = written["reports"]["half"]
        strict = report["scores"][0]
        assert strict["metrics"]["accuracy"] == {"value": 50, "interval": [50, 50]}
        assert strict["counts"]["unreadable"] == 1
        assert report["unreadable"] == {"toy/odd/2": "Ja"}
        assert report["bootstrap"] == {"level": 95, "resamples": 1000, "seed": 0}
        # AUC of one question is no number, which JSON does not have.
        assert report["two_way"][0]["metrics"]["AUC"] == {"value": None, "interval": None}


def test_the_same_answers_give_the_same_bytes(files):
    for name in ("one.json", "two.json"):
        score(files, files / "half", "--out", files / name)
    assert (files / "one.json").read_bytes() == (files / "two.json").read_bytes()


def test_several_runs_are_scored_one_after_the_other(files, capsys):
    score(files, files, "--out", files / "score.json")
    printed = capsys.readouterr().out
    assert printed.startswith("half\n\npope: ")
    assert "\n\nright\n\npope: " in printed
    assert list(json.loads((files / "score.json").read_text())["reports"]) == ["half", "right"]


def test_compare_prints_and_writes(files, capsys):
    out = files / "compare.json"
    compare(files, files / "half", files / "right", "--out", out)
    assert "differences to half (paired):" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["runs"] == {"half": {"model": "model half"}, "right": {"model": "model right"}}
    (only,) = written["differences"]
    assert (only["run"], only["metrics"]["accuracy"]["value"]) == ("right", 50)
    compare(files, files, "--base", "right", "--out", out)
    assert json.loads(out.read_text())["bases"] == ["right"]


def test_controls_are_compared_with_greedy_and_with_the_mask_alone(files, capsys):
    for name in CONTROLS:
        write_run(files / "controls" / name, ["Yes", "No"])
    compare(files, files / "controls", "--out", files / "compare.json")
    written = json.loads((files / "compare.json").read_text())
    assert list(written["reports"]) == list(CONTROLS)
    assert written["bases"] == ["greedy", "sample+mask"]
    printed = capsys.readouterr().out
    assert "differences to greedy (paired):" in printed
    assert "differences to sample+mask (paired):" in printed


def test_runs_are_named_by_their_folders(files):
    whole = {"half": files / "half", "right": files / "right"}
    assert named_runs([files]) == named_runs([files / "half", files / "right"]) == whole
    assert list(named_runs([files / "right" / ANSWERS])) == ["right"]
    write_run(files / "other" / "half", ["Yes", "No"])
    both = [files / "half", files / "other" / "half"]
    assert named_runs(both) == {str(path): path for path in both}
    for twice in ([files, files / "half"], [files / "half", files / "half" / ANSWERS]):
        with pytest.raises(RequestError, match="one run is given twice"):
            named_runs(twice)


def test_a_limited_run_is_scored_with_its_limit(files, capsys):
    rows = [*ROWS, {**ROWS[0], "question_id": 3, "image": "b.jpg"}]
    (files / QUESTIONS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RequestError, match=r"1 of 3 questions have no answer .*--limit"):
        score(files, files / "half")
    score(files, files / "half", "--limit", 1)
    assert "pope: 2 questions about 1 images" in capsys.readouterr().out


def test_what_is_wrong_is_said(files):
    with pytest.raises(RequestError, match="there are no answers at"):
        score(files, files / "none")
    with pytest.raises(RequestError, match="there is no folder"):
        score(files, files / "half", "--out", files / "none" / "score.json")
    with pytest.raises(FailureError, match="cannot be written"):
        score(files, files / "half", "--out", files / "right")
    with pytest.raises(RequestError, match="needs two runs or more"):
        compare(files, files / "half")


def test_a_table_is_aligned():
    table = text_table(["", "count", "long"], [["name", "1", "12.5"], ["n", "", "3"]])
    assert table.splitlines() == [
        "|      | count | long |",
        "| ---- | ----: | ---: |",
        "| name |     1 | 12.5 |",
        "| n    |       |    3 |",
    ]


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
@pytest.mark.parametrize("add_flags", [add_score_flags, add_compare_flags])
def test_no_flag_of_a_benchmark_clashes(benchmark, add_flags):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    benchmark.add_flags(parser)
    assert "--limit" in parser.format_help()
