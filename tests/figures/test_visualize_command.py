"""The visualize command: a picture that can be opened, or one clear sentence and an exit code."""

import argparse
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from family_rows import DECODERS, FAMILIES, TWO_FAMILIES
from PIL import Image
from tiny_checkpoints import save_checkpoint

from causalmm import CausalMMConfig, extras
from causalmm.cli import generate
from causalmm.errors import RequestError
from causalmm.families.loading import load
from causalmm.families.registry import find
from causalmm.figures import command, language, vision
from causalmm.figures.flags import parse_args, read_query
from causalmm.figures.pictures import pictures
from causalmm.figures.recording import record_language, record_vision
from causalmm.figures.tokens import answer_steps
from causalmm.inputs.images import open_image

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "is there a banana ?"
FIGURES = ("attention-vision", "attention-language", "tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, frames and a checkpoint of each family, by its name."""
    folder = tmp_path_factory.mktemp("visualize")
    for family in FAMILIES:
        save_checkpoint(family, folder / family)
    Image.radial_gradient("L").resize((60, 40)).save(folder / "image.png")
    Image.linear_gradient("L").resize((30, 50)).save(folder / "other.png")
    (folder / "frames").mkdir()
    for number in (1, 2):
        frame = Image.linear_gradient("L").rotate(30 * number).resize((56, 56))
        frame.save(folder / "frames" / f"{number}.png")
    return folder


@pytest.fixture(params=TWO_FAMILIES)
def model(request, folder):
    return folder / request.param


@pytest.fixture
def draw(folder, capfd, tmp_path):
    """Draw in this process and give what was said; `figure.png` is where it is drawn."""

    def run(figure, *flags, code=0):
        given = [figure, "--image", folder / "image.png", "--png", tmp_path / "figure.png"]
        if figure != "attention-vision" and "--messages" not in flags:
            given += ["--prompt", PROMPT]
        if figure == "tokens":
            given += ["--max-new-tokens", "4"]
        assert command.main([str(each) for each in [*given, *flags]]) == code
        out, err = capfd.readouterr()
        assert out == ""
        return err

    return run


@pytest.fixture
def drawn(draw, tmp_path):
    """Draw, and give the pixels."""

    def run(*flags):
        assert draw(*flags) == f"wrote {tmp_path / 'figure.png'}\n"
        with Image.open(tmp_path / "figure.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[1] == 1800
        assert pixels.std() > 5
        return pixels

    return run


@pytest.fixture
def refused(draw, tmp_path):
    """The sentence with which the command refuses; nothing is drawn."""

    def run(*flags, code=2):
        sentence, *others = draw(*flags, code=code).splitlines()
        assert not others
        assert sentence.startswith("error: ")
        assert not (tmp_path / "figure.png").exists()
        return sentence.removeprefix("error: ")

    return run


# -- figures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", DECODERS, indirect=True)
@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_of_every_family_is_drawn(drawn, model, figure):
    drawn(figure, "--model", model)


@pytest.fixture
def numbers(draw, monkeypatch):
    """Draw, and give what the figure was drawn from."""
    given = []

    def run(figure, *flags):
        name = f"{figure.split('-')[-1]}_figure"
        module = import_module(f"causalmm.figures.{name}")
        original = getattr(module, name)

        def noting(*args):
            given.append(args)
            return original(*args)

        monkeypatch.setattr(module, name, noting)
        draw(figure, *flags)
        return given.pop()

    return run


def loaded(model, images):
    """The checkpoint's model and processor, and its inputs for PROMPT."""
    network, processor = load(str(model), device="cpu")
    build_inputs = find(network.config.model_type).prompts().build_inputs
    return (
        network,
        processor,
        build_inputs(processor, [open_image(each) for each in images], PROMPT),
    )


def test_flags_choose_what_a_picture_shows(numbers, model, folder):
    both = folder / "image.png", folder / "other.png"
    network, processor, inputs = loaded(model, both)
    config = CausalMMConfig(seed=4, normalization="released")
    flags = ("--seed", "4", "--normalization", "released", "--image", both[1], "--picture", "2")
    flags += ("--layer", "-2", "--head", "0", "--query", "1,1", "--query", "mean")
    picture, rows, title = numbers("attention-vision", "--model", model, *flags)
    assert title == f"{model.name}: vision attention, layer 1 of 0 to 2, head 0 of 0 to 1"
    shown = pictures(processor, inputs, 7, network.causalmm_patch_order)
    expected = shown[1]
    assert np.array_equal(picture.pixels, expected.pixels)
    calls = record_vision(network, inputs, 1, [each.size for each in shown])[1]
    queries = [(1, 1), "mean"]
    for found, row in zip(rows, vision.rows(calls, expected, queries, 0, config), strict=True):
        assert found.query == row.query
        for name, overlay in row.overlays.items():
            torch.testing.assert_close(found.overlays[name].ratios, overlay.ratios)
    defaults = numbers("attention-vision", "--model", model)
    assert defaults[2].endswith("layer 2 of 0 to 2, mean over 2 heads")
    assert [row.query for row in defaults[1]] == ["mean"]


def test_flags_choose_what_a_matrix_shows(numbers, model, folder):
    network, processor, inputs = loaded(model, [folder / "image.png"])
    config = CausalMMConfig(seed=4, normalization="released")
    flags = ("--seed", "4", "--normalization", "released", "--layer", "-1", "--head", "-2")
    found, title = numbers("attention-language", "--model", model, *flags)
    assert title == f"{model.name}: language attention, layer 3 of 0 to 3, head 2 of 0 to 3"
    ids = inputs["input_ids"][0].tolist()
    given = processor.tokenizer, {network.config.image_token_id: "image"}, config
    expected = language.matrices(record_language(network, inputs, 3), ids, *given, 2)
    assert found.places == expected.places
    assert [place.label for place in found.places if place.picture] == ["image"]
    for name, ratios in expected.ratios.items():
        torch.testing.assert_close(found.ratios[name], ratios, equal_nan=True)
    defaults = numbers("attention-language", "--model", model)
    assert defaults[1].endswith("layer 2 of 0 to 3, mean over 4 heads")


def test_flags_choose_what_tokens_show(numbers, model, folder):
    network, processor, inputs = loaded(model, [folder / "image.png"])
    flags = ("--mode", "joint", "--gamma", "2", "--temperature", "2", "--seed", "4")
    flags += ("--candidates", "2")
    steps, title = numbers("tokens", "--model", model, *flags)
    assert title == f"{model.name}: {PROMPT}"
    sampling = {"do_sample": True, "temperature": 2.0, "top_p": 1.0, "top_k": 0}
    config = CausalMMConfig(mode="joint", gamma=2, seed=4)
    settings = {"count": 2, "max_new_tokens": 4, "sampling": sampling, "seed": 4}
    assert steps == answer_steps(network, processor.tokenizer, inputs, config, **settings)


def test_each_query_is_a_row(drawn, folder):
    given = ("attention-vision", "--model", folder / "llava")
    one = drawn(*given, "--query", "0,1")
    three = drawn(*given, "--query", "0,1", "--query", "cls", "--query", "mean")
    assert len(three) > len(one) + 400


def test_each_picture_and_frame_can_be_shown(drawn, folder):
    given = ("attention-vision", "--model", folder / "qwen2_vl", "--image", folder / "other.png")
    given += ("--video", folder / "frames")
    shown = [drawn(*given, "--picture", number) for number in (1, 2, 3)]
    assert len({picture.tobytes() for picture in shown}) == 3


def test_a_conversation_can_be_drawn(drawn, draw, folder, tmp_path, capfd):
    content = [
        {"type": "image", "image": str(folder / "image.png")},
        {"type": "text", "text": PROMPT},
    ]
    path = tmp_path / "messages.json"
    path.write_text(json.dumps([{"role": "user", "content": content}]))
    for figure in FIGURES:
        expected = drawn(figure, "--model", folder / "llava", "--seed", "3")
        flags = ["--messages", path, "--model", folder / "llava", "--seed", "3"]
        flags += ["--max-new-tokens", "4"] if figure == "tokens" else []
        flags += ["--png", tmp_path / "other.png"]
        assert command.main([figure, *map(str, flags)]) == 0
        capfd.readouterr()
        with Image.open(tmp_path / "other.png") as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), expected)


class Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_data(self, data):
        self.found.append(data)


def test_the_page_holds_the_answer_of_the_generate_command(draw, model, folder, tmp_path, capfd):
    settings = ("--model", model, "--gamma", "0.5", "--language-layers", "-2:")
    said = draw("tokens", *settings, "--html", tmp_path / "page.html")
    assert said.splitlines() == [f"wrote {tmp_path / name}" for name in ("figure.png", "page.html")]
    asked = ("--image", folder / "image.png", "--prompt", PROMPT, "--max-new-tokens", "4")
    assert generate.main([str(each) for each in (*asked, *settings, "--json")]) == 0
    record = json.loads(capfd.readouterr().out)
    reader = Text()
    reader.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    found = " ".join(" ".join(reader.found).split())
    for token in record["tokens"]:
        assert token["text"] in found
        assert f"{token['adjusted']:.1%}" in found
    assert PROMPT in found
    assert "language_layers -2:" in found


def test_a_page_can_be_had_alone(folder, tmp_path, capfd, monkeypatch):
    # Even without matplotlib: importing it would fail here.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    flags = ["tokens", "--image", folder / "image.png", "--prompt", PROMPT]
    flags += ["--model", folder / "llava", "--html", tmp_path / "page.html"]
    flags += ["--max-new-tokens", "2"]
    assert command.main([str(each) for each in flags]) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "flags", "said"),
    [
        ("attention-vision", ("--query", "2"), "query '2': expected mean, cls or ROW,COLUMN"),
        ("attention-vision", ("--query", "9,9"), "the picture has 4 rows and 4 columns"),
        ("attention-vision", ("--picture", "2"), "--picture 2: the request has 1, counted from 1"),
        ("attention-vision", ("--picture", "0"), "'0' is not an integer >= 1"),
        ("attention-vision", ("--layer", "3"), "--layer 3: expected 0 to 2, or negative"),
        ("attention-vision", ("--layer", "-4"), "--layer -4: expected 0 to 2, or negative"),
        ("attention-vision", ("--head", "2"), "--head 2: expected 0 to 1, or negative"),
        ("attention-vision", ("--head", "all"), "'all' is not a number or mean"),
        (
            "attention-vision",
            ("--vision-method", "noise"),
            "vision method 'noise' changes the pixels and has no attention map of its own",
        ),
        ("attention-language", ("--layer", "4"), "--layer 4: expected 0 to 3, or negative"),
        ("attention-language", ("--head", "4"), "--head 4: expected 0 to 3, or negative"),
        ("attention-language", ("--query", "mean"), "unrecognized arguments: --query mean"),
        ("attention-language", ("--temperature", "2"), "unrecognized arguments: --temperature 2"),
        ("tokens", ("--candidates", "0"), "'0' is not an integer >= 1"),
        ("tokens", ("--chat",), "unrecognized arguments: --chat"),
        *(
            (figure, flags, said)
            for figure in FIGURES
            for flags, said in (
                (("--mode", "plain"), "mode plain has no counterfactual to draw"),
                (("--gamma", "-1"), "gamma=-1.0: expected a number from 0 to 1,000,000"),
                (("--image", "nowhere.png"), "no image file at nowhere.png"),
                (("--model", "nowhere"), "unknown model 'nowhere'"),
                (("--png", "nowhere/figure.png"), "there is no folder nowhere"),
                (("--png", "."), ". is a folder, expected a file to write"),
            )
        ),
    ],
)
def test_a_wrong_request_is_refused(refused, folder, figure, flags, said):
    assert said in refused(figure, "--model", folder / "llava", *flags)


def test_a_class_token_that_is_not_there_is_refused(refused, folder):
    flags = ("--model", folder / "qwen2_vl", "--query", "cls")
    assert refused("attention-vision", *flags) == "query cls: this model has no class token"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the following arguments are required: FIGURE"),
        (["heatmap"], "invalid choice: 'heatmap'"),
        (["tokens", "--image", "x", "--prompt", "x"], "required: --png or --html"),
        (["attention-vision", "--image", "x"], "required: --png"),
        (["attention-language", "--image", "x", "--png", "x"], "required: --prompt"),
        (["attention-vision", "--png", "x"], "required: --image"),
    ],
)
def test_flags_that_are_missing_are_named(argv, said):
    with pytest.raises(RequestError) as error:
        parse_args(argv)
    assert said in str(error.value)


def test_without_matplotlib_the_command_says_what_to_install(refused, folder, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    for figure in FIGURES:
        said = refused(figure, "--model", folder / "llava", code=1)
        assert said == 'drawing needs matplotlib: install it by pip install -e ".[figures]"'


def test_a_file_that_cannot_be_written_is_a_failure(draw, folder):
    said = draw("attention-vision", "--model", folder / "llava", "--png", "/dev/full", code=1)
    assert said == "error: /dev/full cannot be written (No space left on device)\n"


# -- queries and imports -----------------------------------------------------------------------


def test_queries_are_read():
    assert [read_query(text) for text in ("mean", "cls", "3,12")] == ["mean", "cls", (3, 12)]
    for text in ("", "3", "3,", "-1,2", "1.5,2", "1,2,3", "MEAN"):
        with pytest.raises(argparse.ArgumentTypeError):
            read_query(text)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("causalmm.figures.command", ("torch", "transformers", "matplotlib")),
        ("causalmm.cli.generate", ("torch", "transformers", "matplotlib", "causalmm.figures")),
        ("causalmm.cli.answer", ("matplotlib", "causalmm.figures")),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(module, absent):
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


@pytest.mark.slow
def test_the_script_runs_the_command(folder, tmp_path):
    path = tmp_path / "figure.png"
    flags = ["attention-vision", "--image", folder / "image.png", "--png", path]
    result = subprocess.run(
        [sys.executable, "scripts/visualize.py", *map(str, flags), "--model", folder / "llava"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == f"wrote {path}\n"
    with Image.open(path) as image:
        assert image.width == 1800
