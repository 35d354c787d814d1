"""The `vendor` command: make, check and maintain the vendored modeling files (patches/README.md).

Tests: tests/vendoring/test_vendor.py, test_port.py and test_adopt.py.
"""

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

from causalmm.cli import pager
from causalmm.cli.flags import Parser
from causalmm.cli.terminal import exit_code
from causalmm.vendoring import adopting, headers, patching, porting, trial
from causalmm.vendoring.patching import PatchError, Pin

ROOT = Path(__file__).resolve().parents[2]


def build(root: Path) -> int:
    for note in patching.build(root):
        print(note, file=sys.stderr)
    print(f"wrote {', '.join(pin.vendored for pin in patching.read_pins(root))}")
    return 0


def check(root: Path) -> int:
    pins = patching.read_pins(root)
    problems = [problem for pin in pins for problem in _file_problems(root, pin)]
    for path in sorted(root.glob("patches/**/*")):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".rej":
            problems.append(
                f"{name} holds hunks that port or adopt left over: place them, then delete it."
            )
        elif path.suffix == ".patch" and name not in {pin.patch for pin in pins}:
            problems.append(f"{name} is not named in {patching.MANIFEST}.")
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{len(pins)} vendored files are upstream plus patches")
    return 1 if problems else 0


def _file_problems(root: Path, pin: Pin) -> list[str]:
    try:
        expected = patching.with_header(root, pin, patching.patched_text(root, pin))
        patch = patching.read_patch(root, pin)
    except PatchError as error:
        return [str(error)]
    found = []
    current = patching.read_vendored(root, pin)
    if current is None:
        found.append(f"{pin.vendored} is missing: run `python scripts/vendor.py build`.")
    elif current != expected:
        found.append(
            f"{pin.vendored} differs from upstream plus {pin.patch}: run `python scripts/vendor.py "
            "export` to keep what was edited there, or `build` to write it anew."
        )
    if patch is not None:
        found += [f"{pin.patch} {what}." for what in headers.problems(root, pin, *patch)]
    return found


def diff(root: Path, paged: bool = True) -> int:
    pager.show_diff(_diff_lines(root), paged=paged)
    return 0


def _diff_lines(root: Path) -> Iterator[str]:
    for pin in patching.read_pins(root):
        _, text = patching.split_header(_vendored(root, pin))
        yield from difflib.unified_diff(
            patching.split_lines(patching.upstream_text(pin)),
            patching.split_lines(text),
            f"a/{pin.upstream}",
            f"b/{pin.vendored}",
            lineterm="",
        )


def export(root: Path, force: bool = False) -> int:
    pins = patching.read_pins(root)
    if not force:
        for pin in pins:
            _refuse_stale(root, pin)
    for pin in pins:
        _, text = patching.split_header(_vendored(root, pin))
        hunks = patching.diff_hunks(patching.upstream_text(pin), text)
        patch = root / pin.patch
        if hunks:
            old = patching.read_patch(root, pin)
            prose = headers.with_upstream(old[0], pin) if old else headers.template(pin, hunks)
            patching.write_text(patch, prose + patching.render_hunks(pin, hunks))
            added = sum(len(hunk.added) for hunk in hunks)
            removed = sum(len(hunk.removed) for hunk in hunks)
            print(f"{pin.patch}: {len(hunks)} hunks, +{added} -{removed}")
        elif patch.exists():
            patch.unlink()
            print(f"{pin.patch}: removed, {pin.vendored} is upstream's")
        patching.write_text(root / pin.vendored, patching.with_header(root, pin, text))
    return 0


def _refuse_stale(root: Path, pin: Pin) -> None:
    """A file built from an older patch must not take back what the patch has gained since."""
    vendored = _vendored(root, pin)
    digest, text = patching.split_header(vendored)
    now = patching.patched_text(root, pin)
    if digest is None:  # a file made by hand knows nothing of a patch
        fresh = not (root / pin.patch).exists()
    else:
        fresh = digest == patching.text_digest(now)
    if not fresh and text != now:
        raise PatchError(
            f"{pin.vendored} was not built from {pin.patch} as it is now, and exporting it would "
            "undo the difference: run `python scripts/vendor.py build` and edit again, or "
            "`export --force`."
        )


def _vendored(root: Path, pin: Pin) -> str:
    text = patching.read_vendored(root, pin)
    if text is None:
        raise PatchError(f"{pin.vendored} is missing: run `python scripts/vendor.py build`.")
    return text


def port(
    root: Path, directory: Path, place: bool = False, test: str | None = None, write: bool = False
) -> int:
    ports = []
    for pin in patching.read_pins(root):
        package = porting.find_package(directory, pin.upstream.partition("/")[0])
        version = porting.find_version(package, pin.distribution)
        ports.append(porting.port_file(root, pin, package, version, place))
        release = f"{pin.distribution} {version}"
        print(*porting.report(ports[-1], release, pin.version, version), sep="\n")
    conflicts = sum(len(port.conflicts) + bool(port.note) for port in ports)
    placed = sum(len(port.placed) for port in ports)
    carried = sum(len(port.hunks) for port in ports) - placed
    print(f"{release}: {carried} hunks carried, {placed} placed, {conflicts} conflicts", flush=True)
    failed = conflicts > 0 or any(port.undefined for port in ports)
    if test is not None:
        if conflicts:
            raise PatchError(
                "Not tested: place the conflicts first, with --place (beside the neighbour that is "
                "left, where there is one) or by hand after --write."
            )
        failed = trial.run(root, ports, package, ROOT / "scripts" / "vendor.py", test) != 0
        print(f"the tests {'FAIL' if failed else 'pass'} under {release}")
    if write:
        porting.write_ports(root, ports)
        rest = ", place what is in patches/**/*.rej by hand, export, and delete it"
        print(
            f"wrote patches/. Next: set the new version in {', '.join(PIN_FILES)}, install it, run "
            f"`python scripts/vendor.py build`{rest * bool(conflicts)}"
        )
    return 1 if failed else 0


def adopt(
    root: Path,
    source: Path,
    target: Path,
    upstream: Path | None = None,
    place: bool = False,
    write: bool = False,
) -> int:
    pin = adopting.find_source(root, source.as_posix())
    new, theirs = adopting.new_pin(
        root, pin, target.as_posix(), upstream.as_posix() if upstream else None
    )
    port, renaming = adopting.adopt_file(root, pin, new, theirs, place)
    print(
        *porting.report(port, new.upstream, Path(pin.upstream).name, Path(new.upstream).name),
        sep="\n",
    )
    print(f"names replaced: {renaming}")
    if write:
        adopting.write(root, port, pin)
        rejected = Path(new.patch).with_suffix(".rej").as_posix()
        rest = f", place what is in {rejected} by hand and delete it"
        print(
            f"wrote {new.patch} and {patching.MANIFEST}. Next: name the package's generated files "
            f"in {', '.join(GENERATED_IN)}, run `python scripts/vendor.py build`"
            f"{rest * bool(port.conflicts)}, export, and answer each {headers.TODO} in the header"
        )
    return 1 if port.conflicts or port.note or port.undefined else 0


# Where the vendored files of a package are named as generated.
GENERATED_IN = (".gitignore", "pyproject.toml", "Makefile")
# Where else a pinned version is written down; tests/test_packaging.py holds them equal.
PIN_FILES = ("pyproject.toml", "env/requirements.txt", "env/*.yml", "Makefile")


def parse_args(argv: list[str] | None, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description="Make, check and maintain the vendored modeling files.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="write the vendored modeling files")
    commands.add_parser("check", help="exit 1 unless vendored == upstream + patches")
    differ = commands.add_parser("diff", help="our changes against upstream, with context")
    differ.add_argument(
        "--no-pager", dest="paged", action="store_false", help="not through PAGER or less"
    )
    exporter = commands.add_parser("export", help="edited vendored files -> patches/")
    exporter.add_argument("--force", action="store_true", help="even if a patch changed meanwhile")
    porter = commands.add_parser("port", help="merge onto another transformers tree")
    porter.add_argument("directory", type=Path, help="a site-packages folder or source tree")
    porter.add_argument("--place", action="store_true", help="take the places that port proposes")
    porter.add_argument(
        "--test", nargs="?", const="", metavar="EXPRESSION",
        help="build and test the result in a copy (pytest -k EXPRESSION narrows the tests down)",
    )  # fmt: skip
    porter.add_argument("--write", action="store_true", help="write the new patches and pins")
    adopter = commands.add_parser("adopt", help="start a family's patch from its sibling's")
    adopter.add_argument(
        "source", metavar="FROM", type=Path, help="a patched file of upstream.toml"
    )
    adopter.add_argument(
        "target", metavar="TO", type=Path, help="the file to make: PACKAGE/FILE.py"
    )
    adopter.add_argument(
        "--upstream", type=Path, metavar="PATH",
        help="the file that TO patches (models/NAME/modeling_NAME.py, if TO is modeling_NAME.py)",
    )  # fmt: skip
    adopter.add_argument("--place", action="store_true", help="take the places that it proposes")
    adopter.add_argument("--write", action="store_true", help="write the new patch and its pin")
    for command in commands.choices.values():
        command.add_argument("--root", type=Path, default=ROOT, help="the repository (this one)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command and return its exit code; `prog` is its name in messages."""
    return exit_code(lambda: _run(argv, prog))


def _run(argv: list[str] | None, prog: str | None) -> int:
    args = vars(parse_args(argv, prog))
    commands = {
        "build": build, "check": check, "diff": diff, "export": export, "port": port, "adopt": adopt
    }  # fmt: skip
    try:
        return commands[args.pop("command")](**args)
    except PatchError as error:
        print(error, file=sys.stderr)
        return 1
