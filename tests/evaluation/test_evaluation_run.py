"""evaluate run: every question answered once, with its probabilities, whatever interrupts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from family_rows import FAMILIES, TWO_FAMILIES, families_with
from tiny_evaluation import SIZES, save_pictures, save_questions, save_yes_no_checkpoint

from causalmm import CausalMMConfig
from causalmm.cli.sole_writer import sole_writer
from causalmm.evaluation import commands, runner, running
from causalmm.evaluation.answers_file import CONTROLS, finish, parts, read_answers
from causalmm.evaluation.probabilities import deciding_step, word_tokens
from causalmm.evaluation.processes import Processes
from causalmm.inputs.messages import one_turn

ROOT = Path(__file__).resolve().parents[2]
MODES = ("plain", "vision", "language", "multimodal", "joint")
YES_NO = ("yes", "no")
SAMPLED = ("--temperature", "2", "--seed", "3")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Pictures, a question file and a checkpoint of each family, by its name."""
    folder = tmp_path_factory.mktemp("evaluation")
    for family in FAMILIES:
        save_yes_no_checkpoint(family, folder / family)
    save_pictures(folder)
    save_questions(folder)
    return folder


def flags(folder, *more, model="llava"):
    given = ["pope", "run", "--questions", folder / "tiny_pope_random.json", "--images", folder]
    given += ["--suffix", "", "--model", folder / model, "--max-new-tokens", "4", *more]
    return [str(each) for each in given]


@pytest.fixture
def evaluate(folder, tmp_path, capfd):
    """Run the command in this process, into `out`; gives the lines of answers and what was said."""

    def run(*more, out="out", code=0, **options):
        given = flags(folder, *more, "--out", tmp_path / out, **options)
        assert commands.main(given) == code
        said = capfd.readouterr()
        assert said.out == ""
        return (read(tmp_path / out) if code == 0 else None), said.err

    return run


def read(folder):
    """The lines of a run's answers, without the seconds; of several runs by their names."""
    file = folder / "answers.jsonl"
    if not file.exists():
        return {each.name: read(each) for each in sorted(folder.iterdir())}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert all(each.pop("seconds") > 0 for each in lines)
    return lines


def record(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


# Answers


def test_the_files_of_a_run(evaluate, folder, tmp_path):
    lines, said = evaluate("--mode", "language", "--gamma", "0.5")
    asked = [json.loads(line) for line in (folder / "tiny_pope_random.json").open()]
    for number, (line, question) in enumerate(zip(lines, asked, strict=True), 1):
        assert line["question_id"] == f"tiny/random/{number}"
        assert (line["image"], line["prompt"]) == (question["image"], question["text"])
        assert 1 <= len(line["answer"].split()) <= 4
        assert line["error"] is None
        assert list(line["scores"]) == ["factual", "adjusted", "language", "unmasked"]
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        *("answers.jsonl", "run.json")
    ]
    assert "7/7" in said
    assert said.endswith("7 answers\n")
    written = record(tmp_path / "out")
    assert written["benchmark"] == "pope"
    assert written["causalmm"] == CausalMMConfig(mode="language", gamma=0.5).to_dict()
    assert written["generation"] == {
        "do_sample": False,
        "repetition_penalty": 1.0,
        "max_new_tokens": 4,
    }
    assert (written["dtype"], written["device"], written["seed"]) == ("float32", "cpu", 0)
    assert written["question_files"] == [str(folder / "tiny_pope_random.json")]
    assert len(written["question_files_sha256"]) == len(written["patched_files_sha256"]) == 64
    assert written["versions"]["torch"] == torch.__version__


def test_a_run_says_which_repetition_penalty_acted(evaluate, folder, tmp_path):
    model = shutil.copytree(folder / "qwen2_5_vl", tmp_path / "model")
    published = {"do_sample": True, "top_k": 1, "temperature": 0.1, "repetition_penalty": 1.05}
    (model / "generation_config.json").write_text(json.dumps(published))
    for flags, expected in (((), 1.05), (("--repetition-penalty", "1"), 1.0)):
        out = f"out{expected}"
        evaluate("--limit", "1", *flags, model=model, out=out)
        written = record(tmp_path / out)
        assert written["generation"]["repetition_penalty"] == expected
        assert written["generation_config"]["repetition_penalty"] == 1.05
    evaluate("--limit", "1", "--controls", model=model, out="controls")
    for folder in (tmp_path / "controls").iterdir():
        assert record(folder)["generation"]["repetition_penalty"] == 1.05


@families_with("mode", MODES, fast="multimodal", family="model")
def test_together_as_each_alone(evaluate, model, mode):
    given = ("--mode", mode, "--epsilon", "0")
    together, _ = evaluate(*given, "--batch-size", "8", model=model)
    alone, _ = evaluate(*given, "--batch-size", "1", model=model, out="alone")
    for one, other in zip(together, alone, strict=True):
        scores, wanted = one.pop("scores"), other.pop("scores")
        assert one == other
        assert scores.keys() == wanted.keys()
        for name, pair in scores.items():
            assert pair == pytest.approx(wanted[name], rel=1e-4, abs=1e-6)
        if mode == "plain":
            assert scores["factual"] == scores["adjusted"]


def test_a_picture_is_encoded_once_for_its_questions(evaluate, monkeypatch):
    encoded = []
    started = running.Session.start

    def start(*given):
        session = started(*given)
        session.model.model.vision_tower.register_forward_hook(lambda *_: encoded.append(1))
        return session

    monkeypatch.setattr(running.Session, "start", start)
    evaluate()
    # a's three, d's two, and b and c, which stand alone, together.
    assert len(encoded) == 3


@pytest.mark.parametrize("mode", ["plain", "multimodal", "joint"])
@pytest.mark.parametrize("model", TWO_FAMILIES)
def test_scores_are_those_of_separate_forwards(folder, evaluate, tmp_path, model, mode, capfd):
    """The model, asked once more with prompt and answer up to the deciding word."""
    given = ("--mode", mode, "--seed", "5", "--max-new-tokens", "12")
    lines, _ = evaluate(*given, model=model)
    args = commands.parse_args(flags(folder, "--out", tmp_path, "--mode", mode, model=model))
    [run] = commands.runs_of(args)
    session = running.Session.start(args, run.request)
    tokenizer, choices = session.processor.tokenizer, ("yes", "no")
    ids = [word_tokens(tokenizer, word) for word in choices]
    assert [len(each) for each in ids] == [8, 4]
    steps = set()

    def logits(inputs, **config):
        config = CausalMMConfig(**config, seed=5) if config else None
        with torch.no_grad():
            return session.model(**inputs, causalmm=config).logits[0, -1].double()

    for line in lines:
        inputs = session.inputs(one_turn([folder / line["image"]], line["prompt"]))
        answer = tokenizer.convert_tokens_to_ids(line["answer"].split())
        step = deciding_step(tokenizer, answer, choices)
        steps.add(step)
        for token in answer[:step]:
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if "mm_token_type_ids" in inputs:
                kinds = inputs["mm_token_type_ids"]
                inputs["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, 1))
        factual = logits(inputs)
        wanted = {"factual": factual, "adjusted": factual}
        if mode != "plain":
            wanted["adjusted"] = logits(inputs, mode=mode)
            wanted["unmasked"] = logits(inputs, mode=mode, epsilon=0)
            # Of one branch at strength 1: 2 l - l'.
            for name in ("vision", "language") if mode == "multimodal" else (mode,):
                wanted[name] = 2 * factual - logits(inputs, mode=name, epsilon=0)
        assert line["scores"].keys() == wanted.keys()
        for name, pair in line["scores"].items():
            probabilities = wanted[name].softmax(-1)
            expected = [probabilities[each].sum().item() for each in ids]
            assert pair == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert len(steps) > 1


@pytest.mark.parametrize("model", TWO_FAMILIES)
def test_a_drawn_answer_is_that_of_its_seed(folder, evaluate, tmp_path, model):
    """Which is made of --seed, the image and the question."""
    lines, _ = evaluate(*SAMPLED, "--batch-size", "1", model=model)
    args = commands.parse_args(flags(folder, *SAMPLED, "--out", tmp_path, model=model))
    [run] = commands.runs_of(args)
    session = running.Session.start(args, run.request)
    seeds = {runner.unit_seed(3, [question]) for question in run.questions}
    assert len(seeds) == len(lines)
    assert seeds.isdisjoint(runner.unit_seed(4, [question]) for question in run.questions)
    for line, question in zip(lines, run.questions, strict=True):
        request = run.request._replace(seed=runner.unit_seed(3, [question]))
        alone = session._replace(request=request)
        inputs = alone.inputs(one_turn([question.path], question.prompt))
        assert line["answer"] == alone.answer(inputs, request.config).text


def test_a_tokenizer_without_the_words(evaluate, folder, tmp_path):
    from tiny_checkpoints import save_checkpoint

    save_checkpoint("llava", tmp_path / "wordless")
    lines, said = evaluate("--model", tmp_path / "wordless")
    assert {each["scores"] for each in lines} == {None}
    assert "the tokenizer has no token 'yes'" in said


def small_benchmark(name, folder, pictures):
    """One of each kind about the pictures of `pictures`; gives the flags that ask for it."""
    data = folder / name
    data.mkdir()

    def place(picture, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((pictures / f"{picture}.png").read_bytes())

    if name == "pope":
        return ["--questions", save_questions(data), "--images", pictures]
    if name == "mme":
        place("a", data / "existence" / "a.png")
        place("b", data / "existence" / "b.png")
        rows = [
            f"{picture}.png\tis there {word} ?\t{word}\n" for picture in "ab" for word in YES_NO
        ]
        (data / "existence.txt").write_text("".join(rows))
        return ["--data", data]
    if name == "vlind":
        instance = {
            "concept": "fruit",
            "context_id": 7,
            "context": "a banana is there",
            "factual_context": "there is a banana",
            "true_statement": "there is a banana",
            "false_statement": "is there a banana",
            "existent_noun": "a banana",
            "non-existent_noun": "this",
            "best_img_id": 1,
            "aggregated_human_label_good_images": {"1": 3, "4": 2},
        }
        (data / "data.json").write_text(json.dumps([instance]))
        place("a", data / "factual" / "fruit" / "7_there is a banana" / "0.jpg")
        for number, picture in ((1, "b"), (4, "d")):
            contexts = data / "counterfactual" / "fruit" / "7_a banana is there"
            place(picture, contexts / f"{number}.jpg")
        return ["--data", data]
    (data / "annotations.json").write_text(json.dumps({"a.png": ["banana"], "b.png": []}))
    (data / "vocabulary.json").write_text(json.dumps({"banana": ["user"]}))
    files = ["--annotations", data / "annotations.json", "--vocabulary", data / "vocabulary.json"]
    return [*files, "--images", pictures]


@pytest.mark.parametrize(
    ("name", "questions"), [("pope", 7), ("mme", 4), ("vlind", 10), ("chair", 2)]
)
def test_every_benchmark_is_run_scored_and_compared(folder, tmp_path, capfd, name, questions):
    asked = small_benchmark(name, tmp_path, folder)
    out = tmp_path / "runs"

    def main(action, *given):
        assert commands.main([str(each) for each in [name, action, *given, *asked]]) == 0
        return capfd.readouterr()

    main("run", "--model", folder / "llava", "--out", out, "--controls", "--max-new-tokens", "6")
    for control in CONTROLS:
        answers = read_answers(out / control)
        assert len(answers) == questions
        assert not [each.error for each in answers.values() if each.error]
        scored = [each.scores is not None for each in answers.values()]
        # Captions are no choice between two, and this tokenizer has no true and false.
        assert scored == [name in ("pope", "mme")] * questions
    printed, _ = main("score", out, "--out", tmp_path / "scores.json")
    assert printed.count(f"{name}: {questions} questions") == len(CONTROLS)
    reports = json.loads((tmp_path / "scores.json").read_text())["reports"]
    assert list(reports) == list(CONTROLS)
    printed, _ = main("compare", out)
    assert "differences to greedy" in printed
    assert "differences to sample+mask" in printed


# What cannot be asked


def test_a_bad_picture_is_an_error_of_its_questions(evaluate, folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "tiny_pope_random.json").open()]
    (tmp_path / "text.png").write_text("no picture")
    paths = [folder / "a.png", "nowhere.png", tmp_path / "text.png", folder / "c.png"]
    for row, path in zip(rows, [*paths, *paths], strict=False):
        row["image"] = str(path)
    rows = rows[:4] + [rows[4] | {"text": "is " * 300}, rows[5] | {"text": "what <image> ?"}]
    file = tmp_path / "bad_pope_random.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines, said = evaluate("--questions", file)
    errors = [line["error"] for line in lines]
    assert [errors[0], errors[3]] == [None, None]
    assert errors[1] == f"no image file at {folder / 'nowhere.png'}"
    assert errors[2].endswith("text.png is not an image that Pillow can read")
    assert "the model reads at most 256" in errors[4]
    assert "no image file" in errors[5]
    for line in lines:
        assert (line["answer"] is None) == (line["error"] is not None) == (line["scores"] is None)
    assert f"1 of 4 images are missing (first: {folder / 'nowhere.png'})" in said
    assert said.endswith("2 answers, 4 failed (--retry-failed asks again)\n")


def test_limits_of_pictures_are_kept_and_change_what_is_seen(evaluate, tmp_path):
    lines, _ = evaluate(model="qwen2_vl")
    assert record(tmp_path / "out")["max_pixels"] is None
    limited, _ = evaluate("--max-pixels", "800", model="qwen2_vl", out="small")
    assert record(tmp_path / "small")["max_pixels"] == 800
    assert [each["scores"] for each in limited] != [each["scores"] for each in lines]
    _, said = evaluate("--max-pixels", "900", model="qwen2_vl", out="small", code=2)
    assert "other settings (max_pixels: 800, now 900)" in said


def test_what_failed_is_asked_again_on_demand(evaluate, folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in SIZES:
        if name != "c":
            (images / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
    # One by one: numbers differ in their last places with what is asked beside.
    given = ("--images", images, "--batch-size", "1")
    _, said = evaluate(*given)
    assert said.endswith("6 answers, 1 failed (--retry-failed asks again)\n")
    (images / "c.png").write_bytes((folder / "c.png").read_bytes())
    lines, _ = evaluate(*given)
    assert [line["question_id"] for line in lines if line["error"]] == ["tiny/random/3"]
    lines, said = evaluate(*given, "--retry-failed")
    assert said.endswith("7 answers\n")
    assert lines == evaluate(*given, out="whole")[0]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--images", "nowhere"), "none of the 4 images is there (first: nowhere/a.png)"),
        (("--questions", "nowhere"), "nowhere"),
        (("--model", "nowhere"), "unknown model 'nowhere'"),
        (("--max-pixels", "800"), "--max-pixels is for Qwen2-VL"),
        (("--min-pixels", "9", "--max-pixels", "8"), "--min-pixels 9 is more than --max-pixels 8"),
        (("--language-layers", "9"), "language_layers"),
        (("--controls", "--mode", "plain"), "--controls needs a mode other than plain"),
        (("--controls", "--grid", "x"), "not allowed with argument --controls"),
        (("--batch-size", "0"), "'0' is not an integer >= 1"),
        (("--gamma", "-1"), "gamma=-1.0"),
        (("--device", "cuda:9"), "device 'cuda:9' is not available here"),
    ],
)
def test_a_wrong_request_is_one_sentence(evaluate, tmp_path, given, sentence):
    _, said = evaluate(*given, code=2)
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")
    assert sentence in said
    assert not list(tmp_path.glob("out/**/run.json"))


@pytest.mark.parametrize("given", [[], ["pope"], ["nothing"], ["pope", "run"]])
def test_a_command_cut_short_is_one_sentence(capfd, given):
    assert commands.main(given) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)


def test_running_out_of_memory(evaluate, monkeypatch, tmp_path):
    def generate(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    monkeypatch.setattr("causalmm.decoding.generation.CounterfactualGeneration.generate", generate)
    _, said = evaluate(code=1)
    assert said.splitlines()[-1].startswith("error: not enough memory: try smaller images")
    monkeypatch.undo()
    assert evaluate()[0] == evaluate(out="whole")[0]


# Going on


@pytest.mark.parametrize("given", [(), SAMPLED, (*SAMPLED, "--mode", "plain")])
def test_an_interrupted_run_is_completed(evaluate, tmp_path, given):
    """Also a unit of which some answers were written: the drawn ones depend on each other."""
    given = (*given, "--batch-size", "2")
    whole, _ = evaluate(*given)
    out = tmp_path / "out" / "answers.jsonl"
    text = out.read_bytes()
    # As they were before the end: in the order in which they were asked.
    lines = {json.loads(line)["question_id"]: line for line in text.splitlines(keepends=True)}
    asked = b"".join(lines[f"tiny/random/{number}"] for number in (1, 5, 7, 2, 3, 4, 6))
    ends = [index + 1 for index, byte in enumerate(asked) if byte == 10]
    for size in (0, ends[0] // 2, ends[0], ends[1] - 1, ends[2], ends[5] + 9, ends[6]):
        out.write_bytes(asked[:size])
        again, _ = evaluate(*given)
        assert again == whole


def test_what_is_done_is_not_done_again(evaluate, tmp_path, monkeypatch):
    evaluate()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(running.Session, "start", None)
    _, said = evaluate()
    assert said == f"{tmp_path / 'out'}: 7 answers\n"
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before


def test_another_run_is_refused(evaluate, folder, tmp_path):
    evaluate("--limit", "3")
    text = (tmp_path / "out" / "answers.jsonl").read_bytes()

    def refused(*given, **options):
        _, said = evaluate(*given, code=2, **options)
        assert len(said.splitlines()) == 1
        assert (tmp_path / "out" / "answers.jsonl").read_bytes() == text
        return said

    limit = ("--limit", "3")
    assert "other settings (questions: 5, now 7)" in refused()
    assert "other settings (questions_sha256: " in refused(*limit, "--suffix", " yes or no")
    assert "other settings (model: " in refused(*limit, model="qwen2_vl")
    assert "other settings (causalmm: {" in refused(*limit, "--gamma", "0.5")
    assert "now null)" in refused(*limit, "--mode", "plain")
    assert '(asked_dtype: "auto", now "bfloat16")' in refused(*limit, "--dtype", "bfloat16")
    assert "other settings (generation: " in refused(*limit, "--top-k", "5")
    assert "other settings (generation: " in refused(*limit, "--max-new-tokens", "5")
    # Greedy answers do not depend on how many are asked at a time.
    assert len(evaluate(*limit, "--batch-size", "3")[0]) == 5
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine").write_text("")
    assert "holds files but no run.json" in evaluate(out="notes", code=2)[1]
    (tmp_path / "file").write_text("")
    assert "is a file, expected a folder" in evaluate(out="file", code=2)[1]


def test_the_weights_are_part_of_the_settings(evaluate, folder, tmp_path):
    import shutil

    shutil.copytree(folder / "llava", tmp_path / "model")
    evaluate("--model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert "other settings (revision: " in evaluate("--model", tmp_path / "model", code=2)[1]


def test_a_folder_belongs_to_one_run_at_a_time(evaluate, tmp_path):
    out = tmp_path / "out"
    (out / "greedy").mkdir(parents=True)
    refused = "another process is writing"
    for name in ("answers.jsonl", "answers.jsonl.2"):  # a process may outlive the first one
        with sole_writer(out / "greedy" / name):
            assert refused in evaluate(out="out/greedy", code=2)[1]
            # Also as one of several.
            assert refused in evaluate("--controls", "--limit", "1", code=2)[1]
    # A process that was killed before it wrote anything has left its locks.
    for name in (".answers.jsonl.lock", ".answers.jsonl.2.lock"):
        (out / "greedy" / name).touch()
    evaluate(out="out/greedy")
    assert sorted(each.name for each in (out / "greedy").iterdir()) == [
        *("answers.jsonl", "run.json")
    ]


def test_a_run_begun_meanwhile_is_not_mixed_with(evaluate, monkeypatch, tmp_path):
    """Another process writes its whole run between our first look and our lock."""
    evaluate("--gamma", "0.5", out="other")

    def hold(*given):
        (tmp_path / "other").rename(tmp_path / "out")
        return original(*given)

    original = running._hold
    monkeypatch.setattr(running, "_hold", hold)
    assert "was begun with other settings (causalmm: {" in evaluate(code=2)[1]


def test_every_process_holds_its_file(evaluate, monkeypatch, tmp_path):
    held = []

    def ask(*given):
        held.extend(each.name for each in (tmp_path / "out").glob(".*.lock"))
        return original(*given)

    original = runner.ask
    monkeypatch.setattr(runner, "ask", ask)
    evaluate("--limit", "1")
    assert held == [".answers.jsonl.lock"]


def test_a_limited_run_is_scored_without_its_flags(evaluate, tmp_path, capfd):
    evaluate("--limit", "3")
    for action, runs in (("score", ["out"]), ("compare", ["out", "again"])):
        for run in runs[1:]:
            evaluate("--limit", "3", "--gamma", "2", out=run)
        assert commands.main(["pope", action, *(str(tmp_path / run) for run in runs)]) == 0
        assert "pope: 5 questions about 3 images" in capfd.readouterr().out
    assert commands.main(["pope", "score", str(tmp_path / "out"), "--limit", "2"]) == 2
    assert capfd.readouterr().err == "error: --limit 2: the run was made with --limit 3\n"


@pytest.mark.parametrize("given", [(), SAMPLED])
@pytest.mark.parametrize("first", [2, 3])
def test_an_interruption_leaves_what_is_done(evaluate, monkeypatch, tmp_path, first, given):
    whole, _ = evaluate(*given, out="whole")
    asked = []

    def ask(*arguments):
        asked.append(arguments)
        if len(asked) == first:
            raise KeyboardInterrupt
        return original(*arguments)

    original = runner.ask
    monkeypatch.setattr(runner, "ask", ask)
    _, said = evaluate(*given, code=130)
    assert said.endswith("interrupted\n")
    assert 0 < len(read_answers(tmp_path / "out")) < 7
    assert evaluate(*given)[0] == whole


# Several runs


def test_controls(evaluate, tmp_path):
    runs, said = evaluate("--controls", "--gamma", "2", "--seed", "3")
    assert sorted(runs) == sorted(CONTROLS)
    alone = {
        "greedy": ("--mode", "plain"),
        "sample": ("--mode", "plain", "--temperature", "1"),
        "sample+mask": ("--gamma", "0", "--temperature", "1"),
        "causalmm": ("--gamma", "2"),
        "causalmm+sample": ("--gamma", "2", "--temperature", "1"),
    }
    for name, given in alone.items():
        assert runs[name] == evaluate(*given, "--seed", "3", out=f"alone {name}")[0]
        one, other = record(tmp_path / "out" / name), record(tmp_path / f"alone {name}")
        assert one.pop("name") == name
        assert other.pop("name") is None
        # Somebody may commit in between.
        # Somebody may commit, or change a file, in between.
        del one["git_commits"], other["git_commits"]
        assert one == other
    for name in CONTROLS:
        assert f"{tmp_path / 'out' / name}: 7 answers\n" in said
    # One that a kill left unfinished is finished, and no other is touched.
    (tmp_path / "out" / "sample" / "answers.jsonl").unlink()
    before = (tmp_path / "out" / "greedy" / "answers.jsonl").stat().st_mtime_ns
    assert evaluate("--controls", "--gamma", "2", "--seed", "3")[0] == runs
    assert (tmp_path / "out" / "greedy" / "answers.jsonl").stat().st_mtime_ns == before
    assert "gamma" in evaluate("--controls", "--seed", "3", code=2)[1]


def test_controls_load_one_model(evaluate, monkeypatch):
    started, starts = running.Session.start, []
    monkeypatch.setattr(
        running.Session, "start", lambda *given: starts.append(1) or started(*given)
    )
    evaluate("--controls", "--limit", "1")
    assert starts == [1]


def test_a_grid(evaluate, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "- {mode: language, language_method: [random, uniform], gamma: [0.5, 1], epsilon: 0}\n"
        "- mode: plain\n"
    )
    runs, _ = evaluate("--grid", grid, "--language-layers", "1:")
    names = {
        f"mode=language,language_method={method},gamma={gamma},epsilon=0": (method, gamma)
        for method in ("random", "uniform")
        for gamma in ("0.5", "1")
    }
    assert sorted(runs) == sorted([*names, "mode=plain"])
    for name, (method, gamma) in names.items():
        given = ("--mode", "language", "--language-method", method, "--gamma", gamma)
        given += ("--epsilon", "0", "--language-layers", "1:")
        assert runs[name] == evaluate(*given, out=f"alone {name}")[0]
    assert runs["mode=plain"] == evaluate("--mode", "plain", out="alone plain")[0]
    # A grid may grow.
    grid.write_text(grid.read_text() + "- {mode: vision, gamma: 3}\n")
    assert len(evaluate("--grid", grid, "--language-layers", "1:")[0]) == 6


def test_a_grid_is_checked_before_its_first_run(evaluate, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text("language_layers: ['1:', '9:']\n")
    _, said = evaluate("--grid", grid, code=2)
    assert "language_layers=9:: language_layers='9:'" in said
    assert not list(tmp_path.glob("out/**/answers.jsonl"))


# Several processes


@pytest.mark.parametrize("given", [(), SAMPLED])
def test_shares_make_the_same_file(folder, evaluate, tmp_path, given):
    """In one process after another, as if each were one of several; one of them stops early."""
    whole, _ = evaluate(*given, "--batch-size", "2", out="whole")
    args = commands.parse_args(
        flags(folder, *given, "--batch-size", "2", "--out", tmp_path / "out")
    )
    [run] = commands.runs_of(args)
    session = running.Session.start(args, run.request)
    words = {word: word_tokens(session.processor.tokenizer, word) for word in ("yes", "no")}
    about = {"git_commits": []}
    for count, stops in ((3, {1}), (2, {0, 1}), (4, set())):
        processes = [Processes(index, count) for index in range(count)]
        run.folder.mkdir(exist_ok=True)
        runner.open_runs([run], False)
        shares = [runner.take_share(run, 2, each) for each in processes]
        asked = [question.id for share in shares for unit in share.units for question in unit]
        assert len(asked) == len(set(asked))
        for each, share in zip(processes, shares, strict=True):
            if each.index in stops:
                share = share._replace(units=share.units[:1])
            runner.answer_share(session, share, words, each, about)
            finish(run.folder, run.questions)
    assert read(tmp_path / "out") == whole
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        *("answers.jsonl", "run.json")
    ]


def start(folder, out, *more, processes=1):
    """The command as a user starts it, `accelerate launch` before it where there are several."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        launch += ["--num_processes", str(processes), "--main_process_port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, "scripts/evaluate.py", *flags(folder, *more, "--out", out)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def worker(out, name):
    """The id of the process that has a file of answers open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [os.readlink(each) for each in (process / "fd").iterdir()]
        except OSError:
            continue
        if str(out / name) in opened:
            return int(process.name)
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_processes_that_are_killed(folder, tmp_path):
    """Two processes, the second of them killed; then three, all killed; then one, to the end."""
    rows = [json.loads(line) for line in (folder / "tiny_pope_random.json").open()]
    more = [
        row | {"question_id": 100 * turn + row["question_id"], "image": f"{turn} {row['image']}"}
        for turn in range(30)
        for row in rows
    ]
    images = tmp_path / "images"
    images.mkdir()
    for turn in range(30):
        for name in SIZES:
            (images / f"{turn} {name}.png").symlink_to(folder / f"{name}.png")
    file = tmp_path / "long_pope_random.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in more))
    given = (*SAMPLED, "--questions", file, "--images", images, "--max-new-tokens", "12")
    single = start(folder, tmp_path / "whole", *given)
    assert single.wait() == 0
    out = (tmp_path / "out").resolve()

    def answered():
        # Questions, not lines: while parts are put together, a line stands in two files.
        return len(read_answers(out)) if parts(out) else 0

    def wait_for(condition, process):
        while not condition():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)

    two = start(folder, out, *given, processes=2)
    wait_for(lambda: len(list(out.glob("answers.jsonl*"))) == 2 and answered() > 20, two)
    os.kill(worker(out, "answers.jsonl.1"), signal.SIGKILL)
    assert two.wait() != 0
    count = answered()
    assert 20 < count < len(more)
    three = start(folder, out, *given, processes=3)
    names = ("answers.jsonl", "answers.jsonl.1", "answers.jsonl.2")
    wait_for(lambda: answered() > count + 20 and all(worker(out, name) for name in names), three)
    for each in [three.pid, *(worker(out, name) for name in names)]:
        os.kill(each, signal.SIGKILL)
    three.wait()
    assert count < answered() < len(more)
    two = start(folder, out, *given, processes=2)
    assert two.wait() == 0, two.stderr.read()
    assert read(out) == read(tmp_path / "whole")
    assert sorted(each.name for each in out.iterdir()) == ["answers.jsonl", "run.json"]
