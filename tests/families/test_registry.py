"""A family is declared once; a wrong or double declaration is one sentence."""

from dataclasses import FrozenInstanceError, replace
from importlib.metadata import EntryPoint

import pytest
from family_rows import FAMILIES, row_of

from causalmm.errors import FailureError
from causalmm.families import registry
from causalmm.families.family import lazy_exports
from llava_causalmm.family import FAMILY
from qwen2vl_causalmm.family import FAMILY as QWEN2_VL

COPY = replace(FAMILY, name="llava_copy", other_model_types=(), demo=None)
CLASH = replace(FAMILY, name="llava_copy")
NO_FAMILY = "text"


def declared(monkeypatch, *points):
    """`families` where packages declare these entry points."""
    points = [EntryPoint(name, value, registry.GROUP) for name, value in points]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    return registry.families.__wrapped__()


def test_our_own_come_first_then_the_others_by_name(monkeypatch):
    found = declared(monkeypatch, ("llava_copy", f"{__name__}:COPY"))
    assert list(found) == [*FAMILIES, "llava_copy"]
    assert found["llava"] is FAMILY
    assert found["llava_copy"] is COPY


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("llava_copy", "no_such_module:FAMILY", r"cannot be loaded \(No module named"),
        ("llava_copy", f"{__name__}:MISSING", "cannot be loaded .*has no attribute 'MISSING'"),
        ("llava_copy", f"{__name__}:NO_FAMILY", "is not a Family named 'llava_copy'"),
        ("other", f"{__name__}:COPY", "is not a Family named 'other'"),
        ("llava_copy", f"{__name__}:CLASH", "model_type 'llava_llama' is declared by two families"),
        ("llava", f"{__name__}:FAMILY", "model_type 'llava' is declared by two families"),
    ],
)
def test_a_wrong_entry_point_is_one_sentence(monkeypatch, name, value, sentence):
    with pytest.raises(FailureError, match=sentence) as caught:
        declared(monkeypatch, (name, value))
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "qwen2-vl"}, "name='qwen2-vl': expected a model_type"),
        ({"title": ""}, "title of family llava is empty"),
        ({"model_class": "llava_causalmm.model"}, "expected 'module:attribute'"),
        ({"find_classes": "find"}, "find_classes='find': expected 'module:attribute'"),
        ({"media": frozenset({"video"})}, r"media=\['video'\]: expected 'image'"),
        ({"media": frozenset({"image", "audio"})}, r"media=\['audio', 'image'\]: expected"),
    ],
)
def test_a_declaration_is_checked(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(FAMILY, **changes)
    with pytest.raises(FrozenInstanceError):
        FAMILY.name = "other"


def test_an_unknown_family_is_refused():
    with pytest.raises(
        FailureError, match="unknown family 'blip': expected one of llava, qwen2_vl"
    ):
        registry.find("blip")


def test_what_is_asked_of_all(monkeypatch):
    two = {family.name: family for family in (FAMILY, QWEN2_VL)}
    monkeypatch.setattr(registry, "families", lambda: two)
    assert registry.demos() == ("demo-llava", "demo-qwen2vl")
    assert registry.titles() == "LLaVA or Qwen2-VL"
    assert registry.titles("video") == registry.titles(sized=True) == "Qwen2-VL"
    assert registry.supported() == "LLaVA (llava), Qwen2-VL (qwen2_vl)"


def test_every_family_of_ours_has_a_row():
    assert tuple(registry.families()) == FAMILIES
    assert [row_of(name).family for name in FAMILIES] == list(registry.families().values())
    with pytest.raises(LookupError, match="has no row in tests/family_rows.py: add one"):
        row_of("blip")


@pytest.mark.parametrize("family", FAMILIES)
def test_patched_files_are_those_of_its_package(family):
    files = registry.find(family).patched_files()
    assert files
    assert {path.parent.name for path in files} == {registry.find(family).package}


def test_a_package_gives_its_public_names():
    get = lazy_exports("package", "json:dumps")
    assert get("dumps")([1]) == "[1]"
    with pytest.raises(AttributeError, match="module 'package' has no attribute 'loads'"):
        get("loads")
