"""What a command says where a package of an extra is missing. Tests: tests/test_extras.py."""

from importlib.util import find_spec

from causalmm.errors import FailureError

EXTRAS = {
    "app": ("gradio", "matplotlib"),
    "data": ("pyarrow",),
    "figures": ("matplotlib",),
    "serve": ("ray", "fastapi", "pydantic", "prometheus_client", "httpx"),
}
"""By an extra of pyproject.toml, the modules of its packages."""


def missing(extra: str) -> list[str]:
    """Modules of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def how_to_install(what: str, extra: str) -> str:
    """One sentence on what something needs that is missing, and the command that installs it."""
    absent = missing(extra)
    which = "it" if len(absent) == 1 else "them"
    return f'{what} needs {" and ".join(absent)}: install {which} by pip install -e ".[{extra}]"'


def require(what: str, extra: str) -> None:
    """Raise FailureError where a module of an extra is missing; `what` needs it."""
    if missing(extra):
        raise FailureError(how_to_install(what, extra))
