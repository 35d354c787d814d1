"""What README.md and docs/ say is there: links, settings, commands, numbers.

Only one test needs mkdocs, which `make docs` installs: it builds the site.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from family_rows import FAMILIES
from tiny_models import model_pair

import mkdocs_hooks
from causalmm import CausalMMConfig
from causalmm.__main__ import COMMANDS
from causalmm.cli.flags import flag_name
from causalmm.counterfactual.methods import METHODS, NOISE
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.families.registry import families
from causalmm.lmms_eval.arguments import model_names
from causalmm.presets.registry import PRESETS
from causalmm.serve.options import ServeOptions

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "*/*.md")
    for path in ROOT.glob(pattern)
    if not path.relative_to(ROOT).parts[0].startswith((".", "site", "runs"))
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# -- links -------------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """Of the headings of a page, as web views of repositories and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(page)), re.M)
    words = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"\s", "-", each) for each in words}


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(page)))


def broken(page: str) -> Iterator[str]:
    for link in links(page):
        address = urlsplit(link)
        if address.scheme:
            continue
        target = ((ROOT / page).parent / address.path).resolve() if address.path else ROOT / page
        # A folder has a page in web views of the repository, and none on the site.
        if not target.is_file() or not target.is_relative_to(ROOT):
            yield f"{page}: {link}"
        elif address.fragment and address.fragment not in anchors(
            target.relative_to(ROOT).as_posix()
        ):
            yield f"{page}: {link} names no heading"


def test_there_are_pages_with_links():
    assert {"README.md", "CONTRIBUTING.md", "docs/quickstart.md", "patches/README.md"} <= {*PAGES}
    assert len(links("README.md")) > 20
    assert "the-method-in-ten-lines" in anchors("docs/how-it-works.md")


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    assert not list(broken(page))


def test_the_readme_is_short_and_leads_to_every_page():
    assert read("README.md").count("\n") <= 150
    linked = {link.partition("#")[0] for link in links("README.md")}
    assert {page for page in PAGES if page != "README.md"} <= linked


def test_the_site_has_every_page_in_its_navigation():
    def named(entry):
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [page for part in parts for page in named(part)]

    pages = named(yaml.safe_load(read("mkdocs.yml"))["nav"])
    assert sorted(pages) == sorted(page.removeprefix("docs/") for page in PAGES)


# -- families -----------------------------------------------------------------------------------


def tables(page: str) -> list[list[list[str]]]:
    """Rows of cells, of each table of a page."""
    found = re.findall(r"(?:^\|.*\n)+", read(page), re.M)
    return [[line.strip("| ").split(" | ") for line in table.splitlines()] for table in found]


def support() -> tuple[list[str], dict[str, list[str]]]:
    """The families in the order of the matrix's columns, and its cells by feature."""
    _, matrix, *_ = tables("docs/families.md")
    rows = {feature: cells for feature, *cells in matrix[2:]}
    return [name.strip("`") for name in rows["`model_type`"]], rows


def test_every_family_has_its_row():
    listed = {kind.strip("`"): cells for _, kind, *cells in tables("docs/families.md")[0][2:]}
    assert listed.keys() == families().keys()
    for family in families().values():
        called, environment = listed[family.name]
        name = family.model_class.partition(":")[2]
        assert called == f"`{family.package}.{name}`"
        assert (ROOT / environment.strip("`")).is_file()


def test_the_support_matrix_says_what_is_declared():
    names, rows = support()
    assert sorted(names) == sorted(families())
    declared = [families()[name] for name in names]
    demos = [each.demo for each in declared]
    assert rows["video"] == ["yes" if "video" in each.media else "no" for each in declared]
    sized = ["yes" if each.sized_pictures else "no" for each in declared]
    assert rows["`--min-pixels`, `--max-pixels`"] == sized
    assert rows["lmms-eval"] == [f"`{model_names()[name]}`" for name in names]
    told = rows["[demonstration model](demo-models.md) in the package"]
    assert told == [f"`{demo}`" if demo else "no" for demo in demos]
    for shape in rows["[benchmark](../benchmarks/README.md) in a published shape"]:
        assert (ROOT / "benchmarks" / "presets" / f"{shape.strip('`')}.json").is_file()
    named = [cells[1].strip("`") for cells in tables("README.md")[0][2:]]
    assert named == [each.package for each in declared]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_support_matrix_says_what_towers_have(family):
    names, rows = support()
    column, towers = names.index(family), model_pair(family)[0].causalmm_towers()
    assert (rows["site `features`"][column] == "yes") == towers.features_site
    released = rows["[preset](presets.md) `causalmm-released`"][column]
    assert (released == "yes") == towers.features_site
    full = rows["default vision layers `full`"][column]
    assert (full == "all") == (towers.full_vision_layers is None)


# -- settings ----------------------------------------------------------------------------------


def test_the_site_shows_every_setting():
    assert read("docs/settings.md").count("<!-- table of settings -->") == 1
    rows = mkdocs_hooks.settings_table().splitlines()[2:]
    assert len(rows) == len(fields(CausalMMConfig))
    for row, field in zip(rows, fields(CausalMMConfig), strict=True):
        name, flag, default, values, meaning = row.strip("| ").split(" | ")
        assert name == f"`{field.name}`"
        assert flag == f"`--{field.name.replace('_', '-')}`"
        assert default == f"`{field.default}`"
        assert len(meaning) > 10
        with pytest.raises(ValueError, match=field.name) as refused:
            CausalMMConfig(**{field.name: "?"})
        found = re.search(r"expected one of (.+)", str(refused.value))
        for choice in found[1].split(", ") if found else ():
            assert f"`{choice}`" in values


def test_the_site_shows_every_declared_method():
    assert read("docs/methods.md").count("<!-- table of methods -->") == 1
    rows = mkdocs_hooks.methods_table().splitlines()[2:]
    for row, method in zip(rows, (*METHODS, NOISE), strict=True):
        assert row.startswith(f"| {method.tower} | `{method.name}` | {method.summary} |")


def test_the_site_shows_every_registered_benchmark():
    assert read("docs/evaluation.md").count("<!-- table of benchmarks -->") == 1
    rows = mkdocs_hooks.benchmarks_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(BENCHMARKS)


def test_the_site_shows_every_preset():
    assert read("docs/presets.md").count("<!-- table of presets -->") == 1
    shown = mkdocs_hooks.presets_table().splitlines()
    assert [row.split("`")[1] for row in shown[2 : 2 + len(PRESETS)]] == list(PRESETS)
    for note, preset in zip(shown[-len(PRESETS) :], PRESETS.values(), strict=True):
        assert note.startswith(f"- **{preset.title}** (`{preset.name}`): ")
        assert preset.needs in note


# -- walks through the code -----------------------------------------------------------------------


def test_a_walk_names_at_most_eight_places_that_exist():
    page = read("docs/how-it-works.md")
    walks = [section for section in page.split("\n## ") if section.startswith("From a ")]
    assert len(walks) == 2
    for walk in walks:
        places = re.findall(r"^(\d)\. \[`(\w+)`\]\(\.\./([^)]+)\)", walk, flags=re.MULTILINE)
        assert [int(number) for number, _, _ in places] == list(range(1, len(places) + 1))
        assert 4 <= len(places) <= 8
        for _, name, path in places:
            declared = rf"^\+?\s*(def {name}\(|{name}[:=\s])"
            assert re.search(declared, read(path), flags=re.MULTILINE), f"{path}: {name}"


# -- commands and numbers ----------------------------------------------------------------------


def commands() -> list[tuple[str, list[str]]]:
    """Page and words of every command of ours in a block of shell."""
    found = []
    for page in PAGES:
        for language, text in FENCE.findall(read(page)):
            if language != "sh":
                continue
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["causalmm"]:
                    found.append((page, words[1:]))
                at = [n for n, word in enumerate(words) if re.match(r"(scripts|benchmarks)/", word)]
                if at and words[0] in ("python", "accelerate"):
                    found.append((page, words[at[0] :]))
    return found


def test_commands_name_scripts_and_flags_that_are_there():
    asked = commands()
    assert len(asked) > 20
    folders = ("causalmm", "scripts", "benchmarks")
    sources = "\n".join(
        path.read_text("utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py")
    )
    # Flags of settings are made from the names of the fields.
    known = set(re.findall(r'"(--[a-z][a-z-]*)"', sources)) | {
        f"--{name.replace('_', '-')}" for name in re.findall(r'"([a-z_]+)"', sources)
    }
    known |= {flag_name(field.name) for field in fields(ServeOptions)}
    wrong = [
        f"{page}: {word}"
        for page, (script, *words) in asked
        for word in words
        if word.startswith("--") and word not in (*known, "--")
    ]
    assert not wrong
    assert not [
        f"{page}: {script}"
        for page, (script, *_) in asked
        if script not in COMMANDS and not (ROOT / script).is_file()
    ]


def test_the_number_of_patched_lines_is_right():
    said = int(re.search(r"only our lines: (\d+) over", read("docs/how-it-works.md"))[1])
    added = {}
    for path in ROOT.glob("patches/*/*.patch"):
        lines = path.read_text("utf-8").splitlines()
        package = f"{path.parent.name}_causalmm"
        count = sum(bool(re.match(r"\+(?!\+\+ )", line)) for line in lines)
        added[package] = added.get(package, 0) + count
    assert said == sum(added.values())
    told = re.search(r"only our lines: .*?\(([^)]*)\)", read("docs/how-it-works.md"), re.DOTALL)[1]
    numbers = dict(re.findall(r"(\S+) (\d+)", told))
    assert {name: int(count) for name, count in numbers.items()} == {
        family.title: added[family.package] for family in families().values()
    }


def test_ratios_on_the_page_of_costs_are_those_of_the_benchmarks():
    ratios = re.findall(r"\d\.\d\dx", read("docs/costs.md"))
    assert len(ratios) > 10
    recorded = read("benchmarks/README.md")
    assert not [each for each in ratios if each not in recorded]


# -- credits -----------------------------------------------------------------------------------


def test_the_citations_agree():
    citation = yaml.safe_load(read("CITATION.cff"))
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    paper = citation["preferred-citation"]
    authors = [f"{each['given-names']} {each['family-names']}" for each in paper["authors"]]
    reversed_names = [f"{each['family-names']}, {each['given-names']}" for each in paper["authors"]]
    notice, readme = (" ".join(read(name).split()) for name in ("NOTICE", "README.md"))
    assert ", ".join(authors) in notice
    assert paper["title"] in notice
    assert f"{{{paper['title']}}}" in readme
    assert f"{{{' and '.join(reversed_names)}}}" in readme
    assert str(paper["year"]) in notice
    assert paper["url"] in readme


# -- the site ----------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed")
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) == len(PAGES) + 1  # and the one for what is not found
    loaded = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
        r"|<link\b(?![^>]*\brel=[\"']?canonical)[^>]*\bhref=[\"']?(?:https?:)?//"
        r"|class=[\"']?mermaid"
    )
    assert not [page.name for page in pages if loaded.search(page.read_text("utf-8"))]


def test_the_site_is_neither_tracked_nor_packaged():
    config = yaml.safe_load(read("mkdocs.yml"))
    assert f"/{config.get('site_dir', 'site')}/" in read(".gitignore").splitlines()
    wheel = tomllib.loads(read("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert not [each for each in wheel["packages"] if each.startswith(("docs", "site"))]
