"""Carry the patches over to another release: a three-way merge that never guesses.

base is the pinned upstream file, ours the patched one, theirs the same file in another tree. A hunk
is carried where its neighbours in base, and whatever it replaces, are found together in theirs and
in the function they were in. Anything else is a conflict, told with what became of its neighbours;
where one neighbour of an insertion is left, the place beside it is proposed, and taken only on
request. `adopting` carries a patch to a sibling's file in the same way.
Tests: tests/vendoring/test_port.py, which compares with `git merge-file`.
"""

import ast
import builtins
import difflib
import hashlib
import importlib.metadata
import re
import symtable
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from causalmm.vendoring import headers, patching
from causalmm.vendoring.patching import Hunk, PatchError, Pin


class Conflict(NamedTuple):
    """A hunk that does not fit as it is."""

    hunk: Hunk  # with base's line numbers
    number: int  # among the patch's hunks, from 1
    scope: str  # the function it stands in
    reason: str
    near: int  # the line of theirs to look at
    proposal: Hunk | None  # with theirs' line numbers; follows line `near`


class Port(NamedTuple):
    """One file's patch on another release."""

    pin: Pin  # as it will stand in the manifest
    prose: str
    hunks: Sequence[Hunk] = ()  # carried, and those placed on request
    conflicts: Sequence[Conflict] = ()
    placed: Sequence[Conflict] = ()  # conflicts whose proposal was taken
    note: str = ""  # a conflict that is not about one hunk
    undefined: Sequence[str] = ()  # names that the merged file uses and does not define


def carry_hunks(
    base: str, theirs: str, hunks: list[Hunk], by_function: bool = False
) -> list[Hunk | Conflict]:
    """Each hunk with theirs' line numbers where it fits, a conflict where it does not.

    With `by_function`, the lines of a function are looked for in theirs' function of that name
    alone, wherever it stands; hunks may then come in another order.
    """
    old, new = patching.split_lines(base), patching.split_lines(theirs)
    old_scopes, new_scopes = scopes(base), scopes(theirs)
    place = _matched_lines(old, new, old_scopes, new_scopes, by_function)

    def stayed(line: int) -> bool:
        return line in place and old_scopes[line] == new_scopes[place[line]]

    results: list[Hunk | Conflict] = []
    for number, hunk in enumerate(hunks, 1):
        above, below = hunk.at - 1, hunk.at + len(hunk.removed)
        found = [place.get(line) for line in range(above, below + 1)]
        together = None not in found and found == list(range(found[0], found[0] + len(found)))
        if together and stayed(above) and stayed(below):
            results.append(hunk._replace(at=found[0] + 1))
            continue
        scope = old_scopes[above]
        if not hunk.removed and (stayed(above) or stayed(below)):
            near = found[0] + 1 if stayed(above) else found[-1]
            proposal = hunk._replace(at=near)
        else:
            same = [line for line in place if line < hunk.at and old_scopes[line] == scope]
            starts = [line for line, name in new_scopes.items() if name == scope]
            if same or not starts:
                near = place[max(same or (line for line in place if line < hunk.at))] + 1
            else:
                near = min(starts) + 1
            proposal = None
        reason = _reason(hunk, found, new_scopes if together else None)
        results.append(Conflict(hunk, number, scope, reason, near, proposal))
    return results


def _matched_lines(
    old: list[str],
    new: list[str],
    old_scopes: dict[int, str],
    new_scopes: dict[int, str],
    by_function: bool,
) -> dict[int, int]:
    """Where lines of `old` are in `new`; the file's two ends are lines that always match."""
    place = {-1: -1, len(old): len(new)}
    for scope in sorted(set(old_scopes.values())) if by_function else [None]:
        ours = [line for line in range(len(old)) if scope in (None, old_scopes[line])]
        others = [line for line in range(len(new)) if scope in (None, new_scopes[line])]
        matcher = difflib.SequenceMatcher(
            None, [old[line] for line in ours], [new[line] for line in others], autojunk=False
        )
        for i, j, size in matcher.get_matching_blocks():
            place.update(zip(ours[i : i + size], others[j : j + size], strict=True))
    return place


def _reason(hunk: Hunk, found: list[int | None], moved: dict[int, str] | None) -> str:
    above, below = found[0], found[-1]
    if moved is not None:
        return f"its place is now in {moved[above] or moved[below] or 'no function'}"
    if above is None or below is None:
        both = above is None and below is None
        which = "lines above and below" if both else "line above" if above is None else "line below"
        return f"the {which} it changed"
    if hunk.removed:
        return "the lines it replaces changed"
    return f"upstream has {below - above - 1} other lines there"


def scopes(text: str) -> dict[int, str]:
    """The function or class of each line, counted from 0; the file's two ends are in none."""
    lines = len(patching.split_lines(text))
    found = dict.fromkeys(range(-1, lines + 1), "")

    def visit(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = f"{name}.{child.name}" if name else child.name
                found.update(dict.fromkeys(range(child.lineno - 1, child.end_lineno), inner))
                visit(child, inner)
            else:
                visit(child, name)

    visit(ast.parse(text), "")
    return found


def port_file(root: Path, pin: Pin, package: Path, version: str, place: bool = False) -> Port:
    """One patch on the tree `package`; with `place`, proposals are taken."""
    base = patching.upstream_text(pin)
    prose, hunks = patching.read_patch(root, pin) or ("", [])
    path = package / pin.upstream.partition("/")[2]
    if not path.is_file():
        return Port(pin, prose, note=f"{path} does not exist: upstream moved or removed the file")
    data = path.read_bytes()
    new_pin = replace(pin, version=version, sha256=hashlib.sha256(data).hexdigest())
    theirs = patching.relocate(data.decode("utf-8"), pin.package)
    results = carry_hunks(base, theirs, hunks)
    return merge(new_pin, headers.with_upstream(prose, new_pin), theirs, results, place)


def merge(
    pin: Pin, prose: str, theirs: str, results: list[Hunk | Conflict], place: bool = False
) -> Port:
    """The new patch that `results` of `carry_hunks` make; with `place`, proposals are taken."""
    conflicts, placed, kept = [], [], []
    for result in results:
        if isinstance(result, Hunk):
            kept.append(result)
        elif place and result.proposal is not None:
            placed.append(result)
            kept.append(result.proposal)
        else:
            conflicts.append(result)
    kept.sort(key=lambda hunk: hunk.at)
    merged = patching.apply_hunks(theirs, kept)
    note, undefined = "", []
    try:
        undefined = sorted(set(undefined_names(merged)) - set(undefined_names(theirs)))
    except SyntaxError as error:
        note = f"the merged file is not valid Python at line {error.lineno}: {error.msg}"
    return Port(pin, prose, kept, conflicts, placed, note, undefined)


def undefined_names(text: str) -> Iterator[str]:
    """ "NAME in FUNCTION" for each name that a function uses and nothing defines."""
    module = symtable.symtable(text, "", "exec")
    known = {symbol.get_name() for symbol in module.get_symbols()} | set(dir(builtins))

    def visit(table: symtable.SymbolTable, scope: str) -> Iterator[str]:
        for child in table.get_children():
            inner = f"{scope}.{child.get_name()}" if scope else child.get_name()
            for symbol in child.get_symbols():
                if symbol.is_global() and symbol.get_name() not in known:
                    yield f"{symbol.get_name()} in {inner}"
            yield from visit(child, inner)

    return visit(module, "")


def report(port: Port, target: str, base: str, theirs: str) -> list[str]:
    """What a maintainer has to know, a line each.

    `target` is what the hunks are carried to; `base` and `theirs` are names of the two files.
    """
    carried = len(port.hunks) - len(port.placed)
    total = len(port.hunks) + len(port.conflicts)
    lines = [
        f"{port.pin.patch}: {carried} of {total} hunks carried to {target}"
        + (f", {len(port.placed)} placed" if port.placed else "")
        + (", CONFLICT" if port.conflicts or port.note else "")
    ]
    if port.note:
        lines.append(f"  {port.note}")
    if port.undefined:
        lines.append(f"  not defined in the merged file: {', '.join(port.undefined)}")
    for conflict in sorted([*port.placed, *port.conflicts], key=lambda each: each.number):
        where = f"line {conflict.near} of {theirs}"
        if conflict in port.placed:
            advice = f"placed after {where}, check it"
        elif conflict.proposal is not None:
            advice = f"it may belong after {where}"
        else:
            advice = f"look near {where}"
        scope = f" in {conflict.scope}" if conflict.scope else ""
        lines.append(
            f"  hunk {conflict.number}, after line {conflict.hunk.at} of {base}{scope}: "
            f"{conflict.reason}; {advice}"
        )
        lines += [f"    + {line.strip()}" for line in conflict.hunk.added]
    return lines


def find_package(directory: Path, name: str) -> Path:
    """The package in a site-packages folder, a source tree, or the folder itself."""
    directory = directory.resolve()
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
        old = pins[port.pin.vendored]
        # Edited as text, entry by entry, to keep the file's comments.
        at = next(n for n, entry in enumerate(entries) if f'"{old.vendored}"' in entry)
        moved = entries[at].replace(f'"{old.version}"', f'"{port.pin.version}"')
        entries[at] = moved.replace(old.sha256, port.pin.sha256)
        write_patch(root, port, old)
    patching.write_text(manifest, "[[file]]".join(entries))


def write_patch(root: Path, port: Port, old: Pin) -> None:
    """The new patch, and beside it the hunks left over, with the line numbers of `old`'s file."""
    path = root / port.pin.patch
    if port.hunks or port.conflicts:  # without hunks left, the file still keeps the prose
        patching.write_text(path, port.prose + patching.render_hunks(port.pin, port.hunks))
    if port.conflicts:
        body = patching.render_hunks(old, [conflict.hunk for conflict in port.conflicts])
        patching.write_text(path.with_suffix(".rej"), port.prose + body)
