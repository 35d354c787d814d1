"""Pages of the site that lie outside docs/, and links that work in the repository and on the site.

mkdocs serves docs/ alone. A file elsewhere in the repository that a page links to comes along under
its own path (README.md is the first page), and links are rewritten from the repository's folders to
the site's. So each link is written once, as a reader of the repository needs it.
Tests: tests/test_docs.py.
"""

import re
from dataclasses import fields
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import TYPE_CHECKING, Any

from causalmm.cli.flags import flag_name
from causalmm.config import CausalMMConfig
from causalmm.counterfactual.methods import METHODS, NOISE
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.presets.registry import PRESETS
from causalmm.serve.options import ServeOptions

if TYPE_CHECKING:  # the tables need no mkdocs
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent
HOME = "README.md"
_DOCS = "docs/"
# ](path) and ](path#anchor); an address has a colon, an anchor of the same page no path.
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_files(files: "Files", config: Any) -> "Files":
    """Add the first page and every file that a page links to, directly or through another page."""
    found = {file.src_uri for file in files}
    pages = [_DOCS + file.src_uri for file in files if file.is_documentation_page()]
    _add(HOME, files, found, pages, config)
    for page in pages:  # grows meanwhile
        for link in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            _add(normpath(join(dirname(page), link)), files, found, pages, config)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its relative links as the site needs them, and its tables."""
    uri = page.file.src_uri
    path = _DOCS + uri if (ROOT / _DOCS / uri).is_file() else uri

    def rewritten(match: re.Match[str]) -> str:
        target = _uri(normpath(join(dirname(path), match[0])))
        return relpath(target, dirname(uri) or ".")

    markdown = _LINK.sub(rewritten, markdown)
    for marker, table in TABLES.items():
        markdown = markdown.replace(marker, table())
    return markdown


def settings_table() -> str:
    """Every setting: a row each."""
    rows = [("field", "flag", "default", "values", "meaning"), ("---",) * 5]
    for each in fields(CausalMMConfig):
        choices = each.metadata["flag"].get("choices", ())
        values = ", ".join(f"`{choice}`" for choice in choices)
        names = (each.name, flag_name(each.name), each.default)
        rows.append((*(f"`{name}`" for name in names), values, each.metadata["help"]))
    return _table(rows)


def serve_table() -> str:
    """Every option of the service: a row each."""
    rows = [("flag", "default", "meaning"), ("---",) * 3]
    for each in fields(ServeOptions):
        if "flag" in each.metadata:
            flag = f"`{flag_name(each.name)} {each.metadata['flag']['metavar']}`"
            shown = "none" if each.default in (None, ()) else f"`{each.default}`"
            rows.append((flag, shown, each.metadata["help"]))
    return _table(rows)


def methods_table() -> str:
    """Every declared method: a row each."""
    rows = [("tower", "method", "weights on visible keys", "draws", "a map", "released", "scopes")]
    rows.append(("---",) * 7)
    for method in METHODS:
        formula = method.formula("visible", method.scopes[0])
        marks = (method.stochastic, formula.builds_a_map, method.released is not None)
        told = ("yes" if mark else "" for mark in marks)
        scopes = ", ".join(method.scopes)
        rows.append((method.tower, f"`{method.name}`", method.summary, *told, scopes))
    rows.append((NOISE.tower, f"`{NOISE.name}`", NOISE.summary, "yes", "", "", ""))
    return _table(rows)


def benchmarks_table() -> str:
    """Every registered benchmark: a row each."""
    rows = [("name", "what is asked", "flags that say which questions"), ("---",) * 3]
    for each in BENCHMARKS.values():
        flags = " ".join(f"`{flag_name(name)}`" for name in each.flags)
        rows.append((f"`{each.name}`", each.title, flags))
    return _table(rows)


def presets_table() -> str:
    """Every preset: a row each, and below what differs from the published method."""
    rows = [("preset", "published in", "branch and adjustment", "settings", "may be changed")]
    rows.append(("---",) * 5)
    notes = []
    for each in PRESETS.values():
        paper = f"[arXiv {each.arxiv}](https://arxiv.org/abs/{each.arxiv})"
        settings = ", ".join(f"`{name}={value!r}`" for name, value in each.settings.items())
        changed = ", ".join(f"`{name}`" for name in each.may_change)
        rows.append((f"`{each.name}`", paper, each.formula, settings, changed))
        needs = f" Needs {each.needs}." if each.needs else ""
        notes.append(f"- **{each.title}** (`{each.name}`): {each.differs}{needs}")
    return "\n".join((_table(rows), "", *notes))


TABLES = {
    "<!-- table of methods -->": methods_table,
    "<!-- table of settings -->": settings_table,
    "<!-- table of benchmarks -->": benchmarks_table,
    "<!-- table of presets -->": presets_table,
    "<!-- table of service options -->": serve_table,
}
"""By the marker that stands for it on a page."""


def _table(rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _add(path: str, files: "Files", found: set[str], pages: list[str], config: Any) -> None:
    uri = _uri(path)
    # What is missing or outside the repository, mkdocs reports as a link that leads nowhere.
    if uri in found or path.startswith("..") or not (ROOT / path).is_file():
        return
    from mkdocs.structure.files import File

    found.add(uri)
    files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    if path.endswith(".md"):
        pages.append(path)


def _uri(path: str) -> str:
    """A file of the repository as the site names it."""
    return path.removeprefix(_DOCS)
