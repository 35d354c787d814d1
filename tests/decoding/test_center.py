"""A centered contrast equals its formula, and a file is used with what it was made with, only."""

import json
from dataclasses import replace

import pytest
import torch
import torch._dynamo.testing
from equivalence import TOLERANCE, by_token, decode
from family_rows import TWO_FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_models import model_pair, pad_together, sample

from causalmm import CausalMMConfig
from causalmm.config import CONFIG_NAME, MODES
from causalmm.decoding.center import branch_settings, center_bytes, read_about
from causalmm.decoding.contrast import Contrast, adjust
from causalmm.decoding.strength import TokenStrength


@pytest.fixture(scope="module", params=TWO_FAMILIES)
def family(request):
    """A center acts behind the head."""
    return request.param


def save_center(model, config, file, **changes):
    """A center of random means for the branches of a configuration; returns config and means."""
    plan = model.causalmm_plan(config)
    settings = branch_settings(plan)
    generator = torch.Generator().manual_seed(3)
    size = changes.pop("size", model.config.get_text_config().vocab_size)
    means = {name: torch.randn(size, generator=generator) for name in settings}
    file.write_bytes(center_bytes(means, {"settings": settings} | changes))
    return replace(config, center=str(file)), means


@given(
    st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=8),
    st.floats(0, 5),
    st.sampled_from([TokenStrength(), TokenStrength(forgetting=0.1), TokenStrength(confident=0.5)]),
)
def test_with_a_constant_branch_the_adjustment_is_the_plain_model(logits, gamma, strength):
    factual = torch.tensor([logits, logits[::-1]])
    constant = factual[0].sin() * 3
    gamma = strength.of(gamma, factual, 4)
    for contrasts in ([Contrast(gamma, factual - constant, constant)], 2 * [
        Contrast(gamma, factual - constant, constant)
    ]):  # fmt: skip
        torch.testing.assert_close(adjust(factual, contrasts, 0), factual, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "settings", [{}, {"schedule": "growing", "forgetting": 0.1, "confident": 0.3}], ids=len
)
def test_every_step_of_a_batch_is_the_formula_s(family, model, tmp_path, mode, settings):
    config = CausalMMConfig(mode=mode, epsilon=0, gamma=0.7, draws=2, **settings)
    config, means = save_center(model, config, tmp_path / "c.safetensors")
    samples = [sample(family, seed=1, before=4), sample(family, seed=2)]
    tokens, said = decode(model, pad_together(samples), config)
    wanted = said["factual"].clone()
    for name, mean in means.items():
        strength = 0.7 * torch.stack([by_token(config, row) for row in said["factual"]])
        wanted += strength * (said["factual"] - said[name] - mean)
    torch.testing.assert_close(said["adjusted"], wanted, **TOLERANCE)
    for row, alone in enumerate(samples):
        alone_tokens, alone_said = decode(model, alone, config)
        assert torch.equal(tokens[row], alone_tokens[0])
        torch.testing.assert_close(said["adjusted"][row], alone_said["adjusted"][0], **TOLERANCE)
    uncentered = decode(model, pad_together(samples), replace(config, center=None))[1]
    assert (uncentered["adjusted"][:, 0] - said["adjusted"][:, 0]).abs().max() > 0.05


def test_a_mean_is_of_its_branch_whatever_branches_are_beside_it(model, tmp_path):
    both, means = save_center(model, CausalMMConfig(), tmp_path / "c.safetensors")
    for mode in ("vision", "language"):
        plan = model.causalmm_plan(replace(both, mode=mode))
        assert plan.center.keys() == {mode}
        assert torch.equal(plan.center[mode], means[mode])
    assert model.causalmm_plan(replace(both, gamma=0.0)).center == {}


@pytest.mark.slow
def test_compiles_once(model, inputs, tmp_path):
    config, _ = save_center(model, CausalMMConfig(epsilon=0.01), tmp_path / "c.safetensors")
    settings = {"max_new_tokens": 5, "do_sample": False}
    wanted = model.generate(**inputs, causalmm=config, **settings)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model.forward = torch.compile(model.forward, fullgraph=True, backend=counter)
    try:
        found = model.generate(**inputs, causalmm=config, cache_implementation="static", **settings)
    finally:
        del model.forward
    assert torch.equal(found, wanted)
    assert counter.frame_count == 2


# -- what is refused ---------------------------------------------------------------------------

BASE = CausalMMConfig(vision_layers="all", language_layers="1:", draws=2)
OTHERS = [
    ({"language_layers": "2:"}, r"with language_layers=\[1, 2, 3\], .* language_layers=\[2, 3\]"),
    ({"language_method": "uniform"}, "language_method='random', .* language_method='uniform'"),
    ({"vision_method": "reversed"}, "vision_method='random', .* vision_method='reversed'"),
    ({"vision_layers": "1:"}, r"vision_layers=\[0, 1, 2\], .* vision_layers=\[1, 2\]"),
    ({"draws": 3}, "vision_draws=2, .* vision_draws=3"),
    ({"seed": 1}, "vision_seed=0, .* vision_seed=1"),
    ({"normalization": "released"}, "vision_normalization='visible', .*='released'"),
    ({"mode": "joint"}, "has the branches vision, language and none for 'joint'"),
]


@pytest.mark.parametrize(("change", "words"), OTHERS)
def test_a_file_of_other_branches_is_refused_by_the_setting(model, tmp_path, change, words):
    config, _ = save_center(model, BASE, tmp_path / "c.safetensors")
    model.causalmm_plan(replace(config, gamma=0.3, epsilon=0.5, confident=0.5, schedule="growing"))
    with pytest.raises(ValueError, match=f"c.safetensors'.* {words}") as error:
        model.causalmm_plan(replace(config, **change))
    assert "\n" not in str(error.value)


def test_a_file_of_another_depth_is_refused(family, model, tmp_path):
    config, _ = save_center(model, BASE, tmp_path / "c.safetensors")
    deeper = model_pair(family, "sdpa", layers=6)[0]
    with pytest.raises(ValueError, match=r"was made with \w+_layers=\[.*\], this call is made"):
        deeper.causalmm_plan(config)


def test_another_vocabulary_is_refused(model, tmp_path):
    config, _ = save_center(model, BASE, tmp_path / "c.safetensors", size=17)
    with pytest.raises(ValueError, match=r"means of shape \[17\], the model's vocabulary has 64"):
        model.causalmm_plan(config)


def test_another_file_is_refused(model, tmp_path):
    config, _ = save_center(model, BASE, tmp_path / "c.safetensors")
    digest = config.read_center()[1]
    known = replace(config, center_sha256=digest)
    assert model.causalmm_plan(known).center
    save_center(model, BASE, tmp_path / "c.safetensors", questions=9)
    with pytest.raises(ValueError, match=f"its SHA-256 is .*, expected center_sha256={digest}"):
        model.causalmm_plan(known)


def test_files_that_are_no_centers_are_refused(model, tmp_path):
    file = tmp_path / "c.safetensors"
    config = replace(BASE, center=str(file))
    with pytest.raises(ValueError, match="the file cannot be read"):
        model.causalmm_plan(config)
    save_file({"vision": torch.zeros(64)}, file)
    wrong = [b"", b"no tensors", file.read_bytes()]
    for data in wrong:
        file.write_bytes(data)
        with pytest.raises(
            ValueError, match="cannot be read: expected a file of `diagnose"
        ) as error:
            model.causalmm_plan(config)
        assert "\n" not in str(error.value)
    settings = branch_settings(model.causalmm_plan(BASE))
    means = {name: torch.full((64,), torch.nan) for name in settings}
    whole = center_bytes(means, {"settings": settings})
    assert read_about(whole)["settings"].keys() == {"vision", "language"}
    file.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="c.safetensors' cannot be read: "):
        model.causalmm_plan(config)
    file.write_bytes(whole)
    with pytest.raises(ValueError, match="expected means of finite float32 numbers"):
        model.causalmm_plan(config)


# -- where a configuration finds it ------------------------------------------------------------


def test_a_relative_path_is_relative_to_the_configuration(tmp_path):
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"center": "c.safetensors"}))
    config = CausalMMConfig.from_pretrained(tmp_path)
    assert config.center == str(tmp_path / "c.safetensors")
    saved = config.save_pretrained(tmp_path)
    assert json.loads(saved.read_text())["center"] == "c.safetensors"
    assert CausalMMConfig.from_pretrained(tmp_path) == config
    elsewhere = config.save_pretrained(tmp_path / "elsewhere")
    assert json.loads(elsewhere.read_text())["center"] == str(tmp_path / "c.safetensors")
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"center": "none"}))
    assert CausalMMConfig.from_pretrained(tmp_path).center is None
