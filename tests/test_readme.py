"""The Python in README.md and docs/ runs as it stands, with demonstration models for the hub's."""

import re
import subprocess
import sys
from pathlib import Path

from causalmm.toyworld.vocabulary import COLOURS

ROOT = Path(__file__).resolve().parent.parent
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
BLOCKS = PYTHON.findall((ROOT / "README.md").read_text("utf-8"))
TOLD = {
    "photo.jpg": str(ROOT / "examples" / "llava_300041_helped.png"),
    "Is there a dog in the image?": "What color is the mushroom?",
}
QWEN2VL = {
    "from llava_causalmm import Llava": "from qwen2vl_causalmm import Qwen2VL",
    "= Llava": "= Qwen2VL",
}
"""What its comment says to change for the other family."""


def further_examples() -> str:
    """The blocks of docs/, which go on with the model and inputs of the README's.

    Not those of the pages that add something: they are files (tests/families/
    test_outside_family.py). Nor that of the service, which has to run (tests/serve/
    test_service.py).
    """
    apart = {ROOT / "docs" / "serve.md", *ROOT.glob("docs/add-a-*.md")}
    pages = sorted(set(ROOT.glob("docs/*.md")) - apart)
    blocks = [block for page in pages for block in PYTHON.findall(page.read_text("utf-8"))]
    assert blocks
    return "".join(blocks).replace("photo.jpg", TOLD["photo.jpg"])


def example(demo: str, changed: dict[str, str]) -> str:
    (code,) = BLOCKS
    checkpoint = ROOT / "causalmm" / "toyworld" / "checkpoints" / demo
    for old, new in {"llava-hf/llava-1.5-7b-hf": str(checkpoint), **TOLD, **changed}.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


def test_the_example_runs():
    # In one process, which loads torch once.
    code = example("demo-llava", {}) + further_examples() + example("demo-qwen2vl", QWEN2VL)
    code += further_examples()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    llava, qwen2_vl = done.stdout.split()
    assert llava == "Purple"  # as the mushroom in the picture is
    assert qwen2_vl.lower() in COLOURS


def test_the_example_imports_ours_before_what_needs_torchvision():
    (code,) = BLOCKS
    # Where causalmm is on the path and not installed, nothing else makes torchvision importable.
    assert code.index("from causalmm import") < code.index("from transformers import")
