"""A setting is declared once: a field that is added to the configuration appears everywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADDED = """
import json, sys
from dataclasses import dataclass, fields
import causalmm.config as config
from causalmm.config import CausalMMConfig, choice, number

@dataclass(frozen=True, kw_only=True)
class Extended(CausalMMConfig):
    tilt: float = number(0.5, "how far", least=0, most=2, metavar="T")
    shade: str = choice("dark", ("dark", "light"), "which one")

config.CausalMMConfig = Extended  # before anything else asks for it
from causalmm.cli.flags import parse_args
from causalmm.cli.generate import main
from causalmm.cli.request import find_model
from causalmm.evaluation.variants import grid
from causalmm.lmms_eval.arguments import find_request, read_arguments
import mkdocs_hooks

asked = ["--image", "i", "--prompt", "p"]
args = parse_args([*asked, "--tilt", "1.5"])
request = find_model(args)
lmms = find_request(read_arguments({"pretrained": "demo-llava", "shade": "light"}), "llava")
with open(sys.argv[1], "w") as file:
    file.write("tilt: [0, 1]")
print(json.dumps({
    "flag": request.config.to_dict(),
    "lmms": lmms.config.to_dict(),
    "grid": [(name, each.config.tilt) for name, each in grid(request, sys.argv[1]).items()],
    "table": mkdocs_hooks.settings_table(),
}))
assert main([*asked, "--tilt", "3"]) == 2
assert main([*asked, "--shade", "grey"]) == 2
main(["--help"])
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """What a process with two more settings says, and what it complains about."""
    file = tmp_path_factory.mktemp("settings") / "grid.yaml"
    return subprocess.run(
        [sys.executable, "-c", ADDED, file], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_new_setting_is_a_flag_a_model_argument_a_grid_axis_and_a_row(extended):
    assert extended.returncode == 0, extended.stderr
    result, _, shown = extended.stdout.partition("\n")
    found = json.loads(result)
    assert (found["flag"]["tilt"], found["flag"]["shade"]) == (1.5, "dark")
    assert (found["lmms"]["tilt"], found["lmms"]["shade"]) == (0.5, "light")
    assert found["grid"] == [["tilt=0", 0], ["tilt=1", 1]]
    rows = found["table"].splitlines()[-2:]
    assert rows[0] == "| `tilt` | `--tilt` | `0.5` |  | how far: a number from 0 to 2 |"
    assert rows[1] == "| `shade` | `--shade` | `dark` | `dark`, `light` | which one |"
    said = " ".join(shown.split())
    assert "--tilt T how far: a number from 0 to 2 (default: 0.5)" in said
    assert "--shade {dark,light} which one (default: dark)" in said


def test_a_new_setting_is_checked(extended):
    number, choice = extended.stderr.splitlines()
    assert number == "error: tilt=3.0: expected a number from 0 to 2"
    assert choice.startswith("error: argument --shade: invalid choice: 'grey' (choose from ")
