"""Controls come from the declared settings, and hold every configuration unchanged."""

from dataclasses import fields

import pytest

from causalmm import CausalMMConfig
from causalmm.presets.registry import PRESETS

gr = pytest.importorskip("gradio", reason="gradio is not installed: make setup")
controls = pytest.importorskip("causalmm.app.controls")

ODD = {
    "vision_layers": (3, 5),
    "language_layers": "-8:",
    "gamma_vision": 12345.5,
    "confident": 0.12345,
    "epsilon": 0.0,
    "constant_branch": "vision",
    "center": "c.safetensors",
    "center_sha256": "0" * 64,
    "noise_step": 0,
    "seed": -(2**60) - 1,
    "draws": 3,
}


@pytest.mark.parametrize(
    "config",
    [CausalMMConfig(), CausalMMConfig(**ODD), *map(CausalMMConfig.preset, PRESETS)],
    ids=["defaults", "odd", *PRESETS],
)
def test_what_controls_show_is_read_back(config):
    assert controls.configuration(controls.all_shown(config), None) == config


@pytest.fixture(scope="module")
def shown():
    """The components of all settings, by their ids."""
    with gr.Blocks() as blocks:
        for each in controls.FIELDS:
            controls.control(each, CausalMMConfig())
    return {each.elem_id: each for each in blocks.blocks.values()}


@pytest.mark.parametrize("setting", fields(CausalMMConfig), ids=lambda each: each.name)
def test_a_control_says_and_offers_what_is_declared(setting, shown):
    config = CausalMMConfig()
    made, limits = shown[f"setting-{setting.name}"], setting.metadata["limits"]
    said = shown[f"help-{setting.name}"].value if "suffix" in limits else made.info
    assert setting.metadata["help"] in said
    assert made.label == setting.name
    assert made.interactive
    if "choices" in limits:
        offered = [value for _, value in made.choices]
        assert [each for each in offered if each != controls.NONE] == list(limits["choices"])
        assert (controls.NONE in offered) == (setting.default is None)
        for value in offered:
            values = controls.all_shown(config)
            values[controls.FIELDS.index(setting)] = value
            read = controls.settings(values)[setting.name]
            assert read == (value or None)
            assert read is None or setting.metadata["check"](setting.name, read) == value
    if isinstance(made, gr.Slider):
        for value in (made.minimum, made.maximum):
            assert getattr(CausalMMConfig(**{setting.name: value}), setting.name) == value
        with pytest.raises(ValueError, match=setting.name):
            CausalMMConfig(**{setting.name: made.minimum - made.step})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("gamma", "-1", "gamma=-1.0: expected a number from 0 to 1,000,000"),
        ("gamma", "", "gamma='': expected a number from 0 to 1,000,000"),
        ("gamma", "nan", "gamma=nan: expected a number from 0 to 1,000,000"),
        ("gamma_vision", "much", "gamma_vision='much': expected a number from 0 to 1,000,000"),
        ("seed", "1.5", "seed='1.5': expected an integer"),
        ("draws", "0", "draws=0: expected an integer >= 1"),
        ("mode", "plain", "mode='plain': expected one of"),
        ("epsilon", None, "epsilon=None: expected a number from 0 to 1"),
        ("vision_layers", "", "vision_layers='': expected"),
    ],
)
def test_what_is_not_allowed_is_told_by_the_configuration(name, value, sentence):
    values = controls.all_shown(CausalMMConfig())
    values[[each.name for each in controls.FIELDS].index(name)] = value
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        controls.configuration(values, None)
    assert str(refused.value).startswith(sentence)


def test_a_preset_may_be_changed_as_far_as_it_stays_one():
    values = controls.all_shown(CausalMMConfig.preset("vcd"))
    names = [each.name for each in controls.FIELDS]
    values[names.index("noise_step")] = 999
    assert controls.configuration(values, "vcd") == CausalMMConfig.preset("vcd", noise_step=999)
    values[names.index("mode")] = "joint"
    with pytest.raises(ValueError, match="mode='joint': preset 'vcd' has 'vision'"):
        controls.configuration(values, "vcd")


@pytest.mark.parametrize("value", [None, 0, 6, float("nan"), "3"])
def test_a_count_out_of_bounds_is_refused(value):
    with pytest.raises(ValueError, match=r"^picture=.*: expected an integer from 1 to 5$"):
        controls.whole_number(value, "picture", 5)
    assert controls.whole_number(5.0, "picture", 5) == 5
