"""`score` and `compare` read runs from their folders, print tables and write JSON."""

import argparse
import json
from dataclasses import replace
from functools import wraps
from pathlib import Path

import pytest
from answered import answered

from causalmm.cli.flags import flag_name
from causalmm.errors import FailureError, RequestError
from causalmm.evaluation.answers_file import ANSWERS, CONTROLS, answer_line
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.commands import parse_args
from causalmm.evaluation.question_flags import add_question_flags, read_questions, to_record
from causalmm.evaluation.report import text_table
from causalmm.evaluation.scoring import named_runs

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
    act("score", *argv, "--questions", files / QUESTIONS)


def compare(files: Path, *argv: object) -> None:
    act("compare", *argv, "--questions", files / QUESTIONS)


def act(*argv: object) -> None:
    args = parse_args(["pope", *map(str, argv)])
    args.act(args)


def keep_flags(run: Path, **flags: object) -> None:
    """As `run` writes them."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"question_flags": flags}))


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


@pytest.fixture
def limited(files):
    """Questions about two images and a run over the first."""
    rows = [*ROWS, {**ROWS[0], "question_id": 3, "image": "b.jpg"}]
    (files / QUESTIONS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for run in ("half", "right"):
        keep_flags(files / run, questions=[str(files / QUESTIONS)], limit=1)
    return files


def test_a_run_says_which_questions_it_was_asked(limited, capsys, monkeypatch):
    monkeypatch.chdir("/")
    act("score", limited / "half")
    assert "pope: 2 questions about 1 images" in capsys.readouterr().out
    act("score", limited)
    assert capsys.readouterr().out.count("pope: 2 questions about 1 images") == 2
    act("compare", limited / "half", limited / "right")
    assert "pope: 2 questions about 1 images" in capsys.readouterr().out
    score(limited, limited / "half", "--limit", 1)


def test_another_limit_than_that_of_the_run_is_refused(limited):
    for action, runs in (("score", ["half"]), ("compare", ["half", "right"])):
        with pytest.raises(RequestError, match=r"--limit 2: the run was made with --limit 1$"):
            act(action, *(limited / run for run in runs), "--limit", 2)
    keep_flags(limited / "half", questions=[str(limited / QUESTIONS)])
    with pytest.raises(RequestError, match=r"--limit 1: the run was made with no --limit$"):
        act("score", limited / "half", "--limit", 1)
    with pytest.raises(RequestError, match="'0' is not an integer >= 1"):
        act("score", limited / "half", "--limit", 0)


def test_each_run_is_scored_with_its_own_flags(limited, capsys):
    write_run(limited / "runs" / "whole", ["Yes", "No", "Yes"])
    keep_flags(limited / "runs" / "whole", questions=[str(limited / QUESTIONS)])
    act("score", limited / "half", limited / "runs" / "whole")
    printed = capsys.readouterr().out
    assert printed.index("pope: 2 questions") < printed.index("pope: 3 questions about 2 images")
    with pytest.raises(RequestError, match="half lacks 1 of the questions of whole"):
        act("compare", limited / "half", limited / "runs" / "whole")


def test_a_flag_goes_before_that_of_the_run(limited):
    moved = limited / "moved_pope_odd.json"
    keep_flags(limited / "half", questions=[str(limited / QUESTIONS)], limit=1, suffix="")
    with pytest.raises(RequestError, match="is about another prompt"):
        act("score", limited / "half")
    act("score", limited / "half", "--suffix", " Please answer this question with one word.")
    (limited / QUESTIONS).rename(moved)
    with pytest.raises(RequestError, match="toy_pope_odd.json cannot be read"):
        act("score", limited / "right")
    keep_flags(limited / "right", questions=["gone"], dataset="toy", split="odd", limit=1)
    moved.rename(limited / "moved")
    act("score", limited / "right", "--questions", limited / "moved")


def test_a_run_that_says_nothing_needs_the_flags(files):
    for record in ({}, {"question_flags": "x"}):
        (files / "half" / "run.json").write_text(json.dumps(record))
        with pytest.raises(RequestError, match="arguments are required: --questions"):
            act("score", files / "half")
        score(files, files / "half")


def every_flag(benchmark):
    """With values of every kind that it takes."""
    for name, options in benchmark.flags.items():
        first, *_, last = list(options.get("choices", ["-what %s?", "b.json"]))
        if "nargs" in options:
            yield from (flag_name(name), first.removeprefix("-"), last)
        else:
            yield f"{flag_name(name)}={first}"


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_every_flag_is_read_as_it_was_given(benchmark, tmp_path, monkeypatch):
    """By way of run.json."""
    monkeypatch.chdir(tmp_path)
    seen = []

    @wraps(benchmark.read)
    def read(**given):
        seen.append(given)
        return []

    spy = replace(benchmark, read=read)
    parser = argparse.ArgumentParser()
    add_question_flags(parser, spy, "")
    args = parser.parse_args([*every_flag(benchmark), "--limit=7"])
    read_questions(spy, json.loads(json.dumps(to_record(args, spy))), {})
    [found] = seen
    assert found.keys() | {"limit"} == vars(args).keys()
    for name in found:
        value = getattr(args, name)
        if isinstance(value, Path):
            value = tmp_path / value
        if name == "questions":
            value = [tmp_path / each for each in value]
        assert found[name] == value
    # None is at its default.
    assert None not in found.values()


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


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("action", ["run", "score", "compare", "export"])
def test_no_flag_of_a_benchmark_clashes(benchmark, action, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args([benchmark, action, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--limit" in printed
    assert "%(default)s" not in printed
