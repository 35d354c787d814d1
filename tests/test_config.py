"""The configuration refuses what is not allowed, says why, and survives a trip to disk."""

import json

import pytest

from causalmm import CausalMMConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "plain"}, "mode='plain': expected one of vision, language, multimodal, joint"),
        (
            {"vision_method": "reverse"},
            "vision_method='reverse': expected one of uniform, reversed",
        ),
        ({"language_method": "shuffle"}, "language_method='shuffle': expected one of uniform"),
        ({"normalization": "none"}, "expected one of visible, released"),
        ({"site": "image"}, "expected one of attention, features"),
        ({"gamma": -0.5}, "gamma=-0.5: expected a number from 0 to 1,000,000"),
        ({"gamma": float("nan")}, "gamma=nan"),
        ({"gamma": float("inf")}, "gamma=inf"),
        ({"gamma_vision": -1.0}, "gamma_vision=-1.0"),
        ({"gamma_language": "1"}, "gamma_language='1'"),
        ({"mode": "joint", "gamma_vision": 1.0}, "mode 'joint' has one branch"),
        ({"epsilon": 1.5}, "epsilon=1.5: expected a number from 0 to 1"),
        ({"epsilon": -0.1}, "epsilon=-0.1"),
        ({"schedule": "falling"}, "schedule='falling': expected one of constant, growing"),
        ({"forgetting": -0.1}, "forgetting=-0.1: expected a number >= 0"),
        ({"forgetting": float("inf")}, "forgetting=inf"),
        ({"confident": 0}, "confident=0: expected a number above 0 and at most 1"),
        ({"confident": 1.5}, "confident=1.5: expected a number above 0 and at most 1"),
        ({"center": "c.pt"}, "center='c.pt': expected a .safetensors file, or none"),
        ({"center_sha256": "ab"}, "center_sha256='ab': expected 64 hexadecimal digits"),
        ({"center_sha256": 64 * "a"}, "expected a center that has it"),
        ({"constant_branch": "image"}, "constant_branch='image': expected one of vision, language"),
        ({"draws": 0}, "draws=0: expected an integer >= 1"),
        ({"draws": True}, "draws=True"),
        ({"seed": 1.5}, "seed=1.5: expected an integer"),
        ({"language_layers": "late"}, "language_layers='late'"),
        ({"language_method": "noise"}, "language_method='noise': expected one of uniform"),
        ({"noise_step": 1000}, "noise_step=1000: expected an integer from 0 to 999"),
        *(
            (
                {"vision_method": "noise"} | {name: value},
                rf"^{name}='{value}': vision method 'noise' changes the pixels .*; expected '\w+'$",
            )
            for name, value in (
                ("vision_layers", "1:"),
                ("site", "features"),
                ("normalization", "released"),
            )
        ),
    ],
)
def test_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        CausalMMConfig(**values)


def test_strengths_follow_the_mode():
    assert CausalMMConfig(gamma=2.0).vision_strength == 2.0
    assert CausalMMConfig(gamma=2.0, gamma_language=0.5).language_strength == 0.5
    assert CausalMMConfig(mode="vision").language_strength == 0.0
    assert CausalMMConfig(mode="language").vision_strength == 0.0
    assert CausalMMConfig(mode="joint").vision_strength == 0.0


def test_round_trip_through_a_folder(tmp_path):
    config = CausalMMConfig(
        mode="language", language_layers=[1, 3], gamma_language=0.25, epsilon=0, seed=-4
    )
    path = config.save_pretrained(tmp_path / "model")
    assert path.name == "causalmm_config.json"
    assert CausalMMConfig.from_pretrained(tmp_path / "model") == config
    assert CausalMMConfig.from_pretrained(path) == config
    assert CausalMMConfig.from_dict(json.loads(path.read_text())) == config
    assert hash(config) == hash(CausalMMConfig.from_dict(config.to_dict()))


def test_missing_keys_take_defaults_and_unknown_ones_are_refused():
    assert CausalMMConfig.from_dict({"gamma": 0.5}) == CausalMMConfig(gamma=0.5)
    with pytest.raises(ValueError, match="unknown setting 'gama': expected one of mode"):
        CausalMMConfig.from_dict({"gama": 0.5})


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no CausalMM configuration"):
        CausalMMConfig.from_pretrained(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        CausalMMConfig.from_pretrained(tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        CausalMMConfig.from_pretrained(tmp_path / "list.json")
