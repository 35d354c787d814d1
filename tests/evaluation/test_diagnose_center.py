"""`diagnose --center` estimates what slow computations give, and tells a lean from knowledge."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from family_rows import FAMILIES, TWO_FAMILIES
from safetensors.torch import load, load_file, save
from tiny_checkpoints import save_checkpoint
from tiny_evaluation import save_pictures, save_questions, save_yes_no_checkpoint

from causalmm import BranchTrace, CausalMMConfig
from causalmm.cli import generate
from causalmm.cli.request import find_model
from causalmm.cli.session import Session
from causalmm.decoding.center import read_about
from causalmm.evaluation.diagnosis import center, center_progress, command
from causalmm.evaluation.diagnosis.lean import Contrasts
from causalmm.evaluation.probabilities import word_tokens
from causalmm.inputs.messages import one_turn

WORDS = ((1, 2), (5,))
"""Tokens of two choices."""


# -- the sums ----------------------------------------------------------------------------------


def steps(count, vocabulary=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, vocabulary, generator=generator) * 2


def added(factual, branch, choices):
    sums = Contrasts()
    for one, other in zip(factual, branch, strict=True):
        sums.add(one, {"language": other}, choices)
    return sums


def slow_lean(factual, branch, choices):
    """In two passes: size of the mean, and what a fit by least squares leaves."""
    factual, branch = factual.double().numpy(), branch.double().numpy()
    if choices is None:
        weights = np.exp(factual) / np.exp(factual).sum(-1, keepdims=True)
        plain, moved = factual, branch
    else:
        plain, moved = (
            np.log(np.exp(each[:, WORDS[0]]).sum(-1)) - np.log(np.exp(each[:, WORDS[1]]).sum(-1))
            for each in (factual, branch)
        )
        plain, moved, weights = plain[:, None], moved[:, None], np.ones((len(plain), 1))
    contrast, n = plain - moved, len(plain)

    def inside(values):
        """Root of the weights times values, whose weighted mean in each row is taken off."""
        if choices is None:
            values = values - (weights * values).sum(-1, keepdims=True)
        return (np.sqrt(weights) * values).ravel()

    mean = contrast.mean(0)
    size = float(np.linalg.norm(inside(np.tile(mean, (n, 1)))) / math.sqrt(n))
    x, y = (inside(each - each.mean(0)) for each in (plain, contrast))
    slope = np.linalg.lstsq(x[:, None], y, rcond=None)[0]
    spread = math.sqrt(((y - slope * x) ** 2).sum() / (n - 2))
    return (size if choices is None else mean[0]), spread


@pytest.mark.parametrize("choices", [None, WORDS])
@pytest.mark.parametrize("count", [3, 40])
def test_mean_and_spread_are_those_of_two_passes(choices, count):
    factual, branch = steps(count), steps(count, seed=1) + torch.arange(7) / 3
    sums = added(factual, branch, choices)
    assert sums.steps == count
    wanted = (factual.double() - branch.double()).mean(0)
    torch.testing.assert_close(sums.mean("language"), wanted)
    lean = sums.lean("language")
    assert (lean.mean, lean.spread) == pytest.approx(slow_lean(factual, branch, choices))


@pytest.mark.parametrize("choices", [None, WORDS])
@pytest.mark.parametrize("follows", [0.0, 0.4, 1.0])
def test_a_branch_that_says_what_the_plain_model_tells_is_constant(choices, follows):
    """Always one word, the plain logits less a constant, or anything between."""
    factual = steps(30)
    factual[:, 1] = factual[:, 2]  # one number is told of two spellings
    branch = follows * factual + torch.tensor([0.0, 3, 3, 0, 0, -2, 0])
    lean = added(factual, branch, choices).lean("language")
    assert lean.constant
    assert lean.ratio < 1e-5


def test_many_tokens_are_measured_on_the_probable_ones():
    factual, branch = steps(25, 500), steps(25, 500, seed=1)
    lean = added(5 * factual, branch, None).lean("language")
    assert lean[:2] == pytest.approx(slow_lean(5 * factual, branch, None), rel=1e-3)


def test_what_was_added_survives_a_trip_to_disk():
    contrasts = added(steps(9), steps(9, seed=1), None)
    again = Contrasts(load(save(contrasts.state)))
    for both in (contrasts, again):
        both.add(steps(1, seed=2)[0], {"language": steps(1, seed=3)[0]})
    assert again.lean("language") == contrasts.lean("language")
    assert torch.equal(again.mean("language"), contrasts.mean("language"))


def test_a_branch_that_knows_something_else_is_not_constant():
    factual = steps(30)
    assert not added(factual, factual + steps(30, seed=2), WORDS).lean("language").constant
    # Nor is anything known from a few questions.
    assert (
        not added(factual[:5], factual[:5] + 2 * torch.eye(7)[5], WORDS).lean("language").constant
    )


def test_a_branch_that_differs_in_nothing_has_no_lean():
    lean = added(steps(30), steps(30), WORDS).lean("language")
    assert (lean.mean, lean.spread, lean.ratio, lean.constant) == (0, 0, math.inf, False)


# -- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("center")
    for family in FAMILIES:
        save_yes_no_checkpoint(family, folder / family)
    save_pictures(folder)
    save_questions(folder)
    return folder


def flags(folder, file, *more, model="llava"):
    given = ["--center", file, "--questions", folder / "tiny_pope_random.json"]
    given += ["--images", folder, "--suffix", "", "--model", folder / model, *more]
    return [str(each) for each in given]


@pytest.fixture
def run(folder, tmp_path, capfd):
    """Run the command; returns what was printed and the file that was written."""

    def run(*more, name="c.safetensors", code=0, **options):
        given = flags(folder, tmp_path / name, *more, **options)
        assert command.main(given) == code
        said = capfd.readouterr()
        if code:
            last = said.err.splitlines()[-1]
            assert last.startswith("error: ") or code == 130
            return last
        return said.out, tmp_path / name

    return run


SETTINGS = ("--gamma", "0.6", "--seed", "5", "--draws", "2", "--language-layers", "1:")
CONFIG = CausalMMConfig(gamma=0.6, seed=5, draws=2, language_layers="1:")


def asked(folder, file, *more, model):
    """A session and the questions of a command line."""
    args = center.parse_args(flags(folder, file, *more, model=model))
    session = Session.start(args, find_model(args))
    questions = center.read_questions(args)
    return session, questions, [
        session.inputs(one_turn([each.path], each.prompt)) for each in questions
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["multimodal", "joint"])
@pytest.mark.parametrize("model", TWO_FAMILIES)
def test_the_mean_is_that_of_separate_forwards(folder, run, tmp_path, model, mode):
    """And zero over the same questions afterwards."""
    given = (*SETTINGS, "--mode", mode, "--max-new-tokens", "1")
    _, file = run(*given, model=model)
    session, questions, inputs = asked(folder, file, *given, model=model)
    config = replace(CONFIG, mode=mode, epsilon=0)

    def said(config):
        """Logits at the first token of every question, of each view."""
        found = []
        for each in inputs:
            trace = BranchTrace()
            session.model.generate(
                **each, causalmm=config, causalmm_trace=trace, max_new_tokens=1, do_sample=False
            )
            found.append(trace.steps[0]._asdict())
        return {
            name: torch.cat([each[name] for each in found]).double()
            for name, logits in found[0].items()
            if logits is not None
        }

    before = said(config)
    means = load_file(file)
    assert means.keys() == before.keys() - {"factual", "adjusted"}
    for name, mean in means.items():
        wanted = (before["factual"] - before[name]).mean(0)
        torch.testing.assert_close(mean.double(), wanted, atol=1e-5, rtol=1e-4)
    assert (before["adjusted"] - before["factual"]).mean(0).abs().max() > 0.1
    after = said(replace(config, center=str(file)))
    gap = (after["adjusted"] - after["factual"]).mean(0)
    torch.testing.assert_close(gap, torch.zeros_like(gap), atol=1e-5, rtol=0)
    about = read_about(file.read_bytes())
    assert (about["questions"], about["steps"]) == (len(questions), len(questions))
    assert about["question_files"] == [str(folder / "tiny_pope_random.json")]
    ids = [word_tokens(session.processor.tokenizer, word) for word in ("yes", "no")]
    sums = Contrasts()
    for row in range(len(questions)):
        branches = {name: before[name][row] for name in means}
        sums.add(before["factual"][row], branches, ids)
    for name, lean in about["leans"].items():
        wanted = sums.lean(name)
        assert (lean["mean"], lean["spread"]) == pytest.approx(wanted[:2], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("model", TWO_FAMILIES)
def test_free_text_counts_every_token_of_the_plain_answer(folder, run, tmp_path, model):
    given = (*SETTINGS, "--mode", "vision", "--free-text", "--max-new-tokens", "5")
    _, file = run(*given, model=model)
    session, _, inputs = asked(folder, file, *given, model=model)
    total, count = 0, 0
    end = session.model.generation_config.eos_token_id
    for each in inputs:
        plain = session.model.generate(**each, max_new_tokens=5, do_sample=False)
        trace = BranchTrace()
        watched = session.model.generate(
            **each, causalmm=center.watching(replace(CONFIG, mode="vision")), do_sample=False,
            causalmm_trace=trace, max_new_tokens=5,
        )  # fmt: skip
        assert torch.equal(plain, watched)
        tokens = plain[0, each["input_ids"].shape[1] :].tolist()
        length = center_progress.answer_length(tokens, end)
        assert length == len(tokens)
        for step in trace.steps:
            assert torch.equal(step.adjusted, step.factual)
            total, count = total + (step.factual - step.vision)[0].double(), count + 1
    assert read_about(file.read_bytes())["steps"] == count
    found = load_file(file)["vision"].double()
    torch.testing.assert_close(found, total / count, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "ends", "length"),
    [([4, 2, 0, 0], 2, 2), ([4, 5], 2, 2), ([4, 3, 2], [2, 3], 2), ([4, 5, 6], None, 3)],
)
def test_an_answer_ends_with_its_end(tokens, ends, length):
    assert center_progress.answer_length(tokens, ends) == length


def test_a_killed_estimate_goes_on(run, tmp_path, monkeypatch):
    _, whole = run(name="whole.safetensors")
    monkeypatch.setattr(center_progress, "SAVED_EVERY", 1)
    ask_unit, asked = center_progress.ask_unit, []

    def killed_at(limit):
        def ask(session, unit, trace):
            if len(asked) == limit:
                raise KeyboardInterrupt
            asked.append([each.id for each in unit])
            return ask_unit(session, unit, trace)

        return ask

    monkeypatch.setattr(center_progress, "ask_unit", killed_at(2))
    assert run("--batch-size", "2", code=130) == "interrupted"
    assert [each.name for each in tmp_path.glob("c.*")] == ["c.safetensors.partial"]
    assert "begun with other settings (causalmm: " in run(
        "--seed", "1", "--batch-size", "2", code=2
    )
    monkeypatch.setattr(center_progress, "ask_unit", killed_at(99))
    _, file = run("--batch-size", "2")
    assert [each.name for each in tmp_path.glob("c.*")] == ["c.safetensors"]
    ids = [id for unit in asked for id in unit]
    assert len(ids) == len(set(ids)) == 7
    for name, mean in load_file(whole).items():
        torch.testing.assert_close(load_file(file)[name], mean, atol=1e-5, rtol=1e-4)


def test_a_configuration_is_written_and_says_its_verdict(folder, run, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("causalmm.evaluation.diagnosis.lean._FEWEST", 3)
    monkeypatch.setattr("causalmm.evaluation.diagnosis.lean.CONSTANT_BELOW", 1e9)
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    said, file = run("--write", chosen, *SETTINGS, "--mode", "language",
                     name="chosen/center.safetensors")  # fmt: skip
    assert "the language branch is a constant one" in said
    config = CausalMMConfig.from_pretrained(chosen)
    assert json.loads((chosen / "causalmm_config.json").read_text())["center"] == file.name
    assert config == replace(
        CONFIG,
        mode="language",
        center=str(file),
        center_sha256=config.read_center()[1],
        constant_branch="language",
    )
    asks = ["--model", folder / "llava", "--image", folder / "a.png", "--prompt", "what ?",
            "--max-new-tokens", "2", "--config", chosen / "causalmm_config.json"]  # fmt: skip

    def told(*more):
        assert generate.main([str(each) for each in (*asks, *more)]) == 0
        return capfd.readouterr().err

    assert told().count("its language branch is a constant one") == 1
    assert "which the center takes away" in told()
    assert "causalmm diagnose --center" in told("--center", "none")
    assert "constant" not in told("--center", "none", "--language-layers", "all")
    file.unlink()
    assert "constant" not in told("--mode", "plain")


def test_a_center_that_does_not_fit_is_one_sentence(folder, run, capfd):
    _, file = run("--mode", "vision")
    asks = ["--model", folder / "llava", "--image", folder / "a.png", "--prompt", "what ?"]

    def refused(*more):
        assert generate.main([str(each) for each in (*asks, *more)]) == 2
        [line] = capfd.readouterr().err.splitlines()
        return line

    given = ("--mode", "vision", "--center", file)
    assert "vision_method='random'" in refused(*given, "--vision-method", "uniform")
    assert "its SHA-256 is" in refused(*given, "--center-sha256", 64 * "0")
    assert "the file cannot be read" in refused("--center", "nowhere.safetensors")
    assert "none for 'language'" in refused("--center", file)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--mode", "plain"), "--center needs a mode other than plain"),
        (("--gamma", "0"), "gamma 0 leaves no branch to look at"),
        (("--choices", "true", "perhaps"), "the tokenizer has no token 'true'"),
        (("--windows", "all"), "unrecognized arguments: --windows"),
        (("--center", "c.pt"), "--center c.pt: expected a .safetensors file"),
        (("--questions", "nowhere.json"), "nowhere.json cannot be read"),
        (("--images", "nowhere"), "none of the 4 images is there"),
        (("--free-text", "--choices", "a", "b"), "not allowed with"),
    ],
)
def test_a_wrong_request_is_one_sentence(run, given, sentence):
    assert sentence in run(*given, code=2)


def test_files_that_are_there_are_kept(run, tmp_path):
    _, file = run()
    data = file.read_bytes()
    assert "c.safetensors is there already" in run(code=2)
    (tmp_path / "d.safetensors.partial").write_bytes(b"something")
    assert "none of this command's files" in run(name="d.safetensors", code=2)
    (tmp_path / "causalmm_config.json").write_text("{}")
    assert "causalmm_config.json is there already" in run(
        "--write", tmp_path, name="e.safetensors", code=2
    )
    assert file.read_bytes() == data


def test_what_cannot_be_asked_is_left_out(folder, run, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in "abcd":
        (images / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
    (images / "b.png").write_text("no picture")
    said, file = run("--images", images)
    assert "1 questions failed" in said
    assert read_about(file.read_bytes())["questions"] == 6
    for name in "acd":
        (images / f"{name}.png").write_text("no picture")
    assert "no question could be asked (first: " in run(
        "--images", images, name="d.safetensors", code=1
    )


def test_a_tokenizer_without_the_words(run, tmp_path):
    save_checkpoint("llava", tmp_path / "wordless")
    given = ("--model", tmp_path / "wordless")
    assert "the tokenizer has no token 'yes'" in run(*given, code=2)
    run(*given, "--free-text")
