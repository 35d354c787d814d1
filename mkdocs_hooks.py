"""Pages of the site that lie outside docs/, and links that work in the repository and on the site.

mkdocs serves docs/ alone. A file elsewhere in the repository that a page links to comes along under
its own path (README.md is the first page), and links are rewritten from the repository's folders to
the site's. So each link is written once, as a reader of the repository needs it.
Tests: tests/test_docs.py.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

from causalmm.counterfactual.methods import METHODS

ROOT = Path(__file__).resolve().parent
HOME = "README.md"
TABLE = "<!-- table of methods -->"
_DOCS = "docs/"
# ](path) and ](path#anchor); an address has a colon, an anchor of the same page no path.
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add the first page and every file that a page links to, directly or through another page."""
    found = {file.src_uri for file in files}
    pages = [_DOCS + file.src_uri for file in files if file.is_documentation_page()]
    _add(HOME, files, found, pages, config)
    for page in pages:  # grows meanwhile
        for link in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            _add(normpath(join(dirname(page), link)), files, found, pages, config)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its relative links as the site needs them, and the table of methods."""
    uri = page.file.src_uri
    path = _DOCS + uri if (ROOT / _DOCS / uri).is_file() else uri

    def rewritten(match: re.Match[str]) -> str:
        target = _uri(normpath(join(dirname(path), match[0])))
        return relpath(target, dirname(uri) or ".")

    return _LINK.sub(rewritten, markdown).replace(TABLE, methods_table())


def methods_table() -> str:
    """Every declared method: a row each."""
    rows = ["| tower | method | weights on visible keys | draws | a map | released |"]
    rows.append("|---|---|---|---|---|---|")
    for method in METHODS:
        marks = (method.stochastic, method.visible.builds_a_map, method.released is not None)
        told = ("yes" if mark else "" for mark in marks)
        cells = (method.tower, f"`{method.name}`", method.summary, *told)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _add(path: str, files: Files, found: set[str], pages: list[str], config: Any) -> None:
    uri = _uri(path)
    # What is missing or outside the repository, mkdocs reports as a link that leads nowhere.
    if uri in found or path.startswith("..") or not (ROOT / path).is_file():
        return
    found.add(uri)
    files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    if path.endswith(".md"):
        pages.append(path)


def _uri(path: str) -> str:
    """A file of the repository as the site names it."""
    return path.removeprefix(_DOCS)
