"""torchvision becomes importable beside a CPU build of torch, and nothing else is touched."""

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def test_torchvision_and_the_processors_that_need_it_import():
    assert run(
        "from causalmm.compat import ensure_torchvision as ensure\n"
        "ensure(); ensure()\n"
        "import torchvision.transforms.v2\n"
        "from transformers import Qwen2VLProcessor\n"
        "print(Qwen2VLProcessor.__name__)"
    ) == ("Qwen2VLProcessor")


def test_importing_the_module_does_nothing():
    code = "import sys, causalmm.compat; print('torch' in sys.modules)"
    assert run(code) == "False"


def test_another_failure_is_left_to_whoever_imports_torchvision():
    assert run(
        "import importlib, causalmm.compat as compat\n"
        "def broken(name): raise RuntimeError('something else')\n"
        "compat.importlib.import_module = broken\n"
        "compat.ensure_torchvision()\n"
        "print(len(compat._declared))"
    ) == ("0")
