"""Imports go downward only, in no circle, and patches import one module of ours.

The order of the packages is that of LEVELS; `counterfactual` is mathematics and imports nothing of
the project but itself and `errors`. Family packages stand on `inputs` and on those declared before
them, and only their commands on `cli`; nothing else imports them but by the references of their
declarations.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from family_rows import FAMILIES

from causalmm.families.registry import find

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "causalmm"
FAMILY_PACKAGES = tuple(find(family).package for family in FAMILIES)
LEVELS = (
    ("errors", "heads", "layers"),
    ("extras",),
    ("counterfactual", "presets"),
    ("config",),
    ("decoding",),
    ("families",),
    ("inputs",),
    ("cli",),
    ("figures", "serve", "vendoring"),
    ("evaluation",),
    ("lmms_eval", "reproduce", "toyworld"),
    ("app",),
    ("__main__",),
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in ("causalmm", *FAMILY_PACKAGES)
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(path):
    """Modules of ours that a file imports anywhere, in functions too; not for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def place(module):
    package, _, rest = module.partition(".")
    return package if package in FAMILY_PACKAGES else rest.partition(".")[0] or None


@pytest.mark.parametrize("module", [name for name in MODULES if place(name) in LEVEL])
def test_imports_go_downward(module):
    mine = place(module)
    for other in imported(MODULES[module]):
        theirs = place(other)
        assert theirs is None or theirs == mine or LEVEL[theirs] < LEVEL[mine], other


@pytest.mark.parametrize("module", [name for name in MODULES if place(name) == "counterfactual"])
def test_the_mathematics_imports_nothing_else(module):
    assert {place(other) for other in imported(MODULES[module])} <= {"counterfactual", "errors"}


@pytest.mark.parametrize("module", [name for name in MODULES if place(name) in FAMILY_PACKAGES])
def test_family_packages_stand_on_inputs(module):
    mine, highest = place(module), "cli" if module.endswith(".generate") else "inputs"
    for other in imported(MODULES[module]):
        theirs = place(other)
        if theirs in FAMILY_PACKAGES:
            assert FAMILY_PACKAGES.index(theirs) <= FAMILY_PACKAGES.index(mine), other
        else:
            assert theirs is None or LEVEL[theirs] <= LEVEL[highest], other


def test_every_package_has_a_level():
    assert {place(name) for name in MODULES} - {None, *FAMILY_PACKAGES} == set(LEVEL)


def test_nothing_below_imports_a_family_package():
    for name, path in MODULES.items():
        if place(name) not in FAMILY_PACKAGES:
            assert not {place(other) for other in imported(path)} & set(FAMILY_PACKAGES), name


def test_no_circles():
    """Within a package too; `TopologicalSorter` names the first it finds."""
    graph = {name: set(imported(path)) - {name, "causalmm"} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


def test_patches_import_the_seam_alone():
    lines = [
        line[1:].strip()
        for patch in (ROOT / "patches").glob("*/*.patch")
        for line in patch.read_text(encoding="utf-8").splitlines()
        if line.startswith(("+from causalmm", "+import causalmm"))
    ]
    assert lines
    assert all(line.startswith("from causalmm.decoding.seam import ") for line in lines)
