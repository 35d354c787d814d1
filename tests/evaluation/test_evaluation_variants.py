"""Controls and grids: which ways of answering there are, and what their folders are called."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from causalmm import CausalMMConfig
from causalmm.cli.request import Request
from causalmm.errors import RequestError
from causalmm.evaluation.answers_file import CONTROLS
from causalmm.evaluation.variants import controls, grid

GREEDY = {"do_sample": False}
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 1.0, "top_k": 0}


def request(config=None, sampling=GREEDY, plain=False):
    config = config or CausalMMConfig()
    return Request(
        model="m",
        source="m",
        family="llava",
        config=None if plain else config,
        messages=[],
        batch=None,
        sampling=sampling,
        seed=config.seed,
        max_new_tokens=3,
    )


@pytest.fixture
def table(tmp_path):
    def write(text):
        (tmp_path / "grid.yaml").write_text(text)
        return tmp_path / "grid.yaml"

    return write


def names(request, file):
    return list(grid(request, file))


def test_controls_differ_in_what_their_names_say():
    config = CausalMMConfig(gamma_vision=2, epsilon=0.6, seed=9)
    found = controls(request(config, SAMPLED))
    assert tuple(found) == CONTROLS
    assert [each.config for each in found.values()] == [
        *(None, None, CausalMMConfig(gamma=0, epsilon=0.6, seed=9), config, config)
    ]
    assert [each.sampling for each in found.values()] == [
        *(GREEDY, SAMPLED, SAMPLED, GREEDY, SAMPLED)
    ]
    assert {each.seed for each in found.values()} == {9}
    # Without a word on sampling, it is that of the model's own distribution.
    [sampling] = {
        tuple(one.sampling.items()) for name, one in controls(request()).items() if "+s" in name
    }
    assert dict(sampling) == {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


def test_a_grid_with_a_center_and_without_one(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.safetensors").write_bytes(b"something")
    digest = CausalMMConfig(center="c.safetensors").read_center()[1]
    own = CausalMMConfig(center="another.safetensors", center_sha256="0" * 64)
    found = grid(request(own), table("center: [none, c.safetensors]\n"))
    assert {name: each.config for name, each in found.items()} == {
        "center=none": CausalMMConfig(),
        "center=c.safetensors": CausalMMConfig(center="c.safetensors", center_sha256=digest),
    }
    with pytest.raises(RequestError, match=r"grid.yaml: center='nowhere.safetensors': the file"):
        grid(request(), table("center: nowhere.safetensors\n"))


def test_a_grid_is_every_combination_over_what_was_chosen(table):
    base = request(CausalMMConfig(gamma_vision=3, draws=2))
    file = table("gamma: [0.5, 1]\nlanguage_layers: ['half:', '10:20', [1, 2]]\nmode: language\n")
    found = grid(base, file)
    assert list(found) == [
        f"mode=language,language_layers={layers},gamma={gamma}"
        for gamma in ("0.5", "1")
        for layers in ("half:", "10:20", "1+2")
    ]
    assert list(found.values())[2] == base._replace(
        config=CausalMMConfig(mode="language", gamma=0.5, language_layers=(1, 2), draws=2)
    )


def test_tables_of_a_grid_have_their_own_settings(table):
    file = table(
        "- {mode: [vision, joint], gamma: 1}\n- {mode: plain}\n- {mode: language, seed: [1, 2]}\n"
    )
    found = grid(request(), file)
    assert list(found) == [
        *("mode=vision,gamma=1", "mode=joint,gamma=1", "mode=plain"),
        *("mode=language,seed=1", "mode=language,seed=2"),
    ]
    assert found["mode=plain"].config is None
    assert [each.seed for each in found.values()] == [0, 0, 0, 1, 2]


def test_a_grid_that_grows_keeps_its_names(table):
    few = names(request(), table("gamma: 2\nepsilon: [0.1]"))
    more = names(request(), table("gamma: [1, 2]\nepsilon: [0.1, 0]"))
    assert few == ["gamma=2,epsilon=0.1"]
    assert set(few) < set(more)


@given(st.lists(st.floats(0, 10), min_size=2, max_size=5, unique=True))
def test_no_two_folders_have_one_name(tmp_path_factory, values):
    file = tmp_path_factory.mktemp("grid") / "grid.yaml"
    file.write_text(yaml.safe_dump({"gamma": values}))
    found = names(request(), file)
    assert len(set(found)) == len(values)
    assert not any(set(name) & set("/\\ ") for name in found)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected settings"),
        ("[]", "expected settings"),
        ("- 3", "expected settings"),
        ("gamma: [1", "is not YAML"),
        ("gama: 1", "unknown setting 'gama': expected one of preset, mode,"),
        ("gamma: []", "gamma has no values"),
        ("gamma: [1, -1]", "gamma=-1: expected a number from 0 to 1,000,000"),
        ("gamma: one", "gamma='one'"),
        (f"vision_layers: [{list(range(200))}]", "give settings that do not vary as flags"),
        ("mode: [vision, vision]", "two combinations would have the name mode=vision"),
        # What YAML makes of layers without quotes.
        ("language_layers: 10:20", "620: write layers in quotes"),
        ("language_layers: [half:, all]", "write layers in quotes"),
    ],
)
def test_a_file_that_is_no_grid_is_told(table, text, sentence):
    with pytest.raises(RequestError, match=sentence):
        grid(request(), table(text))


def test_what_needs_a_configuration_says_so(table, tmp_path):
    with pytest.raises(RequestError, match="--controls needs a mode other than plain"):
        controls(request(plain=True))
    with pytest.raises(RequestError, match="--grid needs a mode other than plain"):
        grid(request(plain=True), table("gamma: 1"))
    with pytest.raises(RequestError, match="cannot be read"):
        grid(request(), tmp_path / "nowhere")
