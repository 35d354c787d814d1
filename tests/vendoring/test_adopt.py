"""Adopting a sibling's patch: names are followed, and only what fits is carried.

The oracle: a file whose names and order of classes are other ones, and nothing else, must get the
whole patch, as if it were renamed and reordered after patching.
"""

import ast
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import toy_upstream as toy

from causalmm.vendoring import adopting, command, headers, patching, porting

ROOT = Path(__file__).resolve().parents[2]
PINS = patching.read_pins(ROOT)

SIBLING_FILE = f"{toy.NAME}/models/car/modeling_car.py"
SIBLING = "car_causalmm/modeling_car.py"
SIBLING_PATCH = "patches/car/modeling_car.patch"
# The two classes have changed places, and one of them has a name that no rule gives.
SIBLING_UPSTREAM = """\
\"\"\"A car.\"\"\"

from .configuration_car import CarConfig


class CarModel:
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Heads:
    def forward(self, x):
        scores = Linear(x)
        return scores
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The toy repository; its upstream is installed and has a second model."""
    toy.write_distribution(tmp_path / "site")
    write_sibling(tmp_path, SIBLING_UPSTREAM)
    monkeypatch.syspath_prepend(tmp_path / "site")
    root = tmp_path / "repository"
    toy.write_repository(root)
    return root


def write_sibling(folder: Path, text: str) -> None:
    patching.write_text(folder / "site" / SIBLING_FILE, text)


def adopt(root: Path, *options: str, source: str = toy.VENDORED, target: str = SIBLING) -> int:
    return command.main(["adopt", source, target, "--root", str(root), *options])


def run(name: str, root: Path) -> int:
    return command.main([name, "--root", str(root)])


def hunks_of(root: Path) -> list[patching.Hunk]:
    return patching.split_patch((root / SIBLING_PATCH).read_text())[1]


# -- what it writes ----------------------------------------------------------------------------


@pytest.mark.parametrize("source", [toy.VENDORED, toy.FILE])
def test_without_write_it_only_reports(repository, capsys, source):
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    assert adopt(repository, source=source) == 0
    output = capsys.readouterr().out
    assert output == (
        f"{SIBLING_PATCH}: 2 of 2 hunks carried to {SIBLING_FILE}\n"
        "names replaced: toy -> car, toy_causalmm -> car_causalmm, ToyModel -> CarModel, "
        "ToyAttention -> Heads\n"
    )
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before


def test_what_it_writes_builds_and_must_be_argued_for(repository, capsys):
    assert adopt(repository, "--write") == 0
    assert f"wrote {SIBLING_PATCH}" in capsys.readouterr().out
    assert run("build", repository) == 0
    text = (repository / SIBLING).read_text()
    assert "            x = layer(x)\n            x = self.enter(x)\n" in text
    assert "scores = Linear(x)\n        if self.plan is not None:\n" in text

    assert run("check", repository) == 1
    errors = capsys.readouterr().err
    assert f"{SIBLING_PATCH} still says TODO under 'Why:'" in errors
    assert f"{SIBLING_PATCH} still says TODO under 'Why here:'" in errors
    patch = repository / SIBLING_PATCH
    fields = headers.parse(patch.read_text())
    assert fields["Subject"] == "car: edit the scores"
    assert fields["Upstream"] == f"{toy.NAME} 1.0 {SIBLING_FILE}"
    assert fields["When off"] == "The branch is not entered."
    assert fields["Guarded by"] == "tests/test_toy.py::test_off, ::test_on", (
        "files keep their names"
    )
    assert fields["Why"].endswith("To have a patch, and a value of two lines.")

    patch.write_text(re.sub(r"TODO \(check .*\)\n", "\n", patch.read_text()))
    assert run("check", repository) == 0, capsys.readouterr().err
    assert run("export", repository) == 0
    assert run("check", repository) == 0


def test_the_manifest_gains_one_entry(repository):
    manifest = repository / patching.MANIFEST
    before = manifest.read_text()
    assert adopt(repository, "--write") == 0
    after = manifest.read_text()
    assert after.startswith(before)
    assert after.endswith("\n")
    old, new = tomllib.loads(after)["file"]
    assert new == {
        **old,
        "upstream": SIBLING_FILE,
        "vendored": SIBLING,
        "patch": SIBLING_PATCH,
        "sha256": patching.text_digest(SIBLING_UPSTREAM),
    }


def test_the_package_is_renamed_in_our_lines(repository):
    patch = repository / toy.PATCH
    patch.write_text(
        patch.read_text().replace("self.enter(x)", "self.f('toy_causalmm.toys.toy', ToyModel)")
    )
    assert adopt(repository, "--write") == 0
    lines = hunks_of(repository)[0].added
    assert lines == ["            x = self.f('car_causalmm.toys.car', CarModel)"]


def test_upstream_is_named_where_its_name_does_not_follow(repository, capsys):
    target = "car_causalmm/modeling_wheels.py"
    assert adopt(repository, target=target) == 1
    said = capsys.readouterr().err
    assert f"{toy.NAME} 1.0 has no file {toy.NAME}/models/wheels/modeling_wheels.py" in said
    assert "--upstream" in said
    assert adopt(repository, "--upstream", SIBLING_FILE, "--write", target=target) == 0
    assert run("build", repository) == 0
    assert "self.enter" in (repository / target).read_text()


def test_a_file_can_be_patched_for_another_package_too(repository):
    target = "car_causalmm/modeling_toy.py"
    assert adopt(repository, "--write", target=target) == 0
    assert run("build", repository) == 0
    both = [
        patching.split_header((repository / name).read_text()) for name in (toy.VENDORED, target)
    ]
    assert both[0] == both[1]


# -- conflicts ---------------------------------------------------------------------------------


def test_a_conflict_is_told_and_placed_on_request(repository, capsys):
    write_sibling(repository.parent, SIBLING_UPSTREAM.replace("= layer(x)", "= layer(x, None)"))
    assert adopt(repository) == 1
    output = capsys.readouterr().out
    assert f"{SIBLING_PATCH}: 1 of 2 hunks carried to {SIBLING_FILE}, CONFLICT\n" in output
    assert (
        "  hunk 2, after line 19 of modeling_toy.py in CarModel.forward: the line above it "
        "changed; it may belong after line 9 of modeling_car.py\n    + x = self.enter(x)\n"
    ) in output

    assert adopt(repository, "--place", "--write") == 0
    assert "1 of 2 hunks carried" in capsys.readouterr().out
    assert [hunk.at for hunk in hunks_of(repository)] == [9, 15], "in the order of the new file"
    assert not (repository / SIBLING_PATCH).with_suffix(".rej").exists()


def test_what_does_not_fit_is_kept_aside(repository, capsys):
    write_sibling(repository.parent, SIBLING_UPSTREAM.replace("= layer(x)", "= layer(x, None)"))
    assert adopt(repository, "--write") == 1
    rejected = (repository / SIBLING_PATCH).with_suffix(".rej")
    assert f"place what is in {SIBLING_PATCH.replace('.patch', '.rej')}" in capsys.readouterr().out
    assert "@@ -19,0 +20,1 @@\n+            x = self.enter(x)\n" in rejected.read_text()
    assert run("build", repository) == 0
    assert run("check", repository) == 1
    assert "hunks that port or adopt left over" in capsys.readouterr().err


def test_a_function_without_a_known_line_is_still_found(repository, capsys):
    text = SIBLING_UPSTREAM.replace("class Heads", "class ToyAttention").replace(
        "(self, x):\n        scores = Linear(x)\n        return scores",
        "(self, y):\n        return y",
    )
    write_sibling(repository.parent, text)
    assert adopt(repository) == 1
    assert (
        "in ToyAttention.forward: the lines above and below it changed; "
        "look near line 14 of modeling_car.py" in capsys.readouterr().out
    )
    assert text.splitlines()[13].strip() == "def forward(self, y):"


def test_names_that_the_new_file_lacks_are_told(repository, capsys):
    patch = repository / toy.PATCH
    patch.write_text(patch.read_text().replace("self.enter(x)", "self.enter(x, layer, gone)"))
    assert adopt(repository) == 1
    output = capsys.readouterr().out
    assert "2 of 2 hunks carried" in output
    assert "  not defined in the merged file: gone in CarModel.forward\n" in output


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        ("no/such.py", SIBLING, f"no/such.py is not a file of {patching.MANIFEST}"),
        (toy.FILE, toy.VENDORED, f"{toy.VENDORED} is in {patching.MANIFEST} already"),
        (toy.FILE, "modeling_car.py", "modeling_car.py must be PACKAGE/FILE.py"),
        (toy.FILE, "../modeling_car.py", "../modeling_car.py must be PACKAGE/FILE.py"),
        (toy.FILE, "a/b/modeling_car.py", "a/b/modeling_car.py must be PACKAGE/FILE.py"),
        (toy.FILE, "car_causalmm/car.py", f"has no file {toy.NAME}/models/car.py"),
    ],
)
def test_wrong_names_are_refused(repository, capsys, source, target, sentence):
    assert adopt(repository, source=source, target=target) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("upstream", ["elsewhere/modeling_car.py", "/modeling_car.py"])
def test_upstream_must_be_a_file_of_the_distribution(repository, capsys, upstream):
    assert adopt(repository, "--upstream", upstream) == 1
    assert f"has no file {upstream}: name the upstream file" in capsys.readouterr().err


def test_a_patch_that_the_manifest_does_not_name_is_not_overwritten(repository, capsys):
    patching.write_text(repository / SIBLING_PATCH, "mine")
    assert adopt(repository, "--write") == 1
    assert f"{SIBLING_PATCH} exists already" in capsys.readouterr().err
    assert (repository / SIBLING_PATCH).read_text() == "mine"


def test_a_file_without_a_patch_has_nothing_to_adopt(repository, capsys):
    (repository / toy.PATCH).unlink()
    assert adopt(repository) == 1
    assert "has no patch" in capsys.readouterr().err


def test_a_file_that_is_patched_twice_must_be_named_by_its_copy(repository, capsys):
    assert adopt(repository, "--write", target="car_causalmm/modeling_toy.py") == 0
    assert adopt(repository, source=toy.FILE) == 1
    assert "names 2 files" in capsys.readouterr().err
    assert adopt(repository, source=toy.VENDORED) == 0


# -- the real patches --------------------------------------------------------------------------


def replaced(pin: patching.Pin, text: str, every_class: bool) -> str:
    """`text` under names of a model that does not exist: its prefix, or every class of `pin`'s."""
    base = patching.upstream_text(pin)
    prefix = re.search(r"class (\w+)PreTrainedModel\(", base)[1]
    model = pin.package.rpartition(".")[2]
    names = {
        model: "zeta",
        f"configuration_{model}": "configuration_zeta",
        pin.vendored.partition("/")[0]: "zeta_causalmm",
    }
    if every_class:
        found = [node.name for node in ast.parse(base).body if isinstance(node, ast.ClassDef)]
        names |= {name: f"Omega{number}" for number, name in enumerate(found)}
        names[f"{prefix}PreTrainedModel"] = "ZetaPreTrainedModel"

    def new_name(match: re.Match) -> str:
        word = match[0]
        if word in names:
            return names[word]
        if word.startswith(prefix) and not word[len(prefix) :][:1].islower():
            return "Zeta" + word[len(prefix) :]
        return word

    return re.sub(r"\w+", new_name, text)


def reversed_definitions(text: str) -> str:
    """The top-level functions and classes in reverse order, each in the place of another."""
    lines = patching.split_lines(text)
    spans = [
        (min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1, node.end_lineno)
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]
    result, done = [], 0
    for (start, end), (first, last) in zip(spans, reversed(spans), strict=True):
        result += lines[done:start] + lines[first:last]
        done = end
    return patching.join_lines(result + lines[done:])


@pytest.mark.parametrize("every_class", [False, True], ids=["prefix", "every class"])
@pytest.mark.parametrize("pin", PINS, ids=lambda pin: pin.vendored)
def test_other_names_in_another_order_take_the_whole_patch(pin, every_class):
    theirs = reversed_definitions(replaced(pin, patching.upstream_text(pin), every_class))
    expected = reversed_definitions(replaced(pin, patching.patched_text(ROOT, pin), every_class))
    new = patching.Pin(
        **{
            **vars(pin),
            "upstream": "transformers/models/zeta/modeling_zeta.py",
            "vendored": "zeta_causalmm/modeling_zeta.py",
            "patch": "patches/zeta/modeling_zeta.patch",
        }
    )
    port, _ = adopting.adopt_file(ROOT, pin, new, theirs)
    assert not port.conflicts
    assert not port.note
    assert not port.undefined
    assert patching.apply_hunks(theirs, port.hunks) == expected


SIBLINGS = [
    ("qwen2vl_causalmm/modeling_qwen2_vl.py", "qwen2_5_vl"),
    ("qwen2vl_causalmm/modeling_qwen2_vl.py", "qwen3_vl"),
    ("llava_causalmm/modeling_llava.py", "llava_next"),
    ("llava_causalmm/modeling_llama.py", "mistral"),
]


@pytest.mark.parametrize(("source", "model"), SIBLINGS, ids=lambda name: Path(name).stem)
def test_a_hunk_is_carried_to_a_sibling_between_the_lines_it_stood_between(source, model):
    pin = adopting.find_source(ROOT, source)
    new, theirs = adopting.new_pin(ROOT, pin, f"sibling_causalmm/modeling_{model}.py", None)
    port, rename = adopting.adopt_file(ROOT, pin, new, theirs)
    _, hunks = patching.read_patch(ROOT, pin)
    assert len(port.hunks) + len(port.conflicts) == len(hunks)
    assert len(port.hunks) > len(hunks) / 3

    def windows(text: str, of: list[patching.Hunk]) -> list[tuple[str, ...]]:
        """Function, line above, our lines, line below."""
        lines, scopes = patching.split_lines(text), porting.scopes(text)
        return [
            (
                scopes[hunk.at - 1].rpartition(".")[2],
                lines[hunk.at - 1],
                *hunk.added,
                lines[hunk.at + len(hunk.removed)],
            )
            for hunk in of
        ]

    ours = {tuple(map(rename, window)) for window in windows(patching.upstream_text(pin), hunks)}
    carried = windows(theirs, list(port.hunks))
    assert set(carried) <= ours


@pytest.mark.parametrize(("source", "model"), SIBLINGS, ids=lambda name: Path(name).stem)
def test_an_adopted_patch_of_a_sibling_builds_and_no_line_is_lost(tmp_path, source, model):
    shutil.copytree(ROOT / "patches", tmp_path / "patches")
    target = f"sibling_causalmm/modeling_{model}.py"
    adopt(tmp_path, "--place", "--write", source=source, target=target)
    assert run("build", tmp_path) == 0
    compile((tmp_path / target).read_text(), target, "exec")
    _, hunks = patching.read_patch(ROOT, adopting.find_source(ROOT, source))
    files = (tmp_path / "patches" / "sibling").iterdir()
    written = [hunk for file in files for hunk in patching.split_patch(file.read_text())[1]]
    lines = [sorted(len(hunk.added) for hunk in each) for each in (hunks, written)]
    assert lines[0] == lines[1]
