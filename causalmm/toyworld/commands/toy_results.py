"""The results tables: every way of answering, on the benchmarks of the toy world, for one model.

    python scripts/toy_results.py demo-llava [--images 100] [--runs runs/toy]

Makes the benchmarks of held-out scenes, asks them by all controls, by every mode of CausalMM under
the default settings and by every preset that the model can run, where the package `mitigv` is there
and knows the model by its VCD too (benchmarks/vcd_answers.py), and by CausalMM with centers from
development scenes, and compares. Goes on after an interruption. The numbers go to
docs/toy-results-MODEL.json, the tables to standard output.
Tests: tests/toyworld/test_toy_results.py.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from causalmm.cli.request import SAMPLING_OFF
from causalmm.cli.terminal import exit_code
from causalmm.config import MODES, CausalMMConfig
from causalmm.evaluation import commands
from causalmm.evaluation.answers_file import CONTROLS, find_runs
from causalmm.evaluation.run_record import read_record
from causalmm.families.loading import Loaded, check_preset, load
from causalmm.families.registry import demos, families
from causalmm.presets.registry import PRESETS
from causalmm.toyworld import CHECKPOINTS
from causalmm.toyworld.benchmark_runs import BATCH, compared, do, make_bench, questions
from causalmm.toyworld.benchmarks import SPLITS
from causalmm.toyworld.center_runs import compare_centers
from causalmm.toyworld.results_table import BASE, SAME_AS_A_MODE, tables
from causalmm.toyworld.token_times import Way, relative_times

ROOT = Path(__file__).resolve().parents[3]
VCD_FAMILIES = ("llava",)
"""What `mitigv` can run."""
MITIGV = "mitigv"
"""The run of its VCD."""
BASES = CONTROLS[:3]
_STANDARD_ERROR = 2


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
    print("\n\n".join(tables(record)))


def measure(model: str, images: int, runs: Path) -> dict[str, Any]:
    """All comparisons of a model, and times. Raises FailureError where a command fails."""
    [family] = [name for name, each in families().items() if each.demo == model]
    loaded = load(str(CHECKPOINTS / model), device="cpu")
    runs.mkdir(parents=True, exist_ok=True)
    bench, development = (
        make_bench(runs / f"{split}-{family}-{images}", family, images, split) for split in SPLITS
    )
    # The default settings, whatever the checkpoint's own are; a preset takes their place.
    defaults, grid = runs / "defaults.json", runs / f"grid-{family}.yaml"
    defaults.write_text(json.dumps(CausalMMConfig().to_dict()), encoding="utf-8")
    grid.write_text(json.dumps(ways(loaded.model)), encoding="utf-8")  # JSON is YAML
    answers = runs / f"{family}-{images}"
    comparisons = {}
    for name, (benchmark, flags) in questions(bench).items():
        out = answers / name
        asked = [benchmark, "run", *flags, "--model", model, *BATCH, "--out", out]
        do(commands.main, [*asked, "--controls"])
        do(commands.main, [*asked, "--grid", grid, "--config", defaults])
        if family in VCD_FAMILIES and find_spec("mitigv"):
            do(_vcd_answers, [benchmark, *flags, "--model", model, "--out", out / MITIGV])
        comparisons[name] = compared(benchmark, [out], flags, BASES, out / "comparison.json")
    return {
        "command": f"python scripts/toy_results.py {model} --images {images}",
        "comparisons": comparisons,
        "centers": compare_centers(model, bench, development, answers),
        "times": _times(loaded, family, answers / next(iter(comparisons))),
    }


def ways(model: Any) -> list[dict[str, Any]]:
    """A grid: the modes, language mode in the later half of the layers, and those presets that this
    model can run and that are none of the modes."""
    presets = [name for name in PRESETS if name not in SAME_AS_A_MODE and _can_run(model, name)]
    return [
        {"mode": list(MODES)},
        {"mode": "language", "language_layers": "half:"},
        {"preset": presets},
    ]


def _can_run(model: Any, preset: str) -> bool:
    try:
        check_preset(preset, model)
    except ValueError:
        return False
    return True


def _times(loaded: Loaded, family: str, answers: Path) -> dict[str, Any]:
    """Of every run in a folder but that of another package."""
    ways = {}
    for name, folder in find_runs(answers).items():
        if name != MITIGV:
            record = read_record(folder)
            settings, said = record["causalmm"], record["generation"]
            config = None if settings is None else CausalMMConfig.from_dict(settings)
            keys = ("do_sample", *SAMPLING_OFF)
            ways[name] = Way(config, {key: said[key] for key in keys if key in said})
    return relative_times(*loaded, family, ways, base=BASE)


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
