"""What is missing of an extra is told in one sentence, with the extra that pyproject.toml has."""

import re
import tomllib
from pathlib import Path

import pytest

from causalmm import extras
from causalmm.errors import FailureError

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text("utf-8"))
DECLARED = PROJECT["project"]["optional-dependencies"]


@pytest.fixture
def without(monkeypatch):
    def hide(*names):
        found = extras.find_spec
        monkeypatch.setattr(
            extras, "find_spec", lambda name: None if name in names else found(name)
        )

    return hide


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_the_modules_are_those_of_the_declared_packages(extra):
    packages = {re.split(r"[\[<>=~]", each)[0].replace("-", "_") for each in DECLARED[extra]}
    assert set(extras.EXTRAS[extra]) == packages


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_what_is_missing_is_named_with_the_command_that_installs_it(extra, without):
    without(*extras.EXTRAS[extra])
    which = "it" if len(extras.EXTRAS[extra]) == 1 else "them"
    with pytest.raises(FailureError) as error:
        extras.require("drawing", extra)
    names = " and ".join(extras.EXTRAS[extra])
    assert str(error.value) == (
        f'drawing needs {names}: install {which} by pip install -e ".[{extra}]"'
    )


def test_what_is_there_is_needed_no_more():
    extras.require("drawing", "figures")
    assert extras.missing("data") == []
