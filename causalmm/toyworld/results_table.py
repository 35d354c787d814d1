"""The tables of docs/results.md: greedy decoding's numbers, and what every other run adds to them.

A record is what causalmm/toyworld/commands/toy_results.py writes: {"comparisons": {name: result of
`evaluate compare`}, "centers": the same of runs with and without a center, "times": {run: relative
time of a token}}.
Tests: tests/toyworld/test_results_table.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from causalmm.config import MODES, CausalMMConfig
from causalmm.evaluation.answers_file import CONTROLS
from causalmm.evaluation.statistics import Estimate
from causalmm.evaluation.two_way import DECIDING
from causalmm.presets.registry import PRESETS

BASE = CONTROLS[0]
LEVEL = 0.05
"""Of Holm's p below which a difference of right answers counts."""
SAME_AS_A_MODE = {
    preset: mode
    for preset in PRESETS
    for mode in MODES
    if CausalMMConfig.preset(preset) == CausalMMConfig(mode=mode)
}
"""Presets that are a mode under the default settings: one row for both."""
HALF = "mode=language,language_layers=half:"
"""The language mode in the layers that were its default before."""
ROWS = {
    "greedy": "greedy",
    "sample": "sampled",
    "sample+mask": "sampled, mask alone",
    "causalmm": "CausalMM, the model's own settings",
    "causalmm+sample": "CausalMM, the model's own settings, sampled",
    **{f"mode={mode}": f"CausalMM {mode}" for mode in MODES},
    **{f"mode={mode}": f"CausalMM {mode} (`{name}`)" for name, mode in SAME_AS_A_MODE.items()},
    HALF: "CausalMM language, layers `half:`",
    **{
        f"preset={name}": f"{preset.title} (`{name}`)"
        for name, preset in PRESETS.items()
        if name not in SAME_AS_A_MODE
    },
    "mitigv": "VCD by mitigv",
}
"""By the name of the run."""


CENTERED: dict[str, tuple[str, tuple[str, ...]]] = {
    "default layers": ("default layers, centered", ()),
    "half": ("half, centered", ("--language-layers", "half:")),
}
"""By the name of a run of the preset causalmm: that of the run with a center, and the flags of
both."""
CENTER_ROWS = {
    "greedy": "greedy",
    "default layers": "CausalMM multimodal (`causalmm`)",
    "default layers, centered": "the same, centered",
    "half": "CausalMM multimodal, layers `half:`",
    "half, centered": "the same, centered",
}


class Column(NamedTuple):
    """One number of a comparison: its level for the base, the difference to it for other runs."""

    comparison: str
    questions: str
    """Name of the set of questions."""
    metric: str
    heading: str
    matching: str = ""
    """On answers made comparable by this name; differences alone."""
    tested: bool = False
    """Whether Holm's p is about this number: it counts right answers."""
    own: bool = False
    """A level for every run."""


YES_OR_NO = (
    Column("pope", "toy/random", "accuracy", "POPE random", tested=True),
    Column("pope", "toy/adversarial", "accuracy", "POPE adversarial", tested=True),
    Column("pope", "toy/adversarial", "AUC", "its AUC"),
    Column("pope", "toy/adversarial", "bias gain", "its bias gain", own=True),
    Column("pope", "all", "yes ratio", "POPE yes ratio"),
    Column("prior", "toy/odd", "accuracy", "odd colours", tested=True),
    Column("prior", "toy/odd", "AUC", "their AUC"),
)
OTHERS = (
    Column("mme", "total", "score", "MME (of 800)", tested=True),
    Column("vlind", "all", "S_LP", "VLind S_LP"),
    Column("chair", "all", "CHAIR_i", "CHAIR_i, less is better"),
    Column("chair", "all", "CHAIR_i", "at equal recall", matching="equal recall"),
    Column("chair", "all", "CHAIR_i", "at equal length", matching="equal length"),
    Column("chair", "all", "recall", "recall"),
)
COLUMNS = (*YES_OR_NO, *OTHERS)
CENTERS = (
    Column("pope", "all", "accuracy", "POPE", tested=True),
    Column("pope", "all", "yes ratio", "yes ratio"),
    Column("pope", "all", "AUC", "AUC"),
    Column("prior", "toy/odd", "accuracy", "odd colours", tested=True),
    Column("prior", "toy/odd", "yes ratio", "yes ratio"),
    Column("prior", "toy/odd", "AUC", "AUC"),
)
TIME = "time a token"


def tables(record: Mapping[str, Any]) -> list[str]:
    """In Markdown: yes-or-no questions, the other benchmarks and times, centers."""
    comparisons, times = record["comparisons"], record["times"]
    seconds = {run: f"{each['value']:.1f}x" for run, each in times.items()}
    return [
        _table(comparisons, ROWS, YES_OR_NO),
        _table(comparisons, ROWS, OTHERS, {TIME: seconds}),
        _table(record["centers"], CENTER_ROWS, CENTERS),
    ]


def _table(
    comparisons: Mapping[str, Any],
    rows: Mapping[str, str],
    columns: Sequence[Column],
    others: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Rows of the runs that are there; `others` are further columns, cells by run."""
    others = others or {}
    headings = ["", *(column.heading for column in columns), *others]
    cells = [headings, ["---"] * len(headings)]
    for run in (name for name in rows if name in comparisons[columns[0].comparison]["reports"]):
        numbers = [cell(comparisons, run, column) for column in columns]
        cells.append([rows[run], *numbers, *(each.get(run, "-") for each in others.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def cell(comparisons: Mapping[str, Any], run: str, column: Column) -> str:
    """A run's number and interval; "-" where there is none.

    A difference is bold where its interval leaves out 0 and, if the column is tested, Holm's p is
    below LEVEL.
    """
    comparison = comparisons[column.comparison]
    level = run == BASE or column.own
    if column.matching and level:
        return "-"
    found = _level(comparison, run, column) if level else _difference(comparison, run, column)
    if found is None:
        return "-"
    estimate, p = found
    sign = "" if level and not column.own else "+"
    value, interval = estimate.text(sign).split(maxsplit=1)
    bold = not level and not estimate.low <= 0 <= estimate.high
    bold = bold and not (column.tested and p >= LEVEL)
    return f"{f'**{value}**' if bold else value} {interval}"


def _level(comparison: Mapping[str, Any], run: str, column: Column) -> Any:
    report = comparison["reports"][run]
    rows = [row for row in report["scores"] if row["name"] == column.questions]
    # What probabilities say, under the view that the run decides by.
    rows += [
        row
        for view in DECIDING
        for row in report["two_way"]
        if (row["name"], row["view"]) == (column.questions, view)
    ]
    found = [row["metrics"][column.metric] for row in rows if column.metric in row["metrics"]]
    return (_estimate(found[0]), 1.0) if found else None


def _difference(comparison: Mapping[str, Any], run: str, column: Column) -> Any:
    wanted = (run, BASE, column.questions)
    [row] = [
        each
        for each in comparison["differences"]
        if (each["run"], each["base"], each["name"]) == wanted
    ]
    metrics = row["metrics"]
    if column.matching:
        metrics = row["matched"][column.matching]["difference"]
    found = metrics.get(column.metric)
    return found and (_estimate(found), row["holm_p"])


def _estimate(found: Mapping[str, Any]) -> Estimate:
    # As shown, so that a bold number's interval is seen to leave out 0.
    return Estimate(*(round(each, 1) for each in (found["value"], *found["interval"])))
