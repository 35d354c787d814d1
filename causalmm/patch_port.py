"""Carry the patches over to another release: a three-way merge that never guesses.

base is the pinned upstream file, ours the patched one, theirs the same file in another tree. A hunk
is carried where its neighbours in base, and whatever it replaces, are found together in theirs;
anything else is a conflict, reported with line numbers on both sides. Held by tests/test_port.py.
"""

import ast
import difflib
import hashlib
import importlib.metadata
import re
from dataclasses import dataclass, replace
from pathlib import Path

from causalmm import patch_headers, patching
from causalmm.patching import Hunk, PatchError, Pin


@dataclass(frozen=True, kw_only=True)
class Port:
    """One file's patch on another release."""

    pin: Pin  # as it will stand in the manifest
    prose: str
    hunks: list[Hunk]
    rejected: list[tuple[Hunk, int]]  # with the line of theirs it belongs near
    note: str = ""  # a conflict that is not about one hunk


def carry_hunks(
    base: str, theirs: str, hunks: list[Hunk]
) -> tuple[list[Hunk], list[tuple[Hunk, int]]]:
    """The hunks that fit theirs, renumbered, and those that do not."""
    old, new = patching.split_lines(base), patching.split_lines(theirs)
    # Where each line of base went; the file's two ends are lines that always match.
    place = {-1: -1, len(old): len(new)}
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for i, j, size in matcher.get_matching_blocks():
        place.update(zip(range(i, i + size), range(j, j + size), strict=True))

    carried, rejected = [], []
    for hunk in hunks:
        neighbours = range(hunk.at - 1, hunk.at + len(hunk.removed) + 1)
        found = [place.get(line) for line in neighbours]
        start = found[0]
        if start is not None and found == list(range(start, start + len(found))):
            carried.append(hunk._replace(at=start + 1))
        else:
            last_known = max(line for line in place if line < hunk.at)
            rejected.append((hunk, place[last_known] + 2))
    return carried, rejected


def port_file(root: Path, pin: Pin, package: Path, version: str) -> Port:
    base = patching.upstream_text(pin)
    prose, hunks = patching.read_patch(root, pin) or ("", [])
    path = package / pin.upstream.partition("/")[2]
    if not path.is_file():
        return Port(pin=pin, prose=prose, hunks=[], rejected=[], note=f"{path} does not exist")
    data = path.read_bytes()
    new_pin = replace(pin, version=version, sha256=hashlib.sha256(data).hexdigest())
    theirs = patching.relocate(data.decode("utf-8"), pin.package)
    carried, rejected = carry_hunks(base, theirs, hunks)
    try:
        ast.parse(patching.apply_hunks(theirs, carried))
        note = ""
    except SyntaxError as error:
        note = f"the merged file is not valid Python at line {error.lineno}: {error.msg}"
    prose = patch_headers.with_upstream(prose, new_pin)
    return Port(pin=new_pin, prose=prose, hunks=carried, rejected=rejected, note=note)


def find_package(directory: Path, name: str) -> Path:
    """The package in a site-packages folder, a source tree, or the folder itself."""
    for package in (directory / name, directory / "src" / name, directory):
        if (package / "__init__.py").is_file() and package.name == name:
            return package
    raise PatchError(f"{directory} holds no {name} package (looked for {name}/ and src/{name}/).")


def find_version(package: Path, distribution: str) -> str:
    for found in importlib.metadata.distributions(path=[str(package.parent)]):
        if found.metadata["Name"] == distribution:
            return found.version
    text = (package / "__init__.py").read_text(encoding="utf-8")
    if match := re.search(r"""^__version__ = ["']([^"']+)["']""", text, re.MULTILINE):
        return match[1]
    raise PatchError(f"{package} does not say which version of {distribution} it is.")


def write_ports(root: Path, ports: list[Port]) -> None:
    """New patches, their rejected hunks beside them, and the manifest's new pins."""
    pins = {pin.vendored: pin for pin in patching.read_pins(root)}
    manifest = root / patching.MANIFEST
    entries = manifest.read_bytes().decode("utf-8").split("[[file]]")
    for port in ports:
        old, path = pins[port.pin.vendored], root / port.pin.patch
        # Edited as text, entry by entry, to keep the file's comments.
        entries = [
            entry.replace(f'"{old.version}"', f'"{port.pin.version}"').replace(
                old.sha256, port.pin.sha256
            )
            if f'"{old.vendored}"' in entry
            else entry
            for entry in entries
        ]
        if port.hunks or port.rejected:  # without hunks left, the file still keeps the prose
            body = patching.render_hunks(port.pin, port.hunks)
            patching.write_text(path, port.prose + body)
        if port.rejected:
            body = patching.render_hunks(old, [hunk for hunk, _ in port.rejected])
            patching.write_text(path.with_suffix(".rej"), port.prose + body)
    patching.write_text(manifest, "[[file]]".join(entries))
