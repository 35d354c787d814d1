"""A table of results says what the comparisons say, bold where both interval and Holm's p agree."""

import pytest

from causalmm.config import MODES, CausalMMConfig
from causalmm.presets.registry import PRESETS
from causalmm.toyworld import results_table
from causalmm.toyworld.results_table import CENTER_ROWS, CENTERED, COLUMNS, ROWS, Column, cell

ACCURACY = Column("pope", "toy/random", "accuracy", "POPE", tested=True)
AUC = Column("pope", "toy/random", "AUC", "AUC")
BIAS = Column("pope", "toy/random", "bias gain", "bias gain", own=True)
RECALL = Column("pope", "toy/random", "recall", "at equal length", matching="equal length")


def estimate(value, low, high):
    return {"value": value, "interval": [low, high]}


def scored(**metrics):
    return {"name": "toy/random", "metrics": metrics}


def difference(run, holm_p=1.0, base="greedy", matched=None, **metrics):
    found = scored(**metrics) | {"run": run, "base": base, "holm_p": holm_p}
    return found | {"matched": {"equal length": {"difference": matched or {}}}}


def report(views=("factual", "adjusted"), **metrics):
    two_way = [
        scored(**{"AUC": estimate(at, at, at), "bias gain": estimate(0.5, 0, 1)}) | {"view": view}
        for at, view in enumerate(views, 90)
    ]
    return {"scores": [scored(**metrics)], "two_way": two_way}


REPORTS = {
    "greedy": report(accuracy=estimate(81.25, 80, 90)),
    "sample": report(),
    "preset=vcd": report(),
    "mitigv": report(views=()),
}


def shown(column, run, *differences):
    comparison = {"reports": REPORTS, "differences": differences}
    return cell({"pope": comparison}, run, column)


def test_the_base_has_levels_and_the_others_differences():
    assert shown(ACCURACY, "greedy") == "81.2 [80.0, 90.0]"
    other = difference("sample", base="sample+mask", accuracy=estimate(7.0, 7.0, 7.0))
    found = difference("sample", accuracy=estimate(-0.04, -1.26, 1.0))
    assert shown(ACCURACY, "sample", other, found) == "+0.0 [-1.3, +1.0]"


@pytest.mark.parametrize(
    ("column", "holm_p", "text"),
    [
        (ACCURACY, 0.049, "**+2.0** [+0.1, +4.0]"),
        (ACCURACY, 0.05, "+2.0 [+0.1, +4.0]"),
        (AUC, 1.0, "**+2.0** [+0.1, +4.0]"),
    ],
)
def test_bold_is_an_interval_without_0_and_a_small_p_where_right_answers_are_counted(
    column, holm_p, text
):
    found = difference("sample", holm_p, **{column.metric: estimate(2.0, 0.05, 4.0)})
    assert shown(column, "sample", found) == text


def test_an_interval_that_is_shown_with_0_is_not_bold():
    found = difference("sample", 0.001, accuracy=estimate(2.0, 0.04, 4.0))
    assert shown(ACCURACY, "sample", found) == "+2.0 [+0.0, +4.0]"


def test_probabilities_are_read_under_the_view_that_decides():
    assert shown(AUC, "greedy") == "91.0 [91.0, 91.0]"
    assert shown(BIAS, "preset=vcd") == shown(BIAS, "greedy") == "+0.5 [+0.0, +1.0]"
    assert shown(BIAS, "mitigv") == "-"
    assert shown(AUC, "mitigv", difference("mitigv")) == "-"


def test_matched_answers_have_differences_alone():
    matched = {"recall": estimate(-1.0, -2.0, -0.5)}
    found = difference("sample", recall=estimate(9.0, 9.0, 9.0), matched=matched)
    assert shown(RECALL, "sample", found) == "**-1.0** [-2.0, -0.5]"
    assert shown(RECALL, "greedy") == "-"


def test_tables_have_the_runs_that_are_there_in_order(monkeypatch):
    for name in ("YES_OR_NO", "OTHERS", "CENTERS"):
        monkeypatch.setattr(results_table, name, (ACCURACY,))
    gain = estimate(2.0, 0.05, 4.0)
    runs = ("preset=vcd", "sample", "mitigv")
    comparison = {
        "reports": {name: REPORTS[name] for name in (*runs, "greedy")},
        "differences": [difference(run, 0.01, accuracy=gain) for run in runs],
    }
    centered = {
        "reports": {"greedy": REPORTS["greedy"], "half, centered": report()},
        "differences": [difference("half, centered", accuracy=gain)],
    }
    record = {
        "comparisons": {"pope": comparison},
        "centers": {"pope": centered},
        "times": {"greedy": {"value": 1.0}, "sample": {"value": 1.26}},
    }
    first, second, third = (table.splitlines() for table in results_table.tables(record))
    assert first == [
        "|  | POPE |",
        "| --- | --- |",
        "| greedy | 81.2 [80.0, 90.0] |",
        "| sampled | **+2.0** [+0.1, +4.0] |",
        "| VCD (`vcd`) | **+2.0** [+0.1, +4.0] |",
        "| VCD by mitigv | **+2.0** [+0.1, +4.0] |",
    ]
    assert [line.split(" | ")[-1] for line in second] == [
        *("time a token |", "--- |", "1.0x |", "1.3x |", "- |", "- |")
    ]
    assert third[2:] == [
        "| greedy | 81.2 [80.0, 90.0] |",
        "| the same, centered | +2.0 [+0.1, +4.0] |",
    ]


def test_every_mode_and_preset_has_one_row():
    assert {f"mode={mode}" for mode in MODES} <= set(ROWS)
    for name in PRESETS:
        if mode := results_table.SAME_AS_A_MODE.get(name):
            assert CausalMMConfig.preset(name) == CausalMMConfig(mode=mode)
            assert f"preset={name}" not in ROWS
            assert f"(`{name}`)" in ROWS[f"mode={mode}"]
        else:
            assert f"(`{name}`)" in ROWS[f"preset={name}"]
    assert len({column.heading for column in COLUMNS}) == len(COLUMNS)
    named = {"greedy", *CENTERED, *(run for run, _ in CENTERED.values())}
    assert named == set(CENTER_ROWS)
