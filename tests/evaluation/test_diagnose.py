"""diagnose: what branches say alone; windows ranked on one half, reported on the other."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from family_rows import FAMILIES, fast_first
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image
from tiny_evaluation import SIZES, save_pictures, save_questions, save_yes_no_checkpoint

from causalmm import CausalMMConfig
from causalmm.cli.session import Session
from causalmm.cli.sole_writer import sole_writer
from causalmm.decoding.trace import StepLogits
from causalmm.errors import RequestError
from causalmm.evaluation.diagnosis import command as command
from causalmm.evaluation.diagnosis.figure import diagnosis_figure, lanes, shade
from causalmm.evaluation.diagnosis.first_token import FirstTokens
from causalmm.evaluation.diagnosis.fluency import Fluency
from causalmm.evaluation.diagnosis.measurement import (
    PLAIN,
    Candidate,
    Configuration,
    Measurement,
    candidates,
    measurement_line,
    read_heads,
    read_kinds,
    read_measurements,
    windows,
)
from causalmm.evaluation.diagnosis.report import ALL, SETS, diagnose, split
from causalmm.evaluation.diagnosis.scope_figure import grid, scope_figure
from causalmm.evaluation.probabilities import word_tokens
from causalmm.evaluation.records import Question, ViewChoice
from causalmm.figures import colours
from causalmm.inputs.messages import one_turn
from causalmm.layers import check_layers, resolve_layers
from causalmm.toyworld.benchmarks import BenchmarkSettings, write_vlind

# -- windows


def spec_of(layers):
    return Configuration("language", "random", layers).spec


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("all", 5, ["0:5"]),
        ("halves", 5, ["0:2", "2:5"]),
        ("halves", 32, ["0:16", "16:32"]),
        ("thirds", 32, ["0:10", "10:21", "21:32"]),
        ("thirds", 2, ["0:1", "1:2"]),
        ("halves", 1, ["0:1"]),
        ("sliding:1", 3, ["0:1", "1:2", "2:3"]),
        ("sliding:2", 4, ["0:2", "1:3", "2:4"]),
        ("sliding:8:8", 32, ["0:8", "8:16", "16:24", "24:32"]),
        ("half:", 5, ["2:5"]),
        ("-third:", 32, ["22:32"]),
        ("10:20", 32, ["10:20"]),
        ("::2", 5, ["0,2,4"]),
    ],
)
def test_windows_of_a_kind(kind, count, expected):
    assert [spec_of(each) for each in windows(kind, "language", count)] == expected


@given(count=st.integers(1, 80), width=st.integers(1, 80), step=st.integers(1, 9))
def test_halves_and_thirds_share_out_a_tower_and_sliding_windows_walk_it(count, width, step):
    for kind in ("all", "halves", "thirds"):
        layers = [layer for each in windows(kind, "vision", count) for layer in each]
        assert layers == list(range(count))
    kind = f"sliding:{width}:{step}"
    if width > count:
        with pytest.raises(RequestError, match=f"the vision tower has {count} layers to edit"):
            windows(kind, "vision", count)
        return
    found = windows(kind, "vision", count)
    assert [each[0] for each in found] == list(range(0, count - width + 1, step))
    assert {len(each) for each in found} == {width}


@given(layers=st.sets(st.integers(0, 40), min_size=1))
def test_a_window_s_name_is_a_setting_that_means_it(layers):
    layers = tuple(sorted(layers))
    spec = check_layers("layers", spec_of(layers))
    assert resolve_layers("layers", spec, 41) == layers


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("quarters", "'quarters' is none of all, halves, thirds, sliding:W"),
        ("sliding:0", "'sliding:0' is none of"),
        ("sliding:", "'sliding:' is none of"),
        (" , ", "--windows is empty"),
    ],
)
def test_what_is_no_window_is_refused(text, sentence):
    with pytest.raises(RequestError, match=sentence):
        read_kinds(text)
    assert read_kinds("all, half:,sliding:2,all") == ["all", "half:", "sliding:2"]


def test_candidates_are_a_tower_s_methods_on_its_windows():
    layers = {"vision": 3, "language": 4}
    found = candidates(layers, ["vision", "language"], ["random", "reverse"], ["all", "halves"])
    assert {each.configuration[3:] for each in found} == {("all", "all")}
    assert [(*each.configuration[:2], each.configuration.spec, each.kind) for each in found] == [
        ("vision", "random", "0:3", "all"),
        ("vision", "random", "0:1", "halves"),
        ("vision", "random", "1:3", "halves"),
        *(
            ("language", method, *window)
            for method in ("reverse", "random")
            for window in (("0:4", "all"), ("0:2", "halves"), ("2:4", "halves"))
        ),
    ]
    with pytest.raises(RequestError, match="the vision tower has uniform, reversed, random"):
        candidates(layers, ["vision"], ["reverse"], ["all"])
    with pytest.raises(RequestError, match="no vision layer to edit"):
        candidates({"vision": 0}, ["vision"], ["random"], ["all"])
    with pytest.raises(RequestError, match=r"vision tower: --windows='3:5': 5 is outside"):
        candidates(layers, ["vision"], ["random"], ["3:5"])


def test_the_decoder_s_methods_come_under_every_scope_and_choice_of_heads():
    layers = {"vision": 3, "language": 4}

    def edits(tower, methods, scopes, heads=("all",), normalization="visible"):
        given = (layers, [tower], methods, ["all"], scopes, heads, normalization)
        return [(each.configuration.method, *each.configuration[3:]) for each in candidates(*given)]

    assert edits("language", ["blind", "uniform"], ["all", "image"], ["all", "image:2"]) == [
        ("uniform", "all", "all"),
        ("uniform", "all", "image:2"),
        ("uniform", "image", "all"),
        ("uniform", "image", "image:2"),
        ("blind", "image", "all"),
        ("blind", "image", "image:2"),
    ]
    both = ["all", "image"]
    assert edits("language", ["uniform", "blind"], both, normalization="released") == [
        ("uniform", "all", "all")
    ]
    # They are no matter of the vision tower.
    assert edits("vision", ["uniform"], ["image"], ["image:2"]) == [("uniform", "all", "all")]
    for methods, scopes, normalization in (
        (["blind"], ["all"], "visible"),
        (["uniform"], ["image"], "released"),
        (["blind"], both, "released"),
    ):
        with pytest.raises(RequestError, match="no language method is left: (blind|uniform) has"):
            edits("language", methods, scopes, normalization=normalization)


@pytest.mark.parametrize("text", ["image:0", "0,1", "all,heads", "image"])
def test_what_is_no_choice_of_heads_is_refused(text):
    with pytest.raises(RequestError, match="is neither all nor image:K with K > 0"):
        read_heads(text)
    with pytest.raises(RequestError, match="--heads is empty"):
        read_heads(", ")
    assert read_heads(" all, image:4,all") == ["all", "image:4"]


def test_a_configuration_is_one_branch():
    base = CausalMMConfig(gamma=0.7, gamma_vision=0.2, epsilon=0.3, draws=2, seed=4)
    vision = Configuration("vision", "reversed", (1, 2)).over(replace(base, site="features"))
    assert vision == CausalMMConfig(
        mode="vision",
        vision_method="reversed",
        vision_layers="1:3",
        gamma=0.7,
        epsilon=0.3,
        draws=2,
        seed=4,
    )
    language = Configuration("language", "reverse", (0, 3)).over(base)
    assert (language.mode, language.language_layers) == ("language", (0, 3))
    assert language.language_strength == 0.7
    blind = Configuration("language", "blind", (0,), "image", "image:2")
    assert blind.name == "blind image image:2"
    config = blind.over(base)
    assert (config.language_scope, config.language_heads) == ("image", "image:2")
    # What another scope needs is left behind.
    assert Configuration("language", "reverse", (0, 3)).over(config) == language
    assert Configuration("vision", "reversed", (1, 2)).over(config).language_scope == "image"


# -- the first token


def test_what_a_view_says():
    """Tokens: 0 and 1 spell yes, 2 no, 3 anything else."""
    words = {"yes": [0, 1], "no": [2]}
    factual = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.1, 0.1, 0.7, 0.1]])
    language = torch.tensor([[0.1, 0.1, 0.2, 0.6], [0.25, 0.25, 0.25, 0.25]])
    adjusted = torch.where(factual < 0.15, factual.log() - 2000, factual.log())
    trace = FirstTokens(words)
    # Logits are known up to a constant.
    trace.record(StepLogits(factual.log() + 3, adjusted, language=language.log() - 1))
    trace.record(StepLogits(language, language))  # the second token is not looked at
    first, second = trace.said(0, ("yes", "no")), trace.said(1, ("yes", "no"))
    assert list(first) == ["factual", "adjusted", "language"]
    assert [each.choice for each in first.values()] == [0, 0, None]
    assert [each.choice for each in second.values()] == [1, 1, 0]
    assert trace.said(0, ("no", "yes"))["factual"].choice == 1
    assert first["factual"].probabilities == pytest.approx((0.5, 0.3))
    assert first["language"].probabilities == pytest.approx((0.2, 0.2))
    assert first["adjusted"].probabilities == pytest.approx((4 / 9, 3 / 9))
    assert second["adjusted"].probabilities == pytest.approx((0, 1))
    assert first["factual"].divergence == 0
    assert first["adjusted"].divergence is None
    for row, said in enumerate((first, second)):
        p, q = factual[row].tolist(), language[row].tolist()
        entropy = -sum(each * math.log(each) for each in q)
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert said["language"].entropy == pytest.approx(entropy, rel=1e-5)
        assert said["language"].divergence == pytest.approx(divergence, rel=1e-4)
    assert second["adjusted"].entropy == pytest.approx(0, abs=1e-6)


# -- the command, on tiny random models


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Pictures, questions, those that contradict a prior, and a checkpoint of each family."""
    folder = tmp_path_factory.mktemp("diagnose")
    for family in FAMILIES:
        save_yes_no_checkpoint(family, folder / family)
    save_pictures(folder)
    save_questions(folder)
    rows = [
        {"question_id": 1, "image": "a.png", "text": "what is a banana ?", "label": "no"},
        {"question_id": 2, "image": "c.png", "text": "what is a banana ?", "label": "no"},
        {"question_id": 3, "image": "c.png", "text": "is a user this ?", "label": "yes"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "odd.json").write_text(lines)
    return folder


FEW = ("--methods", "uniform", "--windows", "halves", "--scopes", "all", "--fluency", "0")


def flags(folder, *more, model="llava"):
    given = ["--questions", folder / "tiny_pope_random.json", "--images", folder, "--suffix", ""]
    given += ["--contradicting", folder / "odd.json", "--model", folder / model, *FEW, *more]
    return [str(each) for each in given]


@pytest.fixture
def run(folder, tmp_path, capfd, monkeypatch):
    """Run the command in this process; gives measurements, the table and what was said."""

    def run(*more, out="out", code=0, draw=False, **options):
        # A picture takes longer than all the rest.
        if not draw:
            monkeypatch.setattr(command, "_draw", lambda *given: None)
        assert command.main(flags(folder, "--out", tmp_path / out, *more, **options)) == code
        said = capfd.readouterr()
        if code:
            return None, None, said.err
        return read(tmp_path / out), said.out, said.err

    return run


def read(out):
    """Lines of measurements, without the seconds."""
    lines = (out / command.MEASUREMENTS).read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert all(each.pop("seconds") > 0 for each in lines)
    return lines


@pytest.mark.parametrize("model", fast_first(1, FAMILIES))
def test_numbers_are_those_of_separate_forwards(folder, run, tmp_path, model):
    methods = ("--methods", "uniform", "random", "shuffle", "reverse", "blind", "--draws", "2")
    methods += ("--scopes", "all", "image")
    given = ("--gamma", "0.6", "--epsilon", "0.2", "--seed", "5", *methods)
    lines, _, _ = run(*given, model=model)
    args = command.parse_args(flags(folder, *given, "--out", tmp_path / "out", model=model))
    questions = command.asked(args)
    assert len(questions) == 10
    request = command.find_model(args)
    session = Session.start(args, request)
    ids = [word_tokens(session.processor.tokenizer, word) for word in ("yes", "no")]
    inputs = [session.inputs(one_turn([each.path], each.prompt)) for each in questions]

    def forward(config):
        with torch.no_grad():
            return [
                session.model(**each, causalmm=config).logits[0, -1].double() for each in inputs
            ]

    def check(flat, logits, factual):
        choice, yes, no, entropy, divergence = flat
        p, log = logits.softmax(-1), logits.log_softmax(-1)
        best = int(logits.argmax())
        assert choice == next((place for place in (0, 1) if best in ids[place]), None)
        assert [yes, no] == pytest.approx([p[each].sum().item() for each in ids], abs=1e-5)
        assert entropy == pytest.approx(torch.special.entr(p).sum().item(), rel=1e-4, abs=1e-5)
        if divergence is not None:
            apart = (factual.softmax(-1) * (factual.log_softmax(-1) - log)).sum().item()
            assert divergence == pytest.approx(apart, rel=1e-3, abs=1e-5)

    factual = forward(None)
    assert lines[0]["tower"] == "plain"
    for flat, logits in zip(lines[0]["alone"], factual, strict=True):
        check(flat, logits, logits)
        assert flat[4] == 0
    assert lines[0]["alone"] == lines[0]["adjusted"]
    # Each tower has two halves; vision knows three of the methods, language three and for scope
    # image four.
    assert len(lines) == 1 + 2 * 3 + 2 * 3 + 2 * 4
    choices = set()
    for line in lines[1:]:
        tower = line["tower"]
        config = CausalMMConfig(
            mode=tower,
            gamma=0.6,
            epsilon=0.2,
            draws=2,
            seed=5,
            **{f"{tower}_method": line["method"], f"{tower}_layers": tuple(line["layers"])},
            language_scope=line["scope"],
        )
        adjusted = forward(config)
        # At strength 1 and without a mask: 2 l - l'.
        unmasked = forward(replace(config, gamma=1.0, epsilon=0.0))
        for place in range(len(questions)):
            branch = 2 * factual[place] - unmasked[place]
            check(line["alone"][place], branch, factual[place])
            check(line["adjusted"][place][:4] + [None], adjusted[place], factual[place])
            choices.add(line["alone"][place][0])
    assert len(choices) > 1


def test_the_files_of_a_diagnosis(folder, run, tmp_path):
    lines, table, said = run(draw=True)
    out = tmp_path / "out"
    assert sorted(each.name for each in out.iterdir()) == [
        *("heatmap.png", "measurements.jsonl", "run.json", "scopes.png", "table.json")
    ]
    assert [(each["tower"], each["method"], each["layers"]) for each in lines] == [
        ("plain", "", []),
        ("vision", "uniform", [0]),
        ("vision", "uniform", [1, 2]),
        ("language", "uniform", [0, 1]),
        ("language", "uniform", [2, 3]),
    ]
    assert "50/50" in said
    found = json.loads((out / "table.json").read_text())
    assert found["sets"] == list(SETS)
    assert len(found["ranked"]) == 4
    gains = [each["development"]["AUC gain"] for each in found["ranked"]]
    assert gains == sorted(gains, reverse=True)
    assert found["rank"] == "auc"
    assert {(each["scope"], each["heads"]) for each in found["ranked"]} == {("all", "all")}
    assert found["run"]["layers"]["language"] == 4
    assert found["run"]["base"]["gamma"] == 1.0
    assert sum(map(sum, (each.values() for each in found["questions"].values()))) == 10
    for each in found["ranked"]:
        assert each["setting"] in table
        assert each["fluency"] == {}
    for name in ("heatmap.png", "scopes.png"):
        with Image.open(out / name) as picture:
            assert picture.width == 1800


def test_fluency_stands_beside_what_a_branch_says(run, tmp_path):
    given = ("--fluency", "2", "--scopes", "all", "image", "--towers", "language")
    lines, table, _ = run(*given, "--heads", "all,image:2", "--methods", "uniform", "blind")
    assert [(each["method"], each["scope"], each["heads"]) for each in lines[1::2]] == [
        *(("uniform", scope, heads) for scope in ("all", "image") for heads in ("all", "image:2")),
        *(("blind", "image", heads) for heads in ("all", "image:2")),
    ]
    found = json.loads((tmp_path / "out" / "table.json").read_text())
    plain = found["plain"]
    assert len(plain["image_mass_by_layer"]) == found["run"]["layers"]["language"]
    assert plain["fluency"]["plain image mass"] == pytest.approx(
        np.mean(plain["image_mass_by_layer"])
    )
    for each in found["ranked"]:
        numbers = each["fluency"]
        by_image = "image" in each["scope"] + each["heads"]
        same = numbers["text perplexity"] == pytest.approx(plain["fluency"]["text perplexity"])
        assert same == by_image
        if each["method"] == "blind":
            assert (numbers["image mass"] == 0) == (each["heads"] == "all")
    assert "| text perplexity |" in table
    # It is a setting of what is there already.
    _, _, said = run("--fluency", "3", code=2)
    assert "other settings (fluency: 2, now 3)" in said


def test_heads_that_the_model_does_not_have(run):
    _, _, said = run("--heads", "image:99", code=2)
    assert said.splitlines()[-1] == "error: --heads='image:99': a decoder layer has 4 heads"


def test_measurements_of_before_there_were_scopes_are_read(run, tmp_path, monkeypatch):
    lines, table, _ = run()
    file = tmp_path / "out" / command.MEASUREMENTS
    old = [json.loads(line) for line in file.read_text().splitlines()]
    for each in old:
        assert (each.pop("scope"), each.pop("heads"), each.pop("fluency")) == ("all", "all", None)
    file.write_text("".join(json.dumps(each) + "\n" for each in old))
    monkeypatch.setattr(command.Session, "start", None)
    assert run()[1] == table


def test_a_question_file_alone(folder, run, tmp_path):
    args = [each for each in flags(folder) if each not in ("--contradicting",)]
    args.remove(str(folder / "odd.json"))
    assert command.main([*args, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "table.json").read_text())
    assert found["sets"] == [ALL]
    assert {"alone", "adjusted", "gain", "unreadable"} <= found["ranked"][0]["held_out"].keys()


def test_one_load_of_the_model(run, monkeypatch):
    started = []
    start = command.Session.start
    monkeypatch.setattr(command.Session, "start", lambda *given: started.append(1) or start(*given))
    run()
    assert started == [1]


# Going on


def test_an_interrupted_run_is_completed(run, tmp_path):
    whole, table, _ = run()
    file = tmp_path / "out" / command.MEASUREMENTS
    text = file.read_bytes()
    ends = [index + 1 for index, byte in enumerate(text) if byte == 10]
    for size in (0, ends[0] // 2, ends[0], ends[2] - 1, ends[3]):
        file.write_bytes(text[:size])
        again, table_again, _ = run()
        assert again == whole
        assert table_again == table


def test_a_kill_costs_one_measurement_at_most(run, tmp_path, monkeypatch):
    measured = []
    measure = command.measure

    def until_killed(*given, **options):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(given[2])
        return measure(*given, **options)

    monkeypatch.setattr(command, "measure", until_killed)
    _, _, said = run(code=130)
    assert said.splitlines()[-1] == "interrupted"
    assert len(read(tmp_path / "out")) == 2
    monkeypatch.undo()
    assert run()[0] == run(out="whole")[0]


def test_what_is_measured_is_not_measured_again(run, monkeypatch):
    lines, table, _ = run()
    monkeypatch.setattr(command.Session, "start", None)
    assert run()[:2] == (lines, table)
    # A part of it needs no model either.
    part, _, _ = run("--towers", "language")
    assert part == lines


def test_other_windows_are_added(run, tmp_path):
    lines, _, _ = run()
    more, _, said = run("--windows", "halves,sliding:1:3")
    assert more[: len(lines)] == lines
    assert [each["layers"] for each in more[len(lines) :]] == [[0], [3]]
    found = json.loads((tmp_path / "out" / "table.json").read_text())
    named = {(each["tower"], each["setting"]): each["windows"] for each in found["ranked"]}
    assert named["language", "3:4"] == ["sliding:1:3"]
    # The first vision half is one layer.
    assert named["vision", "0:1"] == ["halves", "sliding:1:3"]


def test_a_folder_belongs_to_one_process_at_a_time(run, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Session, "start", None)
    with sole_writer(tmp_path / "out" / command.MEASUREMENTS):
        _, _, said = run(code=2)
    assert "another process is writing" in said.splitlines()[-1]
    assert not list((tmp_path / "out").iterdir())


def test_other_settings_are_refused(run, folder, tmp_path):
    run()
    text = (tmp_path / "out" / command.MEASUREMENTS).read_bytes()

    def refused(*given, **options):
        _, _, said = run(*given, code=2, **options)
        assert len(said.splitlines()) == 1
        assert (tmp_path / "out" / command.MEASUREMENTS).read_bytes() == text
        return said

    assert "other settings (base: {" in refused("--gamma", "0.5")
    assert "other settings (model: " in refused(model="qwen2_vl")
    assert "other settings (questions: 10, now 8)" in refused("--limit", "3")
    with open(tmp_path / "out" / command.MEASUREMENTS, "ab") as file:
        file.write(b'{"tower": "vision"}\n')
    text = (tmp_path / "out" / command.MEASUREMENTS).read_bytes()
    assert "line 6 is no measurement of 10 questions" in refused()


# User errors


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--windows", "quarters"), "'quarters' is none of"),
        (("--windows", "30:40"), "vision tower: --windows='30:40': 30 is outside"),
        (("--windows", "sliding:9"), "the vision tower has"),
        (("--towers", "sound"), "invalid choice: 'sound'"),
        (("--methods", "reverse", "--towers", "vision"), "the vision tower has uniform"),
        (("--gamma", "0"), "gamma 0 leaves no branch to look at"),
        (("--gamma", "-1"), "gamma=-1.0"),
        (("--images", "nowhere"), "none of the 4 images is there"),
        (("--contradicting", "nowhere.json"), "nowhere.json cannot be read"),
        (("--model", "nowhere"), "unknown model 'nowhere'"),
        (("--mode", "vision"), "unrecognized arguments: --mode"),
        (("--limit", "1"), "'1' is not an integer >= 2"),
    ],
)
def test_a_wrong_request_is_one_sentence(run, given, sentence):
    _, _, said = run(*given, code=2)
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    assert sentence in last


def test_all_questions_marked_leave_none(run, folder):
    _, _, said = run("--contradicting", folder / "tiny_pope_random.json", code=2)
    assert "--contradicting holds all of --questions" in said


def test_too_few_images_to_split(run, folder, tmp_path):
    row = {"question_id": 1, "image": "b.png", "text": "is this a banana ?", "label": "no"}
    (tmp_path / "one.json").write_text(json.dumps(row) + "\n")
    _, _, said = run("--contradicting", tmp_path / "one.json", code=2)
    assert "the prior-contradicting questions are about too few images" in said.splitlines()[-1]


def test_a_tokenizer_without_the_words(run, tmp_path):
    from tiny_checkpoints import save_checkpoint

    save_checkpoint("llava", tmp_path / "wordless")
    _, _, said = run("--model", tmp_path / "wordless", code=2)
    assert "the tokenizer has no token 'yes'" in said.splitlines()[-1]


def test_a_bad_picture_leaves_out_its_questions(run, folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in SIZES:
        (images / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
    (images / "b.png").write_text("no picture")
    lines, table, _ = run("--images", images)
    assert [each["alone"].count(None) for each in lines] == [1] * len(lines)
    assert "1 questions failed" in table
    assert "b.png is not an image that Pillow can read" in table
    found = json.loads((tmp_path / "out" / "table.json").read_text())
    assert list(found["failed"]) == ["consistent/tiny/random/2"]
    assert sum(found["images"].values()) == 3


def test_running_out_of_memory(run, monkeypatch):
    def generate(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    monkeypatch.setattr("causalmm.decoding.generation.CounterfactualGeneration.generate", generate)
    _, _, said = run(code=1)
    assert said.splitlines()[-1].startswith("error: not enough memory: try smaller images")


# Which questions


def parsed(folder, tmp_path, *more):
    return command.parse_args(flags(folder, "--out", tmp_path / "out", *more))


def test_a_part_of_the_questions_may_be_marked(folder, tmp_path):
    file = folder / "tiny_pope_random.json"
    lines = file.read_text().splitlines(keepends=True)
    (tmp_path / "marked.json").write_text("".join(lines[2:5]))
    found = command.asked(parsed(folder, tmp_path, "--contradicting", tmp_path / "marked.json"))
    assert len(found) == len(lines)
    sets = [each.facts["set"] for each in found]
    assert sets == ["consistent"] * (len(lines) - 3) + ["contradicting"] * 3
    marked = [each.id.rpartition("/")[2] for each in found[-3:]]
    assert marked == [str(json.loads(line)["question_id"]) for line in lines[2:5]]


def test_a_right_answer_may_be_what_marks_a_question(folder, tmp_path):
    given = ("--contradicting", folder / "tiny_pope_random.json", "--contradicting-label", "no")
    found = command.asked(parsed(folder, tmp_path, *given))
    assert {(each.facts["set"], each.label) for each in found} == {
        *(("consistent", "yes"), ("contradicting", "no"))
    }
    assert len(found) == 7
    lines = [json.dumps({"question_id": 1, "image": "a.png", "text": "is ?", "label": "yes"})]
    (tmp_path / "yes.json").write_text("\n".join([*lines, ""]))
    given = ("--contradicting", tmp_path / "yes.json", "--contradicting-label", "no")
    with pytest.raises(RequestError, match="has no question to be marked"):
        command.asked(parsed(folder, tmp_path, *given))


def test_vlind_gives_the_language_prior_questions(folder, tmp_path):
    (tmp_path / "vlind").mkdir()
    write_vlind(tmp_path / "vlind", BenchmarkSettings(images=2))
    for path in (tmp_path / "vlind", tmp_path / "vlind" / "data.json"):
        found = command.asked(parsed(folder, tmp_path, "--contradicting", path))
        part = [each for each in found if each.facts["set"] == "contradicting"]
        assert {each.choices for each in part} == {("true", "false")}
        assert all("/LP" in each.id for each in part)
        rows = json.loads((tmp_path / "vlind" / "data.json").read_text())
        good = sum(
            votes >= 2
            for row in rows
            for votes in row["aggregated_human_label_good_images"].values()
        )
        assert len(part) == 2 * good


# -- ranking and report


def question(number, image, label, name=ALL):
    return Question(
        id=str(number),
        image=image,
        path=image,
        prompt="",
        choices=("yes", "no"),
        label=label,
        facts={"set": name},
    )


def said(text, yes=None, entropy=1.0, divergence=0.5):
    choice = {"yes": 0, "no": 1, "?": None}[text]
    yes = {"yes": 0.8, "no": 0.2, "?": 0.4}[text] if yes is None else yes
    return ViewChoice(choice, yes, 1 - yes, entropy, divergence)


def measured(configuration, alone, adjusted=None):
    adjusted = alone if adjusted is None else adjusted
    return Measurement(
        configuration=configuration,
        alone=tuple(each and said(each) for each in alone),
        adjusted=tuple(each and said(each) for each in adjusted),
        errors={
            str(place): "no image file at x" for place, each in enumerate(alone) if each is None
        },
        seconds=1.0,
    )


GOOD = Configuration("language", "uniform", (2, 3))
BAD = Configuration("language", "uniform", (0, 1))
WIDE = Configuration("language", "uniform", (0, 1, 2, 3))
BROKEN = Configuration("language", "random", (2, 3))
WANTED = [
    *(Candidate(WIDE, "all"), Candidate(BAD, "halves"), Candidate(GOOD, "halves")),
    *(Candidate(GOOD, "sliding:2"), Candidate(BROKEN, "halves")),
]


@pytest.fixture
def world():
    """40 images; each has a consistent question and, on half of them, a contradicting one.

    The plain model says yes to everything, which is what the prior says.
    """
    questions = [question(i, f"{i:02}", "yes", "consistent") for i in range(40)]
    questions += [question(40 + i, f"{i:02}", "no", "contradicting") for i in range(20)]
    plain = ["yes"] * 60
    right = ["yes"] * 40 + ["no"] * 10 + ["yes"] * 10
    wrong = ["no"] * 4 + ["yes"] * 56
    return questions, {
        PLAIN: measured(PLAIN, plain),
        GOOD: measured(GOOD, plain, right),
        WIDE: measured(WIDE, plain, right),
        BROKEN: measured(BROKEN, ["?"] * 60, right),
        BAD: measured(BAD, ["?"] * 30 + ["yes"] * 30, wrong),
    }


def shares(questions, halves, measurement):
    """Accuracies of the adjusted answers by half and set, counted one by one."""
    found = {}
    for half, images in halves.items():
        for name in SETS:
            here = [
                (each, answer)
                for each, answer in zip(questions, measurement.adjusted, strict=True)
                if each.path in images and each.facts["set"] == name
            ]
            right = [answer.choice == each.choices.index(each.label) for each, answer in here]
            found[half, name] = 100 * sum(right) / len(right)
    return found


def test_configurations_are_ranked_on_one_half_and_reported_on_the_other(world):
    questions, measurements = world
    halves = split(questions)
    found = diagnose(questions, measurements, WANTED)
    # Equally good ones: first what can be read, then what edits less.
    assert [each.configuration for each in found.ranked] == [GOOD, WIDE, BROKEN, BAD]
    assert found.ranked[0].kinds == ("halves", "sliding:2")
    assert found.best is found.ranked[0]
    plain = shares(questions, halves, measurements[PLAIN])
    for each in found.ranked:
        ours = shares(questions, halves, measurements[each.configuration])
        for half, values in (
            ("development", each.development),
            ("held out", {name: value.value for name, value in each.held_out.items()}),
        ):
            for name in SETS:
                gain = ours[half, name] - plain[half, name]
                assert values[f"gain {name}"] == pytest.approx(gain)
                assert values[f"adjusted {name}"] == pytest.approx(ours[half, name])
            mean = np.mean([values[f"gain {name}"] for name in SETS])
            assert values["gain"] == pytest.approx(mean)
    assert found.plain.held_out["adjusted consistent"].value == 100
    assert found.plain.held_out["adjusted contradicting"].value == 0
    gain = found.ranked[0].held_out["gain"]
    assert gain.low <= gain.value <= gain.high
    assert gain.low < gain.high
    assert found.ranked[2].held_out["unreadable"].value == 100
    assert found.ranked[0].held_out["unreadable"].value == 0
    assert found.ranked[0].held_out["entropy"].value == pytest.approx(1.0)
    assert found.ranked[0].held_out["divergence"].value == pytest.approx(0.5)
    assert found.ranked[0].held_out["alone contradicting"].value == 0
    assert found.ranked[2].held_out["alone consistent"].value == 0


def test_configurations_are_ranked_by_auc_or_by_accuracy(world):
    """`leaning` answers all questions right and knows no order; `knowing` the other way round."""
    questions = [question(i, f"{i:02}", ("yes", "no")[i % 2]) for i in range(40)]
    plain = measured(PLAIN, ["yes"] * 40)
    right = measured(GOOD, ["yes"] * 40, ["yes", "no"] * 20)
    leaning = tuple(each._replace(first=0.5, second=0.5) for each in right.adjusted)
    knowing = tuple(said("yes", yes=(0.9, 0.6)[i % 2]) for i in range(40))
    measurements = {
        PLAIN: plain,
        GOOD: replace(right, adjusted=leaning),
        BAD: replace(plain, configuration=BAD, adjusted=knowing),
        WIDE: replace(plain, configuration=WIDE, adjusted=knowing),
    }
    found = diagnose(questions, measurements, WANTED[:3])
    assert [each.configuration for each in found.ranked] == [BAD, WIDE, GOOD]
    assert found.best.development == pytest.approx(found.best.development | {"AUC gain": 50})
    assert found.best.development["gain"] == 0
    found = diagnose(questions, measurements, WANTED[:3], rank="gain")
    assert [each.configuration for each in found.ranked] == [GOOD, BAD, WIDE]
    assert found.best.development["gain"] > 50
    assert found.best.development["AUC gain"] == 0
    assert "ranked by the gain on 20 images" in found.table(5)
    # AUC first, then accuracy.
    measurements[WIDE] = replace(
        measurements[WIDE],
        adjusted=tuple(each._replace(choice=place % 2) for place, each in enumerate(knowing)),
    )
    found = diagnose(questions, measurements, WANTED[:3])
    assert [each.configuration for each in found.ranked] == [WIDE, BAD, GOOD]


def test_there_is_no_auc_where_one_choice_is_always_right():
    questions = [question(i, f"{i:02}", "no") for i in range(8)]
    plain = measured(PLAIN, ["yes"] * 8)
    measurements = {PLAIN: plain, GOOD: measured(GOOD, ["yes"] * 8, ["no"] * 8)}
    found = diagnose(questions, measurements, WANTED[2:3])
    assert found.best is None
    assert "no AUC where one choice is always right: --rank gain" in found.table(3)
    assert found.to_dict()["ranked"][0]["development"]["AUC gain"] is None
    assert diagnose(questions, measurements, WANTED[2:3], rank="gain").best.configuration == GOOD


def test_the_held_out_half_does_not_rank(world):
    """Whatever happens to held-out answers, the order stays."""
    questions, measurements = world
    before = [each.configuration for each in diagnose(questions, measurements, WANTED).ranked]
    held_out = split(questions)["held out"]
    spoilt = dict(measurements)
    answers = [
        said("?") if each.path in held_out else answer
        for each, answer in zip(questions, measurements[GOOD].adjusted, strict=True)
    ]
    spoilt[GOOD] = replace(measurements[GOOD], adjusted=tuple(answers))
    after = diagnose(questions, spoilt, WANTED)
    assert [each.configuration for each in after.ranked] == before
    assert after.ranked[0].held_out["gain"].value < 0


def test_only_what_is_wanted_is_ranked(world):
    questions, measurements = world
    found = diagnose(questions, measurements, WANTED[1:2])
    assert [each.configuration for each in found.ranked] == [BAD]
    assert found.best is None
    assert "no configuration has an AUC gain over the plain model" in found.table(5)


def test_questions_that_failed_anywhere_are_left_out_everywhere(world):
    questions, measurements = world
    answers = [None, *(["yes"] * 59)]
    measurements = measurements | {BAD: measured(BAD, answers)}
    found = diagnose(questions, measurements, WANTED)
    assert found.failed == {"0": "no image file at x"}
    assert sum(sum(each.values()) for each in found.questions.values()) == 59


def test_a_constant_bias_stands_beside_the_contrasts():
    """Log-odds tell right from wrong, but the plain model leans toward yes."""
    questions = [question(i, f"{i // 2:02}", ("yes", "no")[i % 2]) for i in range(40)]
    leaning = tuple(said("yes", yes=(0.9, 0.6)[i % 2]) for i in range(40))
    plain = measured(PLAIN, ["yes"] * 40)
    plain = replace(plain, alone=leaning, adjusted=leaning)
    other = replace(plain, configuration=GOOD)
    found = diagnose(questions, {PLAIN: plain, GOOD: other}, WANTED[2:3])
    assert found.plain.held_out["adjusted"].value == 50
    assert found.bias.held_out["adjusted"].value == 100
    # Anything between the two log-odds does; the middle is taken.
    low, high = math.log(0.6 / 0.4), math.log(0.9 / 0.1)
    assert found.biases == {"yes/no": pytest.approx(-(low + high) / 2)}
    assert found.ranked[0].held_out["gain"].value == 0
    assert found.ranked[0].held_out["AUC gain"].value == 0
    assert "alone" not in found.bias.held_out


def test_auc_sees_what_accuracy_does_not(world):
    questions = [question(i, f"{i:02}", ("yes", "no")[i % 2]) for i in range(40)]
    blind = measured(PLAIN, ["yes"] * 40)
    knowing = tuple(said("yes", yes=(0.9, 0.6)[i % 2]) for i in range(40))
    other = replace(blind, configuration=GOOD, adjusted=knowing)
    found = diagnose(questions, {PLAIN: blind, GOOD: other}, WANTED[2:3])
    assert found.ranked[0].held_out["gain"].value == 0
    assert found.ranked[0].held_out["AUC gain"].value == pytest.approx(50)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefghijklmnop"), st.sampled_from(SETS)),
        min_size=1,
        max_size=60,
    ),
    st.integers(0, 5),
)
def test_images_are_split_in_two_of_every_set(asked, seed):
    questions = [question(i, image, "yes", name) for i, (image, name) in enumerate(asked)]
    images = {name: {image for image, its in asked if its == name} for name in SETS}
    try:
        halves = split(questions, seed)
    except RequestError:
        return
    first, second = halves.values()
    assert not first & second
    assert first | second == {image for image, _ in asked}
    assert abs(len(first) - len(second)) <= 1
    for its in images.values():
        if its:
            assert its & first
            assert its & second
            # Two strata, each of which may be odd.
            assert abs(len(its & first) - len(its & second)) <= 2
    assert split(questions[::-1], seed) == halves


def test_measurements_are_read_as_they_were_written(tmp_path):
    each = measured(GOOD, ["yes", None, "?"], ["no", None, "yes"])
    file = tmp_path / "measurements.jsonl"
    assert read_measurements(file, 3) == {}
    file.write_bytes(measurement_line(each) + measurement_line(each)[:-9])
    assert read_measurements(file, 3) == {GOOD: each}
    fluency = Fluency(
        answer_nats=1.5, answer_tokens=2, text_nats=0.5, text_tokens=3, image_mass=(0.1, 0.2)
    )
    where = GOOD._replace(scope="image", heads="image:2")
    other = replace(each, configuration=where, fluency=fluency)
    file.write_bytes(measurement_line(each) + measurement_line(other))
    assert read_measurements(file, 3) == {GOOD: each, where: other}
    with pytest.raises(RequestError, match="line 1 is no measurement of 4 questions"):
        read_measurements(file, 4)


def test_the_table_says_what_there_is_to_know(world):
    questions, measurements = world
    text = diagnose(questions, measurements, WANTED).table(2)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert header[6:] == [
        *("alone consistent", "alone contradicting", "unreadable", "entropy", "divergence"),
        *("adjusted consistent", "adjusted contradicting", "AUC gain", "gain", "ranked by"),
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[:6] for row in rows] == [
        ["", "plain", "", "", "", ""],
        ["", "bias", "", "", "", ""],
        ["1", "language", "uniform", "all", "all", "2:4"],
        ["2", "language", "uniform", "all", "all", "0:4"],
    ]
    assert rows[0][6:8] == ["", ""]
    assert "2 more configurations are in table.json" in text


# -- a configuration to keep


def test_the_best_window_is_written_if_it_gains(run, tmp_path, folder):
    """Labels decide which is best, and measure nothing again."""
    given = ("--gamma", "4", "--epsilon", "0", "--windows", "sliding:1", "--rank", "gain")
    lines, _, _ = run(*given)
    for name in ("tiny_pope_random.json", "odd.json"):
        text = (folder / name).read_text().replace('"yes"}', '"no"}')
        (tmp_path / name).write_text(text)
    given += ("--questions", tmp_path / "tiny_pope_random.json")
    given += ("--contradicting", tmp_path / "odd.json", "--write", tmp_path / "kept")
    again, _, said = run(*given)
    assert again == lines
    best = json.loads((tmp_path / "out" / "table.json").read_text())["ranked"][0]
    assert best["development"]["gain"] > 0
    written = CausalMMConfig.from_pretrained(tmp_path / "kept")
    assert written == CausalMMConfig(
        mode=best["tower"],
        gamma=4.0,
        epsilon=0.0,
        **{f"{best['tower']}_method": best["method"]},
        **{f"{best['tower']}_layers": best["setting"]},
    )
    assert said.endswith(f"wrote {tmp_path / 'kept' / 'causalmm_config.json'}\n")
    _, _, said = run(*given, code=2)
    assert "is there already" in said


def test_no_gain_no_configuration(world, tmp_path):
    questions, measurements = world
    found = diagnose(questions, measurements, WANTED[1:2])
    with pytest.raises(command.FailureError, match=r"no causalmm_config\.json is written"):
        command._write_configuration(tmp_path / "kept", found, CausalMMConfig())
    assert not (tmp_path / "kept").exists()


# -- the heat map


def test_windows_lie_where_their_layers_are():
    layers = {"vision": 3, "language": 6}
    kinds = ["all", "thirds", "sliding:4", "sliding:3:2"]
    wanted = candidates(layers, ["language"], ["uniform", "reverse"], kinds)
    found = lanes(wanted, "language")
    assert [(each.name, each.kind) for each in found] == [
        (method, kind) for method in ("uniform", "reverse") for kind in kinds
    ]
    cells = {lane.kind: [(cell.start, cell.end) for cell in lane.cells] for lane in found}
    assert cells == {
        "all": [(0, 6)],
        "thirds": [(0, 2), (2, 4), (4, 6)],
        "sliding:4": [(0, 2.5), (2.5, 3.5), (3.5, 6)],
        "sliding:3:2": [(0, 2.5), (2.5, 5)],
    }
    assert lanes(wanted, "vision") == []


@pytest.mark.parametrize(
    ("share", "diverging", "expected"),
    [
        (0, False, (1, 1, 1)),
        (1, False, to_rgb(colours.FACTUAL)),
        (0, True, (1, 1, 1)),
        (1, True, to_rgb(colours.MORE)),
        (-1, True, to_rgb(colours.LESS)),
        (-3, True, to_rgb(colours.LESS)),
        (math.nan, False, to_rgb(colours.UNSEEN)),
    ],
)
def test_the_colour_of_a_number(share, diverging, expected):
    np.testing.assert_allclose(shade(share, diverging), expected)


def test_the_heat_map_shows_the_held_out_numbers(world):
    questions, measurements = world
    found = diagnose(questions, measurements, WANTED)
    figure = diagnosis_figure(found, WANTED, {"vision": 3, "language": 4}, "tiny")
    headings = [axes.get_title().replace("\n", " ") for axes in figure.axes]
    assert headings == [
        "branch alone % right consistent",
        "branch alone % right contradicting",
        "branch alone % unreadable",
        "adjusted points gained",
        "adjusted AUC gained",
    ]
    values = {each.configuration: each.held_out for each in found.ranked}
    for axes, name in zip(
        figure.axes,
        ("alone consistent", "alone contradicting", "unreadable", "gain", "AUC gain"),
        strict=True,
    ):
        shown = [text.get_text() for text in axes.texts]
        sign = "+" if name.endswith("gain") else ""
        # Lanes: uniform over all, its halves, its sliding windows, random on one half.
        order = (WIDE, BAD, GOOD, GOOD, BROKEN)
        digits = 1 if name == "AUC gain" else 0
        assert shown == [f"{values[each][name].value:{sign}.{digits}f}" for each in order]
        assert len(axes.patches) == len(order)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["uniform  all", "halves", "sliding:2", "random  halves"]
    figure.canvas.draw()


def test_rows_are_methods_and_scopes_and_columns_windows(world):
    layers = {"vision": 3, "language": 4}
    given = (["language"], ["uniform", "blind"], ["all", "halves", "sliding:2:2"])
    wanted = candidates(layers, *given, ["all", "image"], ["all", "image:2"])
    found = grid(wanted, "language")
    assert found.rows == [
        *("uniform", "uniform image:2", "uniform image", "uniform image image:2"),
        *("blind image", "blind image image:2"),
    ]
    assert found.columns == ["0:4", "0:2", "2:4"]
    assert found.cells[4, 2] == Configuration("language", "blind", (2, 3), "image")
    assert len(found.cells) == 18
    assert grid(wanted, "vision").rows == []


def test_the_figure_of_scopes_shows_the_held_out_numbers(world):
    questions, measurements = world
    other = WIDE._replace(scope="image")
    numbers = {"answer_tokens": 10, "text_nats": 1.0, "text_tokens": 1}
    for place, name in enumerate([PLAIN, GOOD, BAD, WIDE, other]):
        fluency = Fluency(answer_nats=10 * math.log(2 + place), **numbers)
        each = measurements.get(name, measurements[WIDE])
        measurements[name] = replace(each, configuration=name, fluency=fluency)
    wanted = [*WANTED[:4], Candidate(other, "all")]
    found = diagnose(questions, measurements, wanted)
    figure = scope_figure(found, wanted, layers={"vision": 3, "language": 4}, model="tiny")
    assert [axes.get_title().replace("\n", " ") for axes in figure.axes] == [
        "branch alone % right",
        "branch alone perplexity (plain 2)",
        "adjusted AUC gained",
    ]
    values = {each.configuration: each for each in found.ranked}
    order = (WIDE, BAD, GOOD, other)
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    held_out = [values[each].held_out for each in order]
    assert texts[0] == [
        f"{np.mean([each[f'alone {name}'].value for name in SETS]):.0f}" for each in held_out
    ]
    assert texts[1] == ["5.0", "4.0", "3.0", "6.0"]
    assert texts[2] == [f"{each['AUC gain'].value:+.1f}" for each in held_out]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["uniform", "uniform image"]
    figure.canvas.draw()
    # Without fluency there is no such panel.
    measurements[PLAIN] = replace(measurements[PLAIN], fluency=None)
    found = diagnose(questions, measurements, wanted)
    figure = scope_figure(found, wanted, {"vision": 3, "language": 4}, "tiny")
    assert len(figure.axes) == 2
