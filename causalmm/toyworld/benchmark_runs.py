"""The toy world's benchmarks asked by the commands of this project, as a user would ask them.

Tests: tests/toyworld/test_toy_results.py.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from causalmm.errors import FailureError
from causalmm.evaluation import commands
from causalmm.evaluation.answers_file import CONTROLS
from causalmm.toyworld.commands import make_toybench

BATCH = ("--batch-size", "32")
"""For `evaluate run`; what is drawn in sampled answers depends on it."""


def make_bench(folder: Path, family: str, images: int, split: str) -> Path:
    """The folder with the benchmarks of so many scenes of a split; made where it is not there."""
    if not folder.is_dir():
        settings = ["--model-family", family, "--images", str(images), "--split", split]
        do(make_toybench.main, [folder, *settings])
    return folder


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


def compared(
    benchmark: str, runs: Sequence[Path], flags: Sequence[Any], bases: Sequence[str], out: Path
) -> dict[str, Any]:
    """What `evaluate compare` says of runs, by way of the file `out`: reports of all, differences
    of all to the first base, and of --controls to the others."""
    named = [part for base in bases for part in ("--base", base)]
    do(commands.main, [benchmark, "compare", *runs, *flags, *named, "--out", out])
    found = json.loads(out.read_text(encoding="utf-8"))
    first = found["bases"][0]
    differences = [
        each for each in found["differences"] if each["base"] == first or each["run"] in CONTROLS
    ]
    return {"bases": found["bases"], "reports": found["reports"], "differences": differences}


def do(command: Callable[[list[str]], int], argv: Sequence[Any]) -> None:
    """Run a command, its output to standard error. Raises FailureError where it fails."""
    with redirect_stdout(sys.stderr):
        code = command([str(each) for each in argv])
    if code:
        raise FailureError(f"{' '.join(map(str, argv[:2]))} ended with exit code {code}")
