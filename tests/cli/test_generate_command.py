"""The generate command: an answer on standard output, or one clear sentence and an exit code."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_rows import FAMILIES, TWO_FAMILIES, fast_first, row_of
from PIL import Image
from tiny_checkpoints import save_checkpoint

from causalmm import BranchTrace, CausalMMConfig
from causalmm.cli import answer, generate
from causalmm.cli.flags import parse_args
from causalmm.cli.request import SETTINGS, check
from causalmm.errors import RequestError
from causalmm.families import checkpoints
from causalmm.families.loading import load
from causalmm.families.registry import demos, find
from causalmm.inputs.images import open_image
from causalmm.inputs.messages import IMAGE_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "is there a banana ?"
COMMANDS = {"script": ["scripts/generate.py"]} | {
    family: ["-m", f"{find(family).package}.generate"] for family in FAMILIES
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """An image and a checkpoint of each family, by its name."""
    folder = tmp_path_factory.mktemp("command")
    for family in FAMILIES:
        save_checkpoint(family, folder / family)
    Image.radial_gradient("L").resize((60, 40)).save(folder / "image.png")
    return folder


@pytest.fixture(params=TWO_FAMILIES)
def model(request, folder):
    return folder / request.param


@pytest.fixture
def ask(folder, capfd):
    """Run the command in this process; a later flag takes the place of an earlier one."""

    def run(*flags, family=None, code=0):
        given = ["--image", folder / "image.png", "--prompt", PROMPT, "--max-new-tokens", "5"]
        assert generate.main([str(each) for each in [*given, *flags]], family) == code
        return capfd.readouterr()

    return run


@pytest.fixture
def refused(ask):
    """The sentence with which the command refuses; nothing else may be printed."""

    def run(*flags, code=2, **options):
        out, err = ask(*flags, code=code, **options)
        assert out == ""
        *notes, sentence = err.splitlines()
        assert not notes, err
        return sentence

    return run


def spawn(command, *flags, **options):
    """Run the command as a user does, in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [sys.executable, *COMMANDS[command], *map(str, flags)],
        **{"cwd": ROOT, "env": environment, "capture_output": True, "text": True} | options,
        check=False,
        timeout=300,
    )


# Answers


@pytest.mark.slow
def test_an_answer_is_all_of_standard_output(folder):
    result = spawn(
        "script",
        *("--image", folder / "image.png", "--prompt", PROMPT),
        *("--model", folder / "llava", "--max-new-tokens", "4"),
    )
    assert result.returncode == 0
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1
    assert len(result.stdout.split()) == 4


@pytest.mark.parametrize("family", fast_first(1, FAMILIES))
def test_per_model_command(folder, family):
    result = spawn(
        family,
        *("--image", folder / "image.png", "--prompt", PROMPT, "--json"),
        *("--model", folder / family, "--max-new-tokens", "2"),
    )
    assert result.returncode == 0
    assert result.stderr == ""
    assert len(json.loads(result.stdout)["tokens"]) == 2


@pytest.mark.parametrize("mode", ["plain", "vision", "language", "multimodal", "joint"])
def test_every_mode_answers(ask, model, mode):
    out, _ = ask("--model", model, "--mode", mode)
    assert len(out.split()) == 5


def test_compare_prints_one_answer_under_the_other(ask, model):
    plain, adjusted = (ask("--model", model, "--mode", mode)[0] for mode in ("plain", "multimodal"))
    assert plain != adjusted
    out, _ = ask("--model", model, "--compare")
    assert out == f"plain     {plain}causalmm  {adjusted}"


def test_json_holds_all_there_is(ask, model):
    flags = ("--model", model, "--gamma", "0.5", "--seed", "3", "--temperature", "2")
    record = json.loads(ask(*flags, "--compare", "--json")[0])
    assert record["answer"] == " ".join(token["text"] for token in record["tokens"])
    assert record["plain_answer"] != record["answer"]
    assert record["config"] == CausalMMConfig(gamma=0.5, seed=3).to_dict()
    assert record["mode"] == "multimodal"
    assert record["model"] == str(model)
    assert record["family"] == model.name
    assert (record["dtype"], record["device"], record["attn"]) == ("float32", "cpu", "sdpa")
    assert record["prompt"] == PROMPT
    assert Path(record["image"]).name == "image.png"
    assert record["sampling"] == {
        "do_sample": True,
        "temperature": 2.0,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
    }
    assert set(record["timings"]) == {"load", "first_token", "total"}
    assert record["versions"]["torch"] == torch.__version__


def test_json_probabilities_are_those_of_the_branches(ask, folder, model):
    tokens = json.loads(ask("--model", model, "--json")[0])["tokens"]
    steps = traced(model, folder, [token["id"] for token in tokens])
    for token, step in zip(tokens, steps, strict=True):
        for name in ("factual", "adjusted"):
            expected = getattr(step, name)[0].softmax(dim=-1)[token["id"]]
            assert token[name] == pytest.approx(expected.item(), rel=1e-4)
    assert any(token["factual"] != token["adjusted"] for token in tokens)


def traced(model, folder, ids):
    """Every step's logits, from `generate` itself."""
    network, processor = load(str(model), device="cpu")
    image = open_image(folder / "image.png")
    inputs = find(network.config.model_type).prompts().build_inputs(processor, [image], PROMPT)
    trace = BranchTrace()
    output = network.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=len(ids),
        causalmm=CausalMMConfig(),
        causalmm_trace=trace,
    )
    assert output[0, -len(ids) :].tolist() == ids
    return trace.steps


def test_plain_probabilities_are_one_and_the_same(ask, model):
    record = json.loads(ask("--model", model, "--mode", "plain", "--json")[0])
    assert record["config"] is None
    assert record["mode"] == "plain"
    assert len(record["tokens"]) == 5
    for token in record["tokens"]:
        assert 0 < token["factual"] == token["adjusted"] <= 1


def test_a_seed_repeats_a_sampled_answer(ask, model):
    flags = ("--model", model, "--temperature", "5", "--max-new-tokens", "12")
    first, again, other = (ask(*flags, "--seed", seed)[0] for seed in ("1", "1", "2"))
    assert first == again != other


def test_without_sampling_flags_the_answer_is_greedy(ask, folder, tmp_path):
    # Whatever the checkpoint says.
    model = shutil.copytree(folder / "llava", tmp_path / "model")
    sampled = {"do_sample": True, "temperature": 9.0, "top_k": 50, "num_beams": 2}
    (model / "generation_config.json").write_text(json.dumps(sampled))
    expected = ask("--model", folder / "llava")
    assert ask("--model", model) == ask("--model", model, "--greedy") == expected


PUBLISHED = {
    "qwen2_vl": {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1},
    "qwen2_5_vl": {
        "do_sample": True,
        "temperature": 0.1,
        "top_p": 0.001,
        "top_k": 1,
        "repetition_penalty": 1.05,
    },
    "qwen2_5_vl, later": {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05},
}
"""What generation_config.json says in checkpoints on the hub."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_of_a_published_checkpoint(ask, folder, tmp_path, name):
    """Its penalty holds, is told, and can be switched off; what it says of sampling does not."""
    model = shutil.copytree(folder / name.partition(",")[0], tmp_path / "model")
    own = {"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": [2]}

    def asked(settings, *flags):
        (model / "generation_config.json").write_text(json.dumps(own | settings))
        record = json.loads(ask("--model", model, "--json", *flags)[0])
        return record["answer"], record["sampling"]

    plain, _ = asked({})
    penalty = PUBLISHED[name].get("repetition_penalty", 1.0)
    answer, said = asked(PUBLISHED[name])
    assert said == {"do_sample": False, "repetition_penalty": penalty}
    # A penalty that changes these answers acts in the same way.
    strong = PUBLISHED[name] | {"repetition_penalty": 30.0}
    assert asked(strong)[0] != plain
    assert asked(PUBLISHED[name], "--repetition-penalty", "30")[0] == asked(strong)[0]
    assert asked(strong, "--repetition-penalty", "1") == (
        plain,
        {"do_sample": False, "repetition_penalty": 1.0},
    )
    assert answer == asked({"repetition_penalty": penalty})[0]
    # One token to choose from would give the greedy answer whatever the seed.
    hot = ("--temperature", "50", "--seed")
    drawn = [asked(PUBLISHED[name], *hot, seed)[0] for seed in (1, 2)]
    assert len({answer, *drawn}) == 3
    assert drawn[0] == asked({"repetition_penalty": penalty}, *hot, 1)[0]


@pytest.mark.parametrize("value", [0, -1.0, "1.05"])
def test_a_penalty_that_is_none_is_refused(refused, folder, tmp_path, value):
    model = shutil.copytree(folder / "qwen2_5_vl", tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"repetition_penalty": value}))
    said = refused("--model", model)
    assert said.endswith(f"repetition_penalty={value!r}: expected a number > 0")


def test_words_are_printed_as_they_come():
    class Words:
        def decode(self, ids, **options):
            return " ".join(["", "a", "red", "apple"][: len(ids) + 1])

    out = io.StringIO()
    printer = answer.AnswerStreamer(Words(), out)
    printed = []
    for ids in (torch.tensor([[5, 6]]), *torch.tensor([[1], [2], [3]])):
        printer.put(ids)
        printed.append(out.getvalue())
    printer.end()
    assert printed == ["", "", "a ", "a red "]
    assert out.getvalue() == "a red apple\n"


def test_a_demonstration_model_says_that_it_is_one(ask, folder, monkeypatch, tmp_path):
    demos = tmp_path / "toyworld" / "checkpoints"
    shutil.copytree(folder / "llava", demos / "demo-llava")
    monkeypatch.setattr(checkpoints, "files", lambda package: tmp_path)
    out, err = ask()
    assert len(out.split()) == 5
    assert err == "demo-llava: a small demonstration model trained on drawn scenes\n"


# Several pictures, a video, conversations


@pytest.fixture(scope="module")
def pictures(folder):
    """Another picture, and a folder of frames."""
    (folder / "frames").mkdir()
    for number in (1, 2, 10):
        frame = Image.linear_gradient("L").rotate(30 * number).resize((56, 56))
        frame.save(folder / "frames" / f"{number}.png")
    Image.linear_gradient("L").resize((30, 50)).save(folder / "other.png")
    return folder


def written(path, *messages):
    path.write_text(json.dumps(messages))
    return path


def user(*parts):
    return {"role": "user", "content": [*parts]}


def image(path):
    return {"type": "image", "image": str(path)}


def text(words):
    return {"type": "text", "text": words}


def command(capfd, *flags):
    assert generate.main([str(each) for each in flags]) == 0
    return capfd.readouterr().out


def test_images_given_one_by_one_are_one_message(ask, capfd, pictures, model, tmp_path):
    both = pictures / "image.png", pictures / "other.png"
    path = written(tmp_path / "messages.json", user(*map(image, both), text(PROMPT)))
    common = ("--model", model, "--max-new-tokens", "5")
    expected = command(capfd, "--messages", path, *common)
    out, _ = ask("--image", both[1], "--model", model)
    assert out == expected != ask("--model", model)[0]
    record = json.loads(ask("--image", both[1], "--model", model, "--json")[0])
    assert record["image"] == [str(each) for each in both]
    record = json.loads(command(capfd, "--messages", path, *common, "--json"))
    assert record["messages"] == str(path)
    assert not {"image", "video", "prompt"} & record.keys()


def test_a_video_is_part_of_the_message(ask, capfd, pictures, tmp_path):
    frames = [str(pictures / "frames" / f"{number}.png") for number in (1, 2, 10)]
    video = {"type": "video", "video": frames}
    picture = image(pictures / "image.png")
    path = written(tmp_path / "messages.json", user(picture, video, text(PROMPT)))
    common = ("--model", pictures / "qwen2_vl", "--max-new-tokens", "5")
    expected = command(capfd, "--messages", path, *common)
    assert ask("--video", pictures / "frames", *common[:2])[0] == expected
    alone = command(capfd, "--video", pictures / "frames", "--prompt", PROMPT, *common, "--json")
    assert json.loads(alone)["video"] == str(pictures / "frames")


def test_pixel_limits_are_those_of_pictures_that_have_none(pictures, tmp_path):
    limits = ("--min-pixels", "1568", "--max-pixels", "3000")
    model = ("--model", str(pictures / "qwen2_vl"))
    sized = {"min_pixels": 1568, "max_pixels": 3000}

    def settings_of(*flags):
        request = check(parse_args([*map(str, flags), *limits, *model]))
        return [
            {name: part[name] for name in IMAGE_SETTINGS if name in part}
            for message in request.messages
            for part in message["content"]
        ]

    both = ("--image", pictures / "image.png", "--video", pictures / "frames")
    assert settings_of(*both, "--prompt", PROMPT) == [sized, sized, {}]
    assert settings_of(*both, "--chat") == [sized, sized]
    own = image(pictures / "image.png") | {"resized_height": 30, "resized_width": 40}
    given = [user(image(pictures / "other.png"), own), user(text(PROMPT))]
    path = written(tmp_path / "messages.json", *given)
    kept = {"resized_height": 30, "resized_width": 40}
    assert settings_of("--messages", path) == [sized, kept, {}]


def test_pixel_limits_change_what_is_seen(ask, capfd, pictures, tmp_path):
    common = ("--model", pictures / "qwen2_vl", "--max-new-tokens", "5", "--json")
    limited = image(pictures / "image.png") | {"max_pixels": 800}
    path = written(tmp_path / "messages.json", user(limited, text(PROMPT)))
    by_message = json.loads(command(capfd, "--messages", path, *common))
    by_flag, whole = (
        json.loads(ask(*common, *flags)[0]) for flags in (("--max-pixels", "800"), ())
    )
    assert by_flag["tokens"] == by_message["tokens"] != whole["tokens"]
    assert by_flag["max_pixels"] == 800
    assert "max_pixels" not in whole


def test_llava_takes_no_pixel_limits(refused, pictures):
    for flag in ("--min-pixels", "--max-pixels"):
        sentence = refused(flag, "800", "--model", pictures / "llava")
        assert f"{flag} is for Qwen2-VL" in sentence


def test_llava_takes_no_video(refused, pictures, tmp_path):
    given = ("--video", pictures / "frames", "--model", pictures / "llava")
    assert "is a LLaVA checkpoint, which reads images and no video" in refused(*given)


def test_a_chat_answers_as_the_same_messages_do(capfd, pictures, model, monkeypatch, tmp_path):
    both = pictures / "image.png", pictures / "other.png"
    common = ("--model", model, "--max-new-tokens", "5")
    lines = ["what is this ?", "what <image> <|image_pad|> ?", "is there ?", "/reset", "a banana"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, "", "this"]) + "\n"))
    given = ["--chat", *("--image", both[0], "--image", both[1]), *common]
    assert generate.main([str(each) for each in given]) == 0
    out, err = capfd.readouterr()
    # What cannot be asked is forgotten; nothing else is said.
    assert len(err.splitlines()) == 1
    assert "which stands for an image" in err
    first, second, third = out.splitlines()

    def answered(*messages):
        path = written(tmp_path / "messages.json", *messages)
        return command(capfd, "--messages", path, *common).strip()

    start = user(*map(image, both), text(lines[0]))
    assert first == answered(start)
    said = {"role": "assistant", "content": first}
    assert second == answered(start, said, user(text(lines[2])))
    assert third == answered(user(*map(image, both), text(lines[4])))


def test_a_chat_ends_with_its_input(capfd, pictures, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    given = ("--image", pictures / "image.png", "--model", pictures / "llava")
    assert command(capfd, "--chat", *given) == ""


@pytest.mark.slow
def test_a_chat_prompts_on_a_terminal_only(pictures):
    leader, follower = os.openpty()
    os.write(leader, b"what is this ?\n\n")
    with os.fdopen(follower) as terminal:
        result = spawn(
            "script",
            *("--chat", "--image", pictures / "image.png"),
            *("--model", pictures / "llava", "--max-new-tokens", "3"),
            stdin=terminal,
        )
    os.close(leader)
    assert (result.returncode, result.stderr) == (0, "> > ")
    assert len(result.stdout.split()) == 3


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--messages m --image i", "--messages and --image exclude each other"),
        ("--messages m --prompt p", "--messages and --prompt exclude each other"),
        ("--messages m --chat", "--messages and --chat exclude each other"),
        ("--batch b --out o --prompt p", "--batch and --prompt exclude each other"),
        ("--batch b --out o --json", "--batch and --json exclude each other"),
        ("--chat --image i --prompt p", "--chat and --prompt exclude each other"),
        ("--chat --image i --compare", "--chat and --compare exclude each other"),
        ("--batch b", "--batch needs --out"),
        ("--image i --prompt p --out o", "--out needs --batch"),
        ("--image i --prompt p --batch-size 2", "--batch-size needs --batch"),
        ("--batch b --out o --batch-size 0", "'0' is not an integer >= 1"),
        ("--prompt p", "the following arguments are required: --image"),
        ("--chat", "the following arguments are required: --image"),
        ("--video v", "the following arguments are required: --prompt"),
        ("", "the following arguments are required: --image, --prompt"),
        ("--video nowhere --prompt p", "no video file or folder of frames at nowhere"),
        ("--messages nowhere", "nowhere cannot be read"),
        ("--batch nowhere --out o", "nowhere cannot be read"),
    ],
)
def test_flags_that_do_not_go_together(capsys, folder, flags, sentence):
    given = [*flags.split(), "--model", str(folder / "llava")]
    assert generate.main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert sentence in err


def test_messages_need_a_picture(capsys, folder, tmp_path):
    path = written(tmp_path / "messages.json", user(text(PROMPT)))
    assert generate.main(["--messages", str(path), "--model", str(folder / "llava")]) == 2
    assert "holds no picture" in capsys.readouterr().err


# Which settings count


def settings(folder, *flags):
    given = ["--image", folder / "image.png", "--prompt", PROMPT, "--model", folder / "own"]
    return generate.check(parse_args([str(each) for each in [*given, *flags]])).config


@pytest.fixture
def own(folder):
    """A checkpoint with a configuration of its own."""
    shutil.copytree(folder / "llava", folder / "own", dirs_exist_ok=True)
    config = CausalMMConfig(mode="language", gamma=0.25, epsilon=0.5, gamma_language=0.75)
    config.save_pretrained(folder / "own")
    return config


def test_a_checkpoints_configuration_counts(folder, own):
    assert settings(folder) == own


def test_a_flag_overrides_the_checkpoint(folder, own):
    assert settings(folder, "--epsilon", "0").epsilon == 0
    assert settings(folder, "--epsilon", "0").gamma_language == 0.75


def test_a_configuration_file_replaces_the_checkpoints(folder, own, tmp_path):
    (tmp_path / "given.json").write_text('{"draws": 2}')
    flags = ("--config", tmp_path / "given.json")
    assert settings(folder, *flags) == CausalMMConfig(draws=2)
    assert settings(folder, *flags, "--draws", "3") == CausalMMConfig(draws=3)


def test_gamma_is_the_strength_of_every_branch(folder, own):
    assert settings(folder, "--gamma", "2").language_strength == 2
    both = settings(folder, "--gamma", "2", "--gamma-language", "1", "--mode", "multimodal")
    assert (both.vision_strength, both.language_strength) == (2, 1)


def test_joint_mode_forgets_the_strengths_of_single_branches(folder, own):
    joint = settings(folder, "--mode", "joint")
    assert (joint.gamma, joint.gamma_language) == (0.25, None)


def test_plain_mode_has_no_configuration(folder, own):
    assert settings(folder, "--mode", "plain") is None


@pytest.mark.parametrize("layers", ["-8:", "-half:", "-1", "1,2", "half:"])
def test_layers_may_start_with_a_minus(layers):
    args = parse_args(["--image", "i", "--prompt", "p", "--language-layers", layers])
    assert args.language_layers == layers


# Refusals


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--mode both", "--mode: invalid choice: 'both'"),
        ("--vision-method reverse", "--vision-method: invalid choice"),
        ("--language-method shuffle", "--language-method: invalid choice"),
        ("--normalization none", "--normalization: invalid choice"),
        ("--site pixels", "--site: invalid choice"),
        ("--vision-layers most", "vision_layers='most'"),
        ("--language-layers 1:2:0:4", "language_layers='1:2:0:4'"),
        ("--gamma -1", "gamma=-1.0: expected a number from 0 to 1,000,000"),
        ("--gamma nan", "gamma=nan"),
        ("--gamma much", "--gamma: invalid float value"),
        ("--gamma-vision -0.5", "gamma_vision=-0.5"),
        ("--mode joint --gamma-language 1", "mode 'joint' has one branch"),
        ("--epsilon 1.5", "epsilon=1.5: expected a number from 0 to 1"),
        ("--epsilon -0.1", "epsilon=-0.1"),
        ("--draws 0", "draws=0: expected an integer >= 1"),
        ("--draws 1.5", "--draws: invalid int value"),
        ("--seed one", "--seed: invalid int value"),
        ("--temperature 0", "'0' is not a number > 0"),
        ("--temperature inf", "'inf' is not a number > 0"),
        ("--top-p 0", "'0' is not a number in (0, 1]"),
        ("--top-p 1.1", "'1.1' is not a number in (0, 1]"),
        ("--top-k -1", "'-1' is not an integer >= 0"),
        ("--repetition-penalty 0", "'0' is not a number > 0"),
        ("--max-new-tokens 0", "'0' is not an integer >= 1"),
        ("--min-pixels 0", "'0' is not an integer >= 1"),
        ("--min-pixels 9 --max-pixels 8", "--min-pixels 9 is more than --max-pixels 8"),
        ("--greedy --top-p 0.9", "--greedy and --top-p exclude each other"),
        ("--mode plain --compare", "--compare needs a mode other than plain"),
        ("--dtype int8", "--dtype: invalid choice"),
        ("--attn flash", "--attn: invalid choice"),
        ("--colour red", "unrecognized arguments: --colour red"),
        ("--model nonsense", "unknown model 'nonsense'"),
        ("--model ./nowhere", "unknown model './nowhere'"),
        ("--config nowhere.json", "no CausalMM configuration at nowhere.json"),
        ("--image nowhere.png", "no image file at nowhere.png"),
    ],
)
def test_a_wrong_flag_is_refused(refused, flags, sentence):
    assert sentence in refused(*flags.split())


@pytest.mark.parametrize("prompt", ["", "  \n", "\udcff"])
def test_a_prompt_needs_text(refused, prompt):
    assert "the prompt is" in refused("--prompt", prompt)


@pytest.mark.parametrize("missing", ["--image", "--prompt"])
def test_image_and_prompt_are_required(capsys, missing):
    given = {"--image": "i", "--prompt": "p"}
    del given[missing]
    assert generate.main([part for pair in given.items() for part in pair]) == 2
    assert capsys.readouterr().err == f"error: the following arguments are required: {missing}\n"


def test_an_image_that_is_none_is_refused(refused, folder, tmp_path):
    whole = (folder / "image.png").read_bytes()
    contents = {
        "is empty": b"",
        "is not an image": b"a picture, honestly",
        "is a damaged or truncated image": whole[: len(whole) // 2],
    }
    for sentence, content in contents.items():
        (tmp_path / "image").write_bytes(content)
        assert sentence in refused("--image", tmp_path / "image")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    assert "more than 89,478,485 pixels" in refused("--image", tmp_path / "bomb.png")


def test_a_folder_that_is_no_checkpoint_is_refused(refused, folder, tmp_path):
    assert "no config.json" in refused("--model", tmp_path)
    shutil.copy(folder / "llava" / "config.json", tmp_path)
    assert "no weights" in refused("--model", tmp_path)
    shutil.copy(folder / "llava" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    sentence = refused("--model", tmp_path)
    assert "model_type 'blip' (Blip), which is not supported: expected one of LLaVA" in sentence


def test_a_per_model_command_refuses_the_other_family(refused, folder):
    sentence = refused("--model", folder / "qwen2_vl", family="llava")
    assert sentence.endswith("is a Qwen2-VL checkpoint: use python -m qwen2vl_causalmm.generate")


def test_a_hub_out_of_reach_is_a_failure(ask, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    out, err = ask("--model", "nobody/nothing", code=1)
    assert out == ""
    assert err.splitlines()[-1].startswith("error: nobody/nothing is no folder here")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--vision-layers 3", "layer 3 is outside the 3 layers an edit can act on"),
        ("--language-layers -99:", "-99 is outside"),
        ("--site features --vision-layers half:", "site='features'"),
        ("--device warp", "device 'warp' is not available here"),
    ],
)
def test_what_the_model_does_not_have_is_refused(refused, model, flags, sentence):
    assert sentence in refused("--model", model, *flags.split())


def test_a_prompt_the_model_cannot_take_is_refused(refused, model):
    assert "reads at most 256" in refused("--model", model, "--prompt", "is " * 300)
    token = row_of(model.name).processor().image_token
    assert "stands for an image" in refused("--model", model, "--prompt", f"what {token}")


def test_damaged_weights_are_a_failure(refused, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"")
    assert "the weights cannot be read" in refused("--model", copy, code=1)


@pytest.mark.parametrize("kind", ["accelerator", "machine"])
def test_running_out_of_memory_is_a_failure(ask, folder, monkeypatch, kind):
    def generate(*args, **kwargs):
        if kind == "machine":
            torch.empty(2**60)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    monkeypatch.setattr("causalmm.decoding.generation.CounterfactualGeneration.generate", generate)
    _, err = ask("--model", folder / "llava", code=1)
    assert err.startswith("error: not enough memory: try ")
    assert len(err.splitlines()) == 1


def test_a_bug_is_not_taken_for_a_wrong_request(folder, monkeypatch, ask):
    def generate(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr("causalmm.decoding.generation.CounterfactualGeneration.generate", generate)
    with pytest.raises(ValueError, match="a bug") as caught:
        ask("--model", folder / "llava")
    assert not isinstance(caught.value, RequestError)


def test_an_interrupt_ends_in_one_word(ask, folder, monkeypatch):
    def generate(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("causalmm.decoding.generation.CounterfactualGeneration.generate", generate)
    assert ask("--model", folder / "llava", code=130) == ("", "interrupted\n")


@pytest.mark.slow
def test_a_reader_that_is_gone_ends_quietly(folder):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        result = spawn(
            "script",
            *("--image", folder / "image.png", "--prompt", PROMPT, "--model", folder / "llava"),
            capture_output=False,
            stdout=closed,
            stderr=subprocess.PIPE,
        )
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_failure(folder):
    with open("/dev/full", "w") as full:
        result = spawn(
            "script",
            *("--image", folder / "image.png", "--prompt", PROMPT, "--model", folder / "llava"),
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert result.returncode == 1
    assert result.stderr == "error: the output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("command", ["script", *TWO_FAMILIES])
def test_commands_refuse_in_one_sentence(command, folder):
    model = ("--model", folder / command) if command in FAMILIES else ()
    result = spawn(command, *model, "--image", "nowhere.png", "--prompt", PROMPT)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: no image file at nowhere.png\n"


@pytest.mark.parametrize("command", ["script", *TWO_FAMILIES])
def test_help_lists_every_setting(command):
    result = spawn(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    for name in SETTINGS:
        assert f"--{name.replace('_', '-')}" in result.stdout
    said = "".join(result.stdout.split())  # as wide as the terminal: a name may be broken
    shown = {find(command).demo} if command in FAMILIES else set(demos())
    assert {demo for demo in demos() if demo in said} == shown - {None}


def test_help_and_refusals_do_not_wait_for_torch(folder):
    image, model = folder / "image.png", folder / "llava"
    program = f"""
import sys
from causalmm.cli import generate
for flags in (
    *(["--gamma", "-1"], ["--image", "x"], ["--model", "x"], ["--prompt", ""], ["--video", "x"]),
    *(["--messages", "x"], ["--batch", "x"], ["--chat"]),
):
    given = ["--image", {str(image)!r}, "--prompt", "p", "--model", {str(model)!r}]
    assert generate.main([*given, *flags]) == 2
print(*sorted({{"torch", "transformers"}} & sys.modules.keys()))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "\n"
