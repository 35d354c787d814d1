"""A recipe's report: means, differences and tests by hand, beside what was published."""

import numpy as np
import pytest
from answered import answered
from test_recipe import CELL, changed

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.records import Question
from causalmm.evaluation.scoring import AnsweredRun
from causalmm.evaluation.statistics import holm, mcnemar
from causalmm.reproduce.figure import forest
from causalmm.reproduce.report import make_table

POPE = BENCHMARKS["pope"]
ROWS = {"greedy": {"mode": "plain"}, "ours": {}, "other": {}}


def ask(images):
    """A question an image, by turns answered yes and no."""
    return [
        Question(
            id=f"a/b/{number}",
            image=f"{number:02}.jpg",
            path="",
            prompt="Is it?",
            choices=("yes", "no"),
            label=("yes", "no")[number % 2],
            facts={"set": "a/b"},
        )
        for number in range(images)
    ]


def runs(questions, texts):
    """By name; a text of y and n is an answer each."""
    spelled = {"y": "yes", "n": "no", "?": "perhaps"}
    return {
        name: AnsweredRun(questions, answered(questions, [spelled[each] for each in said]), None)
        for name, said in texts.items()
    }


def table(texts, **changes):
    questions = ask(len(next(iter(texts.values()))))
    recipe = changed(rows=ROWS, **changes)
    return make_table(recipe, POPE.tally, runs(questions, texts))


def cell(report, row, metric="accuracy", rule="strict"):
    [found] = [
        each
        for each in report.cells
        if (each.row, each.metric, each.rule) == (row, metric, rule)
    ]  # fmt: skip
    return found


# By turns yes and no is right.
SAID = {
    "greedy": "ynynynyy",  # 7 of 8
    "ours,seed=1": "yyyyyyyy",  # 4
    "ours,seed=2": "ynynynyn",  # 8
    "other": "nynynyny",  # 0
}


def test_by_hand():
    report = table(SAID, published=[CELL | {"metric": "accuracy", "value": 83.7}])
    ours = cell(report, "ours")
    assert (ours.ours.value, ours.seeds) == (75.0, 2)
    assert ours.spread == pytest.approx(np.std([50, 100], ddof=1))
    assert ours.published.value == 83.7
    assert ours.differences["greedy"].value == pytest.approx(75 - 87.5)
    assert cell(report, "greedy").differences == {}
    assert np.isnan(cell(report, "greedy").spread)
    first = {each.row: each for each in report.tests}
    assert (first["ours"].only_row_right, first["ours"].only_base_right) == (0, 3)
    assert (first["other"].only_row_right, first["other"].only_base_right) == (0 + 0, 7)
    p = [mcnemar(0, 3), mcnemar(0, 7)]
    assert [first[row].mcnemar_p for row in ("ours", "other")] == p
    assert [first[row].holm_p for row in ("ours", "other")] == holm(p)


def test_a_base_of_several_seeds_is_paired_with_a_run_of_none():
    report = table(SAID, base=["greedy", "ours"])
    assert cell(report, "greedy").differences["ours"].value == pytest.approx(87.5 - 75)
    assert cell(report, "other").differences["ours"].value == pytest.approx(-75)


def test_every_rule_of_the_recipe():
    texts = {name: said.replace("n", "?", 1) for name, said in SAID.items()}
    report = table(texts, rules=["official", "strict"])
    assert list(dict.fromkeys(each.rule for each in report.cells)) == ["official", "strict"]
    # What cannot be read is a yes by the official rule, and wrong by ours.
    assert cell(report, "other", rule="official").ours.value == 12.5
    assert cell(report, "other", rule="strict").ours.value == 0
    with pytest.raises(RequestError, match="rules: 'mine': expected one of strict, official"):
        table(SAID, rules=["mine"])


def test_rows_that_are_not_there_or_not_finished():
    questions = ask(8)
    given = runs(questions, SAID)
    del given["other"]
    half = dict(list(given["ours,seed=1"].answers.items())[:3])
    given["ours,seed=1"] = given["ours,seed=1"]._replace(answers=half)
    report = make_table(changed(rows=ROWS), POPE.tally, given)
    assert report.missing == ("other",)
    assert cell(report, "ours").seeds == 1
    with pytest.raises(RequestError, match="recipe table: no row is finished: run it first"):
        make_table(changed(rows=ROWS), POPE.tally, {})


def test_the_text_says_what_is_known_and_what_is_not():
    report = table(
        SAID,
        metrics=["accuracy"],
        others=["OPERA"],
        published=[
            CELL | {"metric": "accuracy", "value": 83.7, "trust": "S"},
            CELL | {"row": "OPERA", "value": 81.87},
            CELL | {"row": "other", "metric": "accuracy", "value": None},
        ],
        unpublished=["the seeds"],
        notes=["a remark"],
    )
    text = report.text()
    assert "83.7 (S)" in text
    assert "| not known " in text
    assert "published, not run here:" in text
    assert "81.87 (P)" in text
    assert "S: second hand, to be checked against the paper before it is quoted" in text
    assert "not published, and this table depends on it:\n- the seeds" in text
    assert text.endswith("notes:\n- a remark")
    assert " F1 " not in text.split("published, not run here")[0]


def test_the_forest_plot_has_a_line_for_each_row():
    report = table(SAID, rules=["strict", "official"])
    figure = forest(report, "greedy", "accuracy")
    [axes] = figure.axes
    values = {line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"}
    assert values == {75 - 87.5, -87.5}
    texts = [text.get_text() for text in figure.texts]
    assert {"ours", "other", "a/b, strict"} <= set(texts)
