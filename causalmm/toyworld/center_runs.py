"""What a center does to CausalMM's contrast on yes-or-no questions about the toy world.

The center of each configuration is estimated on the same kind of questions about development
scenes, without their labels. Tests: tests/toyworld/test_toy_results.py.
"""

from pathlib import Path
from typing import Any

from causalmm.evaluation import commands
from causalmm.evaluation.diagnosis import command as diagnose
from causalmm.toyworld.benchmark_runs import BATCH, compared, do, questions
from causalmm.toyworld.results_table import BASE, CENTERED

ASKED = ("pope", "prior")
"""Of `questions`."""


def compare_centers(
    model: str, bench: Path, development: Path, answers: Path
) -> dict[str, dict[str, Any]]:
    """By the name of the questions, the comparison of each configuration of CENTERED, plain and
    centered, with greedy decoding.

    `bench` and `development` are folders of benchmarks; `answers` holds the greedy runs and takes
    the others, in its folder "centers". Raises FailureError where a command fails.
    """
    folder = answers / "centers"
    comparisons = {}
    for name in ASKED:
        benchmark, flags = questions(bench)[name]
        runs = [answers / name / BASE]
        for raw, (centered, settings) in CENTERED.items():
            asked = ["--model", model, *BATCH, "--preset", "causalmm", *settings]
            file = folder / f"{name},{raw}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                _, calibration = questions(development)[name]
                do(diagnose.main, ["--center", file, *calibration, *asked])
            for run, more in ((raw, []), (centered, ["--center", file])):
                out = folder / name / run
                do(commands.main, [benchmark, "run", *flags, *asked, *more, "--out", out])
                runs.append(out)
        comparisons[name] = compared(
            benchmark, runs, flags, [BASE], folder / f"{name},comparison.json"
        )
    return comparisons
