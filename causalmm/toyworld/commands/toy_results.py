"""The results table: every way of answering, on the benchmarks of the toy world, for one model.

    python scripts/toy_results.py demo-llava [--images 100] [--runs runs/toy]

Makes the benchmarks of held-out scenes, asks them by all controls and by every mode of CausalMM,
where the package `mitigv` is there and knows the model by its VCD too (benchmarks/vcd_answers.py),
and compares. Goes on after an interruption. The numbers go to docs/toy-results-MODEL.json, the
table to standard output. Tests: tests/toyworld/test_toy_results.py.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from causalmm.cli.terminal import exit_code
from causalmm.config import MODES
from causalmm.errors import FailureError
from causalmm.evaluation import commands
from causalmm.evaluation.answers_file import CONTROLS
from causalmm.evaluation.statistics import Estimate
from causalmm.families.registry import demos, families
from causalmm.toyworld.commands import make_toybench

ROOT = Path(__file__).resolve().parents[3]
# What the modes have in common, whatever the checkpoint's own configuration says.
SAME = ("--vision-method", "random", "--vision-layers", "all", "--language-method", "random",
        "--language-layers", "half:", "--gamma", "1", "--epsilon", "0.1")  # fmt: skip
VCD_FAMILIES = ("llava",)
"""What `mitigv` can run."""
BASES = CONTROLS[:3]
_STANDARD_ERROR = 2
NAMES = {
    "greedy": "greedy",
    "sample": "sampled",
    "sample+mask": "sampled, mask alone",
    "causalmm": "CausalMM, its own settings",
    "causalmm+sample": "CausalMM, its own settings, sampled",
    **{f"mode={mode}": f"CausalMM {mode}" for mode in MODES},
    "vcd": "VCD (mitigv)",
}


class Column(NamedTuple):
    """One number of a comparison."""

    run: str
    name: str
    """Of the questions."""
    metric: str
    heading: str


COLUMNS = (
    Column("pope", "toy/random", "accuracy", "POPE random"),
    Column("pope", "toy/adversarial", "accuracy", "POPE adversarial"),
    Column("pope", "all", "yes ratio", "yes ratio"),
    Column("prior", "toy/odd", "accuracy", "odd colours"),
    Column("mme", "total", "score", "MME (of 800)"),
    Column("vlind", "all", "S_LP", "VLind S_LP"),
    Column("chair", "all", "CHAIR_i", "CHAIR_i, less is better"),
    Column("chair", "all", "recall", "recall"),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return exit_code(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=demos())
    parser.add_argument("--images", type=int, default=100, help="scenes a set (default: 100)")
    parser.add_argument("--runs", type=Path, default=Path("runs/toy"), help="folder of the answers")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the numbers")
    args = parser.parse_args(argv)
    record = _rounded(measure(args.model, args.images, args.runs))
    args.out.mkdir(exist_ok=True)
    text = json.dumps(record, separators=(",", ":")) + "\n"
    (args.out / f"toy-results-{args.model}.json").write_text(text, encoding="utf-8")
    print(table(record["comparisons"]))


def measure(model: str, images: int, runs: Path) -> dict[str, Any]:
    """All comparisons of a model. Raises FailureError where one of the commands fails."""
    [family] = [name for name, each in families().items() if each.demo == model]
    runs.mkdir(parents=True, exist_ok=True)
    bench = runs / f"bench-{family}-{images}"
    if not bench.is_dir():
        settings = ["--model-family", family, "--images", str(images)]
        _do(make_toybench.main, [bench, *settings])
    grid = runs / "modes.yaml"
    grid.write_text(f"mode: [{', '.join(MODES)}]\n", encoding="utf-8")
    comparisons = {}
    for name, (benchmark, flags) in questions(bench).items():
        out = runs / f"{family}-{images}" / name
        asked = [benchmark, "run", *flags, "--model", model, "--out", out]
        _do(commands.main, [*asked, "--controls"])
        _do(commands.main, [*asked, "--grid", grid, *SAME])
        if family in VCD_FAMILIES and find_spec("mitigv"):
            vcd = [benchmark, *flags, "--model", model, "--out", out / "vcd"]
            _do(_vcd_answers, vcd)
        found = out / "comparison.json"
        bases = [part for base in BASES for part in ("--base", base)]
        _do(commands.main, [benchmark, "compare", out, *flags, *bases, "--out", found])
        compared = json.loads(found.read_text(encoding="utf-8"))
        comparisons[name] = {part: compared[part] for part in ("bases", "reports", "differences")}
    return {
        "command": f"python scripts/toy_results.py {model} --images {images}",
        "modes": " ".join(SAME),
        "comparisons": comparisons,
    }


def questions(bench: Path) -> dict[str, tuple[str, list[Any]]]:
    """By the name of a run: the benchmark, and the flags that say which questions."""
    pope = [bench / f"pope/toy_pope_{split}.json" for split in ("random", "popular", "adversarial")]
    prior = [bench / f"prior/toy_pope_{split}.json" for split in ("canonical", "odd")]
    chair = bench / "chair"
    yes_or_no = ["--suffix", " Please answer yes or no."]
    return {
        "pope": ("pope", ["--questions", *pope, "--images", bench / "pope/images"]),
        "prior": ("pope", ["--questions", *prior, "--images", bench / "prior/images", *yes_or_no]),
        "mme": ("mme", ["--data", bench / "mme"]),
        "vlind": ("vlind", ["--data", bench / "vlind"]),
        "chair": (
            "chair",
            ["--annotations", chair / "annotations.json", "--vocabulary",
             chair / "vocabulary.json", "--images", chair / "images"],
        ),
    }  # fmt: skip


def table(comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """Greedy decoding's numbers, and what every other way adds to them, in Markdown."""
    rows = [["", *(column.heading for column in COLUMNS)], ["---"] * (len(COLUMNS) + 1)]
    runs = comparisons[COLUMNS[0].run]["reports"]
    for run in [name for name in NAMES if name in runs]:
        cells = [_cell(comparisons[column.run], run, column) for column in COLUMNS]
        rows.append([NAMES[run], *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(comparison: Mapping[str, Any], run: str, column: Column) -> str:
    if run == BASES[0]:
        scores = comparison["reports"][run]["scores"]
    else:
        scores = [each for each in comparison["differences"] if each["base"] == BASES[0]]
        scores = [each for each in scores if each["run"] == run]
    [found] = [each["metrics"][column.metric] for each in scores if each["name"] == column.name]
    if found["value"] is None:
        return "-"
    sign = "" if run == BASES[0] else "+"
    shown = Estimate(*(round(each, 1) for each in (found["value"], *found["interval"])))
    value, interval = shown.text(sign).split(maxsplit=1)
    # What an interval without 0 says is worth seeing.
    return f"{value if not sign or shown.low <= 0 <= shown.high else f'**{value}**'} {interval}"


def _rounded(value: Any) -> Any:
    """Numbers to a thousandth of a point: resampling is not exact beyond that."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _vcd_answers(argv: Sequence[str]) -> int:
    """The exit code of benchmarks/vcd_answers.py, which belongs to no package."""
    command = [sys.executable, ROOT / "benchmarks/vcd_answers.py", *argv]
    return subprocess.run(command, stdout=_STANDARD_ERROR).returncode


def _do(command: Any, argv: Sequence[Any]) -> None:
    with redirect_stdout(sys.stderr):
        code = command([str(each) for each in argv])
    if code:
        raise FailureError(f"{' '.join(map(str, argv[:2]))} ended with exit code {code}")
