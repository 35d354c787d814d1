"""Start the patch of a new family from its sibling's: the same merge, between two upstream files.

base is the sibling's upstream file, ours its patched one, theirs the new family's upstream file of
the same release. Siblings differ in their names, so the names of base and of the hunks are replaced
by theirs' before lines are compared, and a line is looked for in the function of the same name only
(siblings define their classes in different orders). Tests: tests/vendoring/test_adopt.py.
"""

import ast
import difflib
import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from causalmm.vendoring import headers, patching, porting
from causalmm.vendoring.patching import Hunk, PatchError, Pin
from causalmm.vendoring.porting import Port

# The least ratio of equal lines (difflib's) at which classes with different names are counterparts:
# between Qwen2-VL, Qwen2.5-VL and Qwen3-VL, those that hold hunks have 0.48 or more, and what is no
# counterpart has 0.29 or less once better pairs are taken.
_ALIKE = 0.4


@dataclass(frozen=True)
class Renaming:
    """The names of one model's file and what they are in another's."""

    words: dict[str, str]  # whole identifiers: classes, our package
    prefixes: dict[str, str]  # at the start of class names: Qwen2VL
    parts: dict[str, str]  # between underscores: qwen2_vl

    def __call__(self, text: str) -> str:
        patterns = [
            *(rf"\b{word}\b" for word in self.words),
            *(rf"\b{prefix}(?![a-z])" for prefix in self.prefixes),
            *(rf"(?<![A-Za-z0-9]){part}(?![A-Za-z0-9])" for part in self.parts),
        ]
        names = self.parts | self.prefixes | self.words
        return re.sub("|".join(patterns), lambda match: names[match[0]], text)

    def __str__(self) -> str:
        names = self.prefixes | self.parts | self.words
        return ", ".join(f"{old} -> {new}" for old, new in names.items() if old != new) or "none"


def find_renaming(base: str, theirs: str, source: Pin, target: Pin) -> Renaming:
    """What the names of `source`'s file `base` are in `target`'s file `theirs`."""
    package = {_folder(source.vendored): _folder(target.vendored)}
    model = {_folder(source.upstream): _folder(target.upstream)}
    old, new = _class_prefix(base), _class_prefix(theirs)
    renaming = Renaming(package, {old: new} if old and new else {}, model)
    return replace(renaming, words=package | _class_pairs(base, theirs, renaming))


def _folder(path: str) -> str:
    return PurePosixPath(path).parent.name


def _class_prefix(text: str) -> str | None:
    """What the file's class names begin with: Qwen2_5_VL of Qwen2_5_VLPreTrainedModel."""
    match = re.search(r"^class (\w+)PreTrainedModel\(", text, re.MULTILINE)
    return match[1] if match else None


def _class_pairs(base: str, theirs: str, renaming: Renaming) -> dict[str, str]:
    """Classes of `base` whose counterpart is not the one that `renaming` gives, by their lines."""
    old, new = _classes(base), _classes(theirs)
    left = [name for name in old if renaming(name) not in new]
    free = set(new) - {renaming(name) for name in old}
    ratios = []
    for name in left:
        lines = [renaming(line) for line in old[name]]
        for other in free:
            ratio = difflib.SequenceMatcher(None, lines, new[other], autojunk=False).ratio()
            ratios.append((ratio, name, other))
    pairs: dict[str, str] = {}
    for ratio, name, other in sorted(ratios, reverse=True):
        if ratio >= _ALIKE and name not in pairs and other not in pairs.values():
            pairs[name] = other
    return pairs


def _classes(text: str) -> dict[str, list[str]]:
    """The lines of each class."""
    lines = patching.split_lines(text)
    return {
        node.name: lines[node.lineno - 1 : node.end_lineno]
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef)
    }


def find_source(root: Path, source: str) -> Pin:
    """The pin that `source` names, by its upstream or its vendored path.

    Raises PatchError where it names no file of the manifest, or one patched for two packages.
    """
    pins = patching.read_pins(root)
    found = [pin for pin in pins if source in (pin.upstream, pin.vendored)]
    if len(found) != 1:
        what = f"names {len(found)} files" if found else "is not a file"
        vendored = ", ".join(pin.vendored for pin in found or pins)
        raise PatchError(f"{source} {what} of {patching.MANIFEST}: give one of {vendored}.")
    return found[0]


def new_pin(root: Path, source: Pin, vendored: str, upstream: str | None) -> tuple[Pin, str]:
    """The pin of the file to be made, and its upstream text, relocated.

    Without `upstream`, modeling_NAME.py is transformers/models/NAME/modeling_NAME.py. Raises
    PatchError where `vendored` is no PACKAGE/FILE.py or has a pin or a patch already, and where the
    installed distribution lacks the upstream file.
    """
    path = PurePosixPath(vendored)
    if len(path.parts) != 2 or not path.parts[0].isidentifier() or path.suffix != ".py":
        raise PatchError(f"{vendored} must be PACKAGE/FILE.py, like {source.vendored}.")
    models = PurePosixPath(source.upstream).parents[1]
    if upstream is None:
        upstream = str(models / path.stem.partition("_")[2] / path.name)
    family = _folder(vendored).removesuffix("_causalmm")
    pin = Pin(
        distribution=source.distribution,
        version=source.version,
        upstream=upstream,
        sha256="",
        vendored=vendored,
        patch=f"patches/{family}/{path.stem}.patch",
    )
    for other in patching.read_pins(root):
        if vendored == other.vendored or pin.patch == other.patch:
            raise PatchError(f"{vendored} is in {patching.MANIFEST} already, with {other.patch}.")
    if (root / pin.patch).exists():
        raise PatchError(f"{pin.patch} exists already: delete it or add it to {patching.MANIFEST}.")
    inside = PurePosixPath(upstream).is_relative_to(models.parts[0])
    if not inside or not (file := patching.installed_file(pin)).is_file():
        raise PatchError(
            f"{pin.distribution} {pin.version} has no file {upstream}: name the upstream file with "
            f"--upstream, like {source.upstream}."
        )
    data = file.read_bytes()
    text = patching.relocate(data.decode("utf-8"), pin.package)
    return replace(pin, sha256=hashlib.sha256(data).hexdigest()), text


def adopt_file(
    root: Path, source: Pin, pin: Pin, theirs: str, place: bool = False
) -> tuple[Port, Renaming]:
    """The patch of `source` on `pin`'s file; with `place`, proposals are taken."""
    base = patching.upstream_text(source)
    patch = patching.read_patch(root, source)
    if patch is None:
        raise PatchError(f"{source.vendored} has no patch: there is nothing to adopt.")
    prose, hunks = patch
    rename = find_renaming(base, theirs, source, pin)
    renamed = [
        Hunk(hunk.at, [*map(rename, hunk.removed)], [*map(rename, hunk.added)]) for hunk in hunks
    ]
    results = porting.carry_hunks(rename(base), theirs, renamed, by_function=True)
    prose = headers.adopted(prose, pin, source, rename)
    return porting.merge(pin, prose, theirs, results, place), rename


def write(root: Path, port: Port, source: Pin) -> None:
    """The new patch, its rejected hunks beside it, and a further entry of the manifest."""
    manifest = root / patching.MANIFEST
    entry = [f'{name} = "{value}"' for name, value in vars(port.pin).items()]
    text = manifest.read_bytes().decode("utf-8").rstrip("\n")
    patching.write_text(manifest, patching.join_lines([text, "", "[[file]]", *entry]))
    porting.write_patch(root, port, source)
