"""Every patch argues for its existence: the prose fields above the diff, and what they must say.

    Subject: llava: hand the plan to the towers
    Upstream: transformers 5.23.0 transformers/models/llava/modeling_llava.py
    Kind: research            (research | compat | temporary)
    Why: ...                  (a value may go on in indented lines)
    Why here: ...
    When off: ...
    Guarded by: tests/test_x.py::test_a, ::test_b
    Replaces: ...             (only, and always, where a patch replaces upstream lines)
    ---

Tests: tests/vendoring/test_vendor.py.
"""

import ast
import re
from collections.abc import Callable
from pathlib import Path

from causalmm.vendoring.patching import Hunk, Pin

REQUIRED = ("Subject", "Upstream", "Kind", "Why", "Why here", "When off", "Guarded by")
KINDS = ("research", "compat", "temporary")
TODO = "TODO"

_FIELD = re.compile(r"([A-Z][A-Za-z ]*):[ \t]*(.*)")


def template(pin: Pin, hunks: list[Hunk]) -> str:
    """The header of a new patch; check refuses it until each TODO is answered."""
    family = pin.patch.split("/")[1]
    lines = [
        f"Subject: {family}: {TODO} (what the patch does)",
        upstream_field(pin),
        f"Kind: {TODO} ({' | '.join(KINDS)})",
        f"Why: {TODO}",
        f"Why here: {TODO} (why nothing outside the file can do it)",
        f"When off: {TODO} (what it does without a plan)",
        f"Guarded by: {TODO} (tests/test_x.py::test_a, ::test_b)",
    ]
    if any(hunk.removed for hunk in hunks):
        lines.append(f"Replaces: {TODO} (why lines must be replaced rather than added)")
    return "\n".join([*lines, "---"]) + "\n"


def upstream_field(pin: Pin) -> str:
    return f"Upstream: {pin.distribution} {pin.version} {pin.upstream}"


def with_upstream(prose: str, pin: Pin) -> str:
    """The same header, its Upstream field brought up to the pin."""
    return re.sub(
        r"^Upstream:.*$", lambda _: upstream_field(pin), prose, count=1, flags=re.MULTILINE
    )


def adopted(prose: str, pin: Pin, sibling: Pin, rename: Callable[[str], str]) -> str:
    """A sibling's header for the patch of `pin`; check refuses it until each TODO is answered.

    What argues is kept as a draft: what is true of the sibling need not be true here.
    """
    blocks = re.split(r"^(?=[A-Z][A-Za-z ]*:)", with_upstream(prose, pin), flags=re.MULTILINE)
    for at, block in enumerate(blocks):
        name, _, value = block.partition(":")
        if name in ("Why", "Why here", "Replaces"):
            blocks[at] = f"{name}: {TODO} (check what {sibling.patch} says)\n {rename(value)}"
        elif name == "Subject":
            blocks[at] = rename(block)
    return "".join(blocks)


def parse(prose: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = None
    for line in prose.splitlines():
        if line == "---":
            break
        if match := _FIELD.fullmatch(line):
            name = match[1]
            fields[name] = match[2].strip()
        elif name is not None:
            fields[name] = f"{fields[name]} {line.strip()}".strip()
    return fields


def problems(root: Path, pin: Pin, prose: str, hunks: list[Hunk]) -> list[str]:
    """What is wrong with a patch's header, one sentence each."""
    fields = parse(prose)
    found = [f"has no '{name}:' field" for name in REQUIRED if not fields.get(name)]
    found += [f"still says {TODO} under '{name}:'" for name in fields if TODO in fields[name]]
    if found:
        return found
    if fields["Upstream"] != upstream_field(pin).removeprefix("Upstream: "):
        found.append(f"says 'Upstream: {fields['Upstream']}', expected '{upstream_field(pin)}'")
    if fields["Kind"] not in KINDS:
        found.append(f"says 'Kind: {fields['Kind']}', expected one of {', '.join(KINDS)}")
    replaces = any(hunk.removed for hunk in hunks)
    if replaces and not fields.get("Replaces"):
        found.append("replaces upstream lines without a 'Replaces:' field that argues for it")
    if not replaces and "Replaces" in fields:
        found.append("has a 'Replaces:' field but replaces nothing")
    return found + _missing_guards(root, fields["Guarded by"])


def guards(guarded_by: str) -> list[tuple[str, str]]:
    """(file, test) of each guard; a guard that begins with `::` is in the last file named."""
    found = []
    file = ""
    for guard in re.split(r"[,\s]+", guarded_by.strip(" ,.")):
        named, _, test = guard.partition("::")
        file = named or file
        found.append((file, test))
    return found


def _missing_guards(root: Path, guarded_by: str) -> list[str]:
    found = []
    for file, test in guards(guarded_by):
        path = root / file
        if not test or not path.is_file():
            guard = f"{file}::{test}" if test else file
            found.append(f"is guarded by {guard!r}, which is not FILE::TEST with an existing file")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        if test.split("::")[-1].partition("[")[0] not in names:
            found.append(f"is guarded by {file}::{test}, which does not exist")
    return found
