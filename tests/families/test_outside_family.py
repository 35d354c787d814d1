"""docs/add-a-family.md followed to the letter, in a folder outside of the repository."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
NAME = re.compile(r"`(llava_copy_[\w/]+\.py)`")
CODE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
ENTRY_POINTS = re.compile(r"^```toml\n(.*?)^```$", re.M | re.S)
SHELL = re.compile(r"^```bash\n(.*?)^```$", re.M | re.S)
SAVE = """
import sys
from pathlib import Path
from llava_copy_row import ROW
from tiny_checkpoints import save_checkpoint
save_checkpoint(ROW, Path(sys.argv[1]))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs/add-a-family.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(page, tmp_path_factory):
    """A command with the package of the page on its path; its output, or what went wrong."""
    folder = tmp_path_factory.mktemp("outside")
    copying, _ = SHELL.findall(page)
    script = copying.replace("CAUSALMM", str(ROOT))
    subprocess.run(["sh", "-ec", script], cwd=folder, check=True)
    # A block is the file that was named last before it.
    files = {NAME.findall(page[: each.start()])[-1]: each[1] for each in CODE.finditer(page)}
    assert len(files) == 7
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    # What an installer makes of the package's pyproject.toml.
    [declared] = ENTRY_POINTS.findall(page)
    [(group, points)] = tomllib.loads(declared)["project"]["entry-points"].items()
    metadata = folder / "llava_copy_causalmm-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: llava_copy_causalmm\nVersion: 1\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    path = os.pathsep.join(map(str, (folder, ROOT, TESTS)))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]

    def run(*command, code=0, cwd=ROOT):
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


@pytest.fixture(scope="module")
def checkpoint(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava_copy")
    run("-c", SAVE, folder)
    return folder


def test_it_passes_the_contract(run, page):
    _, command = SHELL.findall(page)
    told = run(*command.split()[1:], "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    assert re.search(r"^\d\d+ passed", told, re.M), told
    assert "llava]" not in run(*command.split()[1:], "-q", "--collect-only")


def test_its_checkpoint_answers(run, checkpoint, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    asked = ("--image", tmp_path / "a.png", "--prompt", "what ?", "--model", checkpoint)
    asked += ("--max-new-tokens", "5", "--device", "cpu")
    answer = run("-m", "causalmm", "generate", *asked)
    assert len(answer.split()) == 5
    assert run("-m", "llava_copy_causalmm.generate", *asked) == answer
    refused = run("-m", "llava_causalmm.generate", *asked, code=2)
    assert refused.endswith(
        "is a LLaVA copy checkpoint: use python -m llava_copy_causalmm.generate\n"
    )


def test_it_is_named_where_families_are(run, checkpoint, tmp_path):
    told = " ".join(run("-m", "causalmm", "generate", "--help").split())
    assert "LLaVA or Qwen2-VL or " in told
    assert " or LLaVA copy" in told
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(image)
    asked = ("generate", "--image", image, "--prompt", "what ?", "--model")
    told = run("-m", "causalmm", *asked, checkpoint, "--max-pixels", "9", code=2)
    assert told.endswith("is a LLaVA copy checkpoint, which decides sizes itself\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "blip"}')
    (other / "model.safetensors").touch()
    told = run("-m", "causalmm", *asked, other, code=2)
    assert "expected one of LLaVA (llava), " in told
    assert told.endswith(", LLaVA copy (llava_copy)\n")
    program = "from causalmm.lmms_eval.arguments import model_names; print(*model_names().values())"
    assert "causalmm_llava_copy" in run("-c", program)
