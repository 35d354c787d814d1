"""`--preset` in commands, lmms-eval's arguments and grids: what it replaces and what is told."""

import json

import pytest
from family_rows import FAMILIES, TWO_FAMILIES
from PIL import Image
from tiny_checkpoints import save_checkpoint

from causalmm import CausalMMConfig
from causalmm.cli import generate
from causalmm.cli.flags import parse_args
from causalmm.cli.request import find_model
from causalmm.errors import RequestError
from causalmm.evaluation.run_record import decoding_settings
from causalmm.evaluation.variants import controls, grid
from causalmm.lmms_eval.arguments import find_request, read_arguments

VCD = CausalMMConfig.preset("vcd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image, a configuration and a checkpoint of each family that has its own, by its name."""
    folder = tmp_path_factory.mktemp("preset")
    for family in FAMILIES:
        save_checkpoint(family, folder / family)
        CausalMMConfig(mode="joint", draws=3).save_pretrained(folder / family)
    Image.radial_gradient("L").resize((60, 40)).save(folder / "image.png")
    CausalMMConfig(mode="language", gamma=4.0).save_pretrained(folder / "other")
    return folder


@pytest.fixture
def asked(folder):
    def ask(*flags):
        given = ["--image", "i", "--prompt", "p", "--model", folder / "llava", *flags]
        return find_model(parse_args([str(each) for each in given]))

    return ask


def test_flags_before_the_preset_before_a_file_before_the_checkpoint(asked, folder, capfd):
    file = ("--config", folder / "other")
    assert asked().config == CausalMMConfig(mode="joint", draws=3)
    assert asked(*file).config == CausalMMConfig(mode="language", gamma=4.0)
    assert asked("--preset", "vcd").config == VCD
    assert capfd.readouterr().err == ""
    assert asked(*file, "--preset", "vcd").config == VCD
    said = capfd.readouterr().err
    assert said == f"--preset vcd takes the place of the settings in {folder / 'other'}\n"
    changed = asked("--preset", "vcd", "--gamma", "0.5", "--noise-step", "999")
    assert changed.config == CausalMMConfig.preset("vcd", gamma=0.5, noise_step=999)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--preset", "vdc"], "argument --preset: invalid choice: 'vdc' (choose from "),
        (["--preset", "vcd", "--mode", "joint"], "mode='joint': preset 'vcd' has 'vision'; it may"),
        (["--preset", "vcd", "--mode", "plain"], "--preset and --mode plain exclude each other"),
        (["--preset", "vcd", "--gamma", "-1"], "gamma=-1.0: expected a number"),
        (
            ["--preset", "causalmm-released"],
            "preset 'causalmm-released' needs a model with one vision feature layer (LLaVA, LLaVA",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(folder, capfd, flags, sentence):
    given = ["--image", folder / "image.png", "--prompt", "what ?", "--model", folder / "qwen2_vl"]
    assert generate.main([str(each) for each in [*given, *flags]]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"error: {sentence}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("family", TWO_FAMILIES)
def test_an_answer_says_its_preset(folder, capfd, family):
    given = ["--image", folder / "image.png", "--prompt", "what ?", "--model", folder / family]
    given += ["--max-new-tokens", "3", "--json"]

    def answer(*flags):
        assert generate.main([str(each) for each in [*given, *flags]]) == 0
        return json.loads(capfd.readouterr().out)

    found = answer("--preset", "vcd", "--seed", "5")
    assert found["preset"] == {"name": "vcd", "changed": {"seed": 5}}
    by_hand = answer("--config", folder / "other", "--mode", "vision", "--vision-method", "noise",
                     "--gamma", "1", "--seed", "5")  # fmt: skip
    assert by_hand["preset"] is None
    for name in ("answer", "tokens", "config"):
        assert found[name] == by_hand[name]


def test_a_record_says_its_preset(asked):
    request = asked("--preset", "vcd", "--gamma", "2")
    recorded = [decoding_settings(each, 1)["preset"] for each in controls(request).values()]
    masked, chosen = ({"name": "vcd", "changed": {"gamma": gamma}} for gamma in (0.0, 2.0))
    assert recorded == [None, None, masked, chosen, chosen]
    assert decoding_settings(asked(), 1)["preset"] is None


def test_a_grid_of_presets(asked, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("- {preset: [vcd, causalmm], gamma: [0.5, 1]}\n- {gamma: 2}\n- {mode: plain}\n")
    found = grid(asked("--epsilon", "0"), file)
    assert {name: each.preset for name, each in found.items()} == {
        "preset=vcd,gamma=0.5": "vcd",
        "preset=vcd,gamma=1": "vcd",
        "preset=causalmm,gamma=0.5": "causalmm",
        "preset=causalmm,gamma=1": "causalmm",
        "gamma=2": None,
        "mode=plain": None,
    }
    configs = {name: each.config for name, each in found.items()}
    # A preset takes the place of the checkpoint's settings, and not of flags.
    assert configs["preset=vcd,gamma=0.5"] == CausalMMConfig.preset("vcd", gamma=0.5, epsilon=0)
    assert configs["gamma=2"] == CausalMMConfig(mode="joint", draws=3, gamma=2, epsilon=0)
    assert configs["mode=plain"] is None


def test_a_grid_over_a_preset(asked, tmp_path):
    request, file = asked("--preset", "vcd", "--epsilon", "0"), tmp_path / "grid.yaml"
    file.write_text("noise_step: [500, 999]\n")
    found = grid(request, file)
    assert [each.preset for each in found.values()] == ["vcd", "vcd"]
    assert found["noise_step=999"].config == CausalMMConfig.preset("vcd", epsilon=0, noise_step=999)
    for text, sentence in (
        ("vision_method: [noise, random]", "vision_method='random': preset 'vcd' has 'noise'"),
        ("preset: vdc", "preset='vdc': expected one of causalmm"),
        ("prest: vcd", "unknown setting 'prest': expected one of preset, mode"),
    ):
        file.write_text(text)
        with pytest.raises(RequestError, match=sentence):
            grid(request, file)


def test_lmms_eval_takes_a_preset(folder):
    arguments = {"pretrained": str(folder / "llava"), "preset": "vcd", "gamma": 0.5}
    request = find_request(read_arguments(arguments), "llava")
    assert request.config == CausalMMConfig.preset("vcd", gamma=0.5)
    with pytest.raises(RequestError, match="model argument --preset: invalid choice: 'vdc'"):
        read_arguments(arguments | {"preset": "vdc"})
