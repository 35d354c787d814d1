"""Which families there are: this project's own, and those that installed packages bring.

A package brings one by an entry point of the group `causalmm.families`, its name the family's and
its value "module:attribute" of the declaration. Our own are listed here, so that they are found in
a checkout that is not installed too. Nothing here loads torch. Tests:
tests/families/test_registry.py and tests/families/test_outside_family.py.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from causalmm.errors import FailureError, first_line
from causalmm.families.family import Family, load_reference

GROUP = "causalmm.families"
OWN = (
    "llava_causalmm.family:FAMILY",
    "qwen2vl_causalmm.family:FAMILY",
    "qwen2_5vl_causalmm.family:FAMILY",
    "llavanext_causalmm.family:FAMILY",
    "qwen3vl_causalmm.family:FAMILY",
)


@cache
def families() -> dict[str, Family]:
    """Every family by its name: our own, then the others sorted by the names of entry points.

    Raises FailureError where an entry point does not load or a family is declared twice.
    """
    found: dict[str, Family] = {}
    known: dict[str, str] = {}  # by model_type: who declares it
    others = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    declared = [(reference, load_reference(reference)) for reference in OWN]
    for where, family in [*declared, *((point.value, _load(point)) for point in others)]:
        for kind in family.model_types:
            if kind in known:
                raise FailureError(
                    f"model_type {kind!r} is declared by two families, {known[kind]} and {where}: "
                    "uninstall the package of one"
                )
            known[kind] = where
        found[family.name] = family
    return found


def find(name: str) -> Family:
    """The family of this name. Raises FailureError for one that is not declared."""
    if (family := families().get(name)) is None:
        raise FailureError(f"unknown family {name!r}: expected one of {', '.join(families())}")
    return family


def demos() -> tuple[str, ...]:
    """The names of the packaged demonstration models; the first is the default model."""
    return tuple(family.demo for family in families().values() if family.demo is not None)


def titles(medium: str | None = None, *, sized: bool = False) -> str:
    """The titles of the families, of those that read a medium or have `sized_pictures` if asked
    so, as a text such as "LLaVA or Qwen2-VL"."""
    return " or ".join(
        family.title
        for family in families().values()
        if (medium is None or medium in family.media) and family.sized_pictures >= sized
    )


def supported() -> str:
    """Every family's title and name, such as "LLaVA (llava), Qwen2-VL (qwen2_vl)"."""
    return ", ".join(f"{family.title} ({family.name})" for family in families().values())


def _load(point: EntryPoint) -> Family:
    """What an entry point names. Any package may have declared it, so anything may go wrong."""
    where = f"entry point {point.name} = {point.value} of group {GROUP}"
    try:
        family = point.load()
    except Exception as error:
        raise FailureError(
            f"{where} cannot be loaded ({first_line(error)}): mend or uninstall its package"
        ) from error
    if not isinstance(family, Family) or family.name != point.name:
        raise FailureError(f"{where} is not a Family named {point.name!r}")
    return family
