"""A recipe: one table or figure of a paper, as a YAML file that is checked when it is read.

It says which model, benchmark and data, which rows by which settings and seeds, how answers are
read, and what was published, with its source and how far to trust it. Errors name the file, the key
and what is allowed. Tests: tests/reproduce/test_recipe.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from causalmm.cli.request import SAMPLING_OFF, SETTINGS
from causalmm.config import DTYPES
from causalmm.errors import RequestError, first_line
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.inputs.json_lines import read_bytes

FOLDER = Path(__file__).resolve().parent / "recipes"
SUFFIX = ".yaml"
TRUST = {
    "P": "read in the primary source",
    "S": "second hand, to be checked against the paper before it is quoted",
    "I": "inferred",
}
"""How far a published value may be trusted."""
CONTROLS = ("yes prompt", "yes in doubt")
"""Values of a row's `control`: those of `evaluate --spurious`."""
EACH = "each"
"""Value of a row's layers: a row for each layer by itself."""
_OF_A_ROW = ("preset", *SETTINGS, *SAMPLING_OFF, "max_new_tokens", "control")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A cell of the published table."""

    row: str
    """Of the recipe's rows or `others`."""
    set: str
    """Name of the questions, as in a score: "coco/random", "total"."""
    metric: str
    value: float | None
    """None: not published, or not known."""
    source: str
    trust: str
    """A key of `TRUST`."""
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one table is made with. Read by `read_recipe`, which checks it."""

    name: str
    """That of the file."""
    title: str
    source: str
    """The table and its paper."""
    model: str
    """A hub id or folder."""
    dtype: str
    benchmark: str
    needs: str
    """Which files one must have, in a sentence."""
    data: Mapping[str, Any]
    """The benchmark's flags, by name; files relative to the folder that the user gives."""
    rows: Mapping[str, Mapping[str, Any]]
    """By name: settings, sampling options, a preset, the benchmark's flags or a control."""
    base: tuple[str, ...]
    """Rows that the others are compared with."""
    rules: tuple[str, ...] = ()
    """How answers are read, the first one first; none: by the benchmark's own."""
    metrics: tuple[str, ...] = ()
    """Those that the report shows; none: all."""
    seeds: int = 1
    """Of every row that draws anything, from `seed` on."""
    seed: int = 0
    batch_size: int = 8
    max_new_tokens: int | None = None
    published: tuple[Published, ...] = ()
    others: tuple[str, ...] = ()
    """Rows of the published table that are not run here."""
    unpublished: tuple[str, ...] = ()
    """What the paper does not say and a table depends on."""
    notes: tuple[str, ...] = ()


def names() -> tuple[str, ...]:
    """Of the recipes that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}")))


def find_recipe(name: str) -> Recipe:
    """The recipe of a name, or of a file of one's own.

    Raises RequestError where there is none, or where it is not as it should be.
    """
    if name in names():
        return read_recipe(FOLDER / f"{name}{SUFFIX}")
    if Path(name).suffix in (SUFFIX, ".yml"):
        return read_recipe(Path(name))
    raise RequestError(f"unknown recipe {name!r}: expected one of {', '.join(names())}, or a file")


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file. Raises RequestError that names file, key and what is allowed."""
    try:
        given = yaml.safe_load(read_bytes(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not YAML ({first_line(error)})") from error
    return make_recipe(given, str(path), path.stem)


def make_recipe(given: Any, where: str, name: str) -> Recipe:
    """The recipe of what a YAML file holds; `where` begins the sentences about it."""
    if not isinstance(given, dict):
        raise RequestError(f"{where}: expected keys and values, found {type(given).__name__}")
    values = {"name": name, **_checked(given, where, Recipe, ignored=("name",))}
    recipe = Recipe(**values)
    _check_rows(recipe, where)
    return recipe


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """What `make_recipe` reads, for JSON."""
    values = {each.name: getattr(recipe, each.name) for each in fields(recipe)}
    published = [vars(each) for each in recipe.published]
    del values["name"]
    return values | {"published": published}


def _checked(
    given: Mapping[Any, Any], where: str, kind: type, ignored: Sequence[str] = ()
) -> dict[str, Any]:
    """The values of a dataclass's fields, in the types that it says."""
    known = {each.name: each for each in fields(kind) if each.name not in ignored}
    if unknown := [key for key in given if key not in known]:
        raise RequestError(
            f"{where}: unknown key {unknown[0]!r}: expected one of {', '.join(known)}"
        )
    missing = [
        name
        for name, each in known.items()
        if name not in given and each.default is MISSING and each.default_factory is MISSING
    ]
    if missing:
        raise RequestError(f"{where} has no {missing[0]}")
    return {name: _read(where, name, value) for name, value in given.items()}


def _read(where: str, key: str, value: Any) -> Any:
    check, expected = _KEYS.get(key, (_text, "text"))
    read = check(where, value) if check in (_published_cells,) else check(value)
    if read is None and not (value is None and expected.endswith("or null")):
        raise RequestError(f"{where}: {key}: {value!r}: expected {expected}")
    return read


def _text(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() else None


def _texts(value: Any) -> tuple[str, ...] | None:
    texts = [_text(each) for each in value] if isinstance(value, list | tuple) else [None]
    return None if None in texts else tuple(texts)


def _count(value: Any) -> int | None:
    right = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if right else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _one_of(allowed: Sequence[str]) -> Callable[[Any], str | None]:
    return lambda value: value if isinstance(value, str) and value in allowed else None


def _flags(value: Any) -> dict[str, Any] | None:
    named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return value if named else None


def _rows(value: Any) -> dict[str, dict[str, Any]] | None:
    if not isinstance(value, dict) or not value:
        return None
    rows = {str(name): _flags({} if row is None else row) for name, row in value.items()}
    return None if None in rows.values() else rows


def _published_cells(where: str, value: Any) -> tuple[Published, ...] | None:
    if not isinstance(value, list | tuple) or not all(isinstance(each, dict) for each in value):
        return None
    return tuple(
        Published(**_checked(each, f"{where}: published cell {number}", Published))
        for number, each in enumerate(value, 1)
    )


_KEYS: dict[str, tuple[Any, str]] = {
    "dtype": (_one_of(DTYPES), f"one of {', '.join(DTYPES)}"),
    "benchmark": (_one_of(tuple(BENCHMARKS)), f"one of {', '.join(BENCHMARKS)}"),
    "trust": (_one_of(tuple(TRUST)), f"one of {', '.join(TRUST)}"),
    "data": (_flags, "the benchmark's flags and their values"),
    "rows": (_rows, "names of rows, each with its settings"),
    "published": (_published_cells, "a list of cells"),
    "value": (_number, "a number or null"),
    "note": (_text, "text or null"),
    "max_new_tokens": (_count, "a whole number above 0 or null"),
    "seed": (_integer, "a whole number"),
    **dict.fromkeys(("seeds", "batch_size"), (_count, "a whole number above 0")),
    **dict.fromkeys(
        ("base", "rules", "metrics", "others", "unpublished", "notes"), (_texts, "a list of texts")
    ),
}
"""How the value of a key is read (None: it is not right), and what is expected. Others are text."""


def _check_rows(recipe: Recipe, where: str) -> None:
    """Raise RequestError for what no single value shows: unknown names, settings that clash."""
    of_benchmark = BENCHMARKS[recipe.benchmark].flags
    for key in recipe.data:
        if key not in of_benchmark:
            raise RequestError(
                f"{where}: data: unknown flag {key!r}: {recipe.benchmark} has "
                f"{', '.join(of_benchmark)}"
            )
    allowed = (*_OF_A_ROW, *of_benchmark)
    for name, row in recipe.rows.items():
        for key, value in row.items():
            if key not in allowed:
                raise RequestError(
                    f"{where}: rows: {name}: unknown setting {key!r}: expected one of "
                    f"{', '.join(allowed)}"
                )
            if key == "control" and value not in CONTROLS:
                raise RequestError(
                    f"{where}: rows: {name}: control: {value!r}: expected one of "
                    f"{', '.join(CONTROLS)}"
                )
            # YAML reads 10:13 as a number to the base of 60.
            if key.endswith("_layers") and not isinstance(value, str | list):
                raise RequestError(
                    f'{where}: rows: {name}: {key}: {value!r}: write layers in quotes, as "10:13"'
                )
    for name in recipe.base:
        if name not in recipe.rows:
            raise RequestError(
                f"{where}: base: {name!r}: expected one of the rows {', '.join(recipe.rows)}"
            )
    known = (*recipe.rows, *recipe.others)
    for cell in recipe.published:
        if cell.row not in known:
            raise RequestError(
                f"{where}: published: row {cell.row!r}: expected one of the rows or others "
                f"{', '.join(known)}"
            )
