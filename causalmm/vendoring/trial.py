"""The ported patches under the release they were ported to: built, checked and tested.

All in a temporary copy of the project. The other release comes first on PYTHONPATH; torch and
everything else stay those of this environment. The tests are the fast ones of every file that the
patches name as a guard. Tests: tests/vendoring/test_port.py.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from causalmm.vendoring import headers, patching, porting
from causalmm.vendoring.patching import PatchError
from causalmm.vendoring.porting import Port

_NOT_SOURCE = (".*", "venv", "build", "dist", "runs", "__pycache__")
"""What a copy can do without: hidden, generated, or a virtual environment."""


def run(root: Path, ports: list[Port], package: Path, script: Path, select: str) -> int:
    """pytest's exit code, 0 where all tests pass; PatchError where it does not come to tests.

    `package` is the other release's package folder, `script` the path of scripts/vendor.py,
    `select` a pytest -k expression, empty for all.
    """
    with tempfile.TemporaryDirectory(prefix="causalmm-port-") as folder:
        copy = Path(folder, "project")
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*_NOT_SOURCE))
        for pin in patching.read_pins(root):
            (copy / pin.vendored).unlink(missing_ok=True)  # build would save it as edited
        porting.write_ports(copy, ports)
        here = Path(__file__).resolve().parents[2]  # for this tool, where the copy has none
        path = os.pathsep.join(map(str, [copy, package.parent, here]))

        def python(*arguments: str | Path, quiet: bool = True) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, *arguments],
                cwd=copy, env={**os.environ, "PYTHONPATH": path},
                capture_output=quiet, text=True, check=False,
            )  # fmt: skip

        name = package.name
        probe = python("-c", f"import {name}; print({name}.__path__[0])")
        said = (probe.stderr.strip() or probe.stdout.strip()).rpartition("\n")[2]
        if probe.returncode != 0:
            raise PatchError(
                f"{package} does not import in this environment ({said}). Install what it asks for "
                f"beside it: `pip install --no-deps --target {package.parent} ...`."
            )
        for command in ("build", "check"):
            done = python(script, command, "--root", copy)
            if done.returncode != 0:
                raise PatchError(
                    f"`vendor.py {command}` fails on the result: {done.stderr.strip()}"
                )
        tests = ["-m", "pytest", "-q", "-m", "not slow", "-k", select, "-p", "no:cacheprovider"]
        return python(*tests, *_guards(ports), quiet=False).returncode


def _guards(ports: list[Port]) -> list[str]:
    """The test files that the patches' headers name, each once."""
    fields = [headers.parse(port.prose)["Guarded by"] for port in ports if port.prose]
    return sorted({file for field in fields for file, _ in headers.guards(field)})
