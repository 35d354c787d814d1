"""Presets are valid settings, each in a file of its own, and stay what they are when changed."""

from dataclasses import fields
from pathlib import Path

import pytest

from causalmm import CausalMMConfig, presets
from causalmm.decoding.plan import Towers, build_plan
from causalmm.presets.preset import Preset
from causalmm.presets.registry import PRESETS, find

DEEP = Towers(vision_layers=6, language_layers=8, language_heads=4, features_site=True)
NAMES = {field.name for field in fields(CausalMMConfig)}
EVERY = pytest.mark.parametrize("preset", PRESETS.values(), ids=str)


def test_every_file_is_registered():
    folder = Path(presets.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "preset", "registry"}
    assert {name.replace("-", "_") for name in PRESETS} == files


@EVERY
def test_a_preset_is_a_plan(preset: Preset):
    config = CausalMMConfig.preset(preset.name)
    assert {name: getattr(config, name) for name in preset.settings} == preset.settings
    others = NAMES - preset.settings.keys()
    assert all(getattr(config, name) == getattr(CausalMMConfig(), name) for name in others)
    preset.check_model(DEEP)
    assert build_plan(config, DEEP).branches > 1
    assert "seed" in preset.may_change
    assert set(preset.may_change) <= NAMES
    assert preset.title
    assert preset.formula
    assert preset.differs.endswith(".")


@EVERY
def test_what_may_be_changed_is(preset: Preset):
    config = CausalMMConfig.preset(preset.name, seed=7, epsilon=0.25)
    assert (config.seed, config.epsilon) == (7, 0.25)


@EVERY
def test_a_branch_of_another_method_is_refused(preset: Preset):
    own = CausalMMConfig.preset(preset.name)
    other = {"mode": "joint" if own.mode != "joint" else "vision"}
    with pytest.raises(ValueError, match=f"mode='joint': preset '{preset.name}' has '{own.mode}'"):
        CausalMMConfig.preset(preset.name, **other)
    # The same again contradicts nothing.
    assert CausalMMConfig.preset(preset.name, mode=own.mode) == own


def test_any_preset_may_be_centered():
    for name in PRESETS:
        assert CausalMMConfig.preset(name, center="c.safetensors").center == "c.safetensors"


def test_a_setting_at_its_default_is_fixed_too():
    with pytest.raises(ValueError, match="^language_method='uniform': preset 'vcd' has 'random'; "):
        CausalMMConfig.preset("vcd", language_method="uniform")


def test_an_unknown_name():
    with pytest.raises(ValueError, match="preset='vdc': expected one of causalmm, "):
        CausalMMConfig.preset("vdc")


def test_a_model_that_lacks_what_is_needed():
    shallow = Towers(vision_layers=6, language_layers=8, language_heads=4)
    with pytest.raises(ValueError, match="'causalmm-released' needs a model with one vision"):
        find("causalmm-released").check_model(shallow)
    deeper = Preset(
        name="x", title="X", arxiv="1", formula="l", settings={}, may_change=(), differs="",
        least_language_layers=9,
    )  # fmt: skip
    with pytest.raises(ValueError, match="^preset 'x' needs a decoder of at least 9 layers$"):
        deeper.check_model(shallow)
