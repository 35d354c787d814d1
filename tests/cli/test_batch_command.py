"""--batch: each row gets the answer it gets alone, a bad one its error, a killed run its rest."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from family_rows import FAMILIES, TWO_FAMILIES, families_with
from PIL import Image
from tiny_checkpoints import save_checkpoint

from causalmm import CausalMMConfig
from causalmm.cli import generate
from causalmm.cli.batch import SUFFIX, BatchRow, question_groups, read_rows
from causalmm.cli.flags import parse_args
from causalmm.cli.request import check
from causalmm.cli.session import Session
from causalmm.cli.sole_writer import sole_writer
from causalmm.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]
MODES = ("plain", "vision", "language", "multimodal", "joint")
SIZES = {"a": (60, 40), "b": (30, 90), "c": (20, 20), "d": (56, 56)}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Pictures of several sizes and a checkpoint of each family, by its name."""
    folder = tmp_path_factory.mktemp("batch")
    for family in FAMILIES:
        save_checkpoint(family, folder / family)
    for turn, (name, size) in enumerate(SIZES.items()):
        image = Image.radial_gradient("L").rotate(80 * turn).resize(size)
        image.save(folder / f"{name}.png")
    return folder


def questions(folder):
    """Rows of different lengths, with one and several pictures of different sizes."""
    images = [["a"], ["b", "c", "a"], ["c"], ["d", "b"], ["b"]]
    paths = [[str(folder / f"{each}.png") for each in group] for group in images]
    prompts = ["is there ?", "a banana", "is " * 30, "what is this ?", "this"]
    return [
        {"id": f"q{number}", "image": group if len(group) > 1 else group[0], "prompt": prompt}
        for number, (group, prompt) in enumerate(zip(paths, prompts, strict=True))
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def batch(folder, tmp_path, capfd):
    """Run --batch in this process on rows; gives the lines of --out and what was said."""

    def run(rows, *flags, model="llava", code=0, out="out.jsonl"):
        if rows is not None:
            write(tmp_path / "in.jsonl", rows)
        given = ["--batch", tmp_path / "in.jsonl", "--out", tmp_path / out]
        given += ["--model", folder / model, "--max-new-tokens", "4", *flags]
        assert generate.main([str(each) for each in given]) == code
        said = capfd.readouterr()
        assert said.out == ""
        return (read(tmp_path / out) if code == 0 else None), said.err

    return run


def test_questions_about_the_same_pictures_are_asked_together():
    images = ["a", "a", "a", "b", "c", ["c"], "d", "d", "e", "f"]
    rows = [BatchRow(number, image, "?") for number, image in enumerate(images)]
    found = [(start, [row.id for row in part]) for start, part in question_groups(rows, 2)]
    assert found == [(0, [0, 1]), (2, [2]), (3, [3, 4]), (5, [5]), (6, [6, 7]), (8, [8, 9])]


@families_with("mode", MODES, fast="joint")
def test_rows_that_share_a_picture(batch, folder, family, mode):
    """Encoded and prefilled once; each row gets the answer it gets alone."""
    picture = str(folder / "b.png")
    prompts = ["is there a banana ?", "is", "what is this ?"]
    rows = [{"id": name, "image": picture, "prompt": name} for name in prompts]
    together, _ = batch(rows, "--batch-size", "3", "--mode", mode, model=family)
    alone, _ = batch(rows, "--batch-size", "1", "--mode", mode, model=family, out="alone.jsonl")
    assert together == alone


# Answers


@families_with("mode", MODES, fast="multimodal", family="model")
def test_rows_together_answer_as_each_alone(folder, tmp_path, model, mode):
    path = write(tmp_path / "in.jsonl", questions(folder))
    given = ["--batch", path, "--out", tmp_path / "out", "--model", folder / model]
    given += ["--mode", mode, "--max-new-tokens", "8"]
    args = parse_args([str(each) for each in given])
    session = Session.start(args, check(args))
    # A word that some answers hold ends them: rows of one batch then end at different steps.
    rows = read_rows(path)
    free = [each["answer"].split() for each in session.answer_rows(rows, 0)]
    assert {len(words) for words in free} == {8}
    end = session.processor.tokenizer.convert_tokens_to_ids(free[0][3])
    session.model.generation_config.eos_token_id = end
    together = session.answer_rows(rows, 0)
    assert len({len(each["answer"].split()) for each in together}) > 1
    for row, said in zip(rows, together, strict=True):
        [alone] = session.answer_rows([row], 0)
        turn = [{"type": "image", "image": each} for each in row.images]
        turn.append({"type": "text", "text": row.prompt})
        inputs = session.inputs([{"role": "user", "content": turn}])
        assert said == alone
        assert said["answer"] == session.answer(inputs, session.request.config).text


def test_the_file_of_answers(batch, folder):
    rows = questions(folder)
    del rows[2]["id"]
    answers, said = batch(rows, "--batch-size", "2")
    assert [list(each) for each in answers] == [["id", "image", "prompt", "answer"]] * 5
    assert [each["id"] for each in answers] == ["q0", "q1", 3, "q3", "q4"]
    for row, each in zip(rows, answers, strict=True):
        assert (each["image"], each["prompt"]) == (row["image"], row["prompt"])
        assert len(each["answer"].split()) == 4
    assert "100%" in said
    assert "5/5" in said


def test_bad_rows_are_reported_and_stop_no_other(batch, folder, tmp_path):
    good = questions(folder)[:2]
    image, prompt = str(folder / "a.png"), "what ?"
    (tmp_path / "text.png").write_text("no picture")
    bad = {
        "no image file at nowhere.png": {"image": "nowhere.png", "prompt": prompt},
        "is not an image": {"image": [image, str(tmp_path / "text.png")], "prompt": prompt},
        "the row has no image": {"image": [], "prompt": prompt},
        "image: expected a path": {"prompt": prompt},
        "image: expected a path or": {"image": [1], "prompt": prompt},
        "prompt: expected text": {"image": image},
        "the prompt is empty": {"image": image, "prompt": "  "},
        "not valid text": {"image": image, "prompt": "\udcff"},
        "which stands for an image": {"image": image, "prompt": "what <image> ?"},
        "the model reads at most 256": {"image": image, "prompt": "is " * 300},
        "expected text or a whole number": {"id": [1], "image": image, "prompt": prompt},
    }
    path = write(tmp_path / "in.jsonl", [good[0], *bad.values(), good[1]])
    path.write_bytes(path.read_bytes() + b'\n{"image"\n[]\n{"id": "\xff"}\n')
    answers, said = batch(None, "--batch-size", "4")
    assert len(answers) == len(bad) + 5
    for sentence, each in zip([*bad], answers[1:], strict=False):
        assert sentence in each["error"]
        assert "answer" not in each
    assert [each["answer"] for each in (answers[0], answers[12])] == [
        each["answer"] for each in batch(good, out="good")[0]
    ]
    assert [each["error"][:22] for each in answers[13:]] == [
        "line 15 is not JSON (E",
        "line 16 is not a JSON ",
        "line 17 is not JSON ('",
    ]
    assert f"out.jsonl: 2 answers, {len(bad) + 3} failed (--retry-failed asks again); " in said
    assert said.endswith("first: row 2, no image file at nowhere.png\n")


@pytest.mark.parametrize("model", TWO_FAMILIES)
def test_rows_of_errors_alone(batch, model):
    answers, _ = batch([{"image": "nowhere.png", "prompt": "what ?"}] * 2, model=model)
    assert [list(each) for each in answers] == [["id", "image", "prompt", "error"]] * 2


# Going on


@pytest.mark.parametrize("flags", [(), ("--temperature", "5", "--seed", "3")])
def test_an_interrupted_file_is_completed(batch, folder, tmp_path, flags):
    flags = ("--batch-size", "2", *flags)
    rows = questions(folder)
    whole, _ = batch(rows, *flags)
    out = tmp_path / "out.jsonl"
    text = out.read_bytes()
    ends = [index + 1 for index, byte in enumerate(text) if byte == 10]
    # After no row, within the first, after one of a batch of two, within its second, at a batch's
    # end, within the last, and after the last.
    for size in (0, ends[0] // 2, ends[0], ends[1] - 1, ends[1], ends[4] - 3, ends[4]):
        out.write_bytes(text[:size])
        again, _ = batch(None, *flags)
        assert again == whole
        assert out.read_bytes() == text


def test_what_is_done_is_not_done_again(batch, folder, tmp_path, monkeypatch):
    batch(questions(folder))
    written = (tmp_path / "out.jsonl").stat().st_mtime_ns
    monkeypatch.setattr("causalmm.cli.session.Session.start", None)
    _, said = batch(None)
    assert said == f"{tmp_path / 'out.jsonl'}: 5 answers; no other row is left to ask\n"
    assert (tmp_path / "out.jsonl").stat().st_mtime_ns == written


def test_an_out_that_is_something_else_is_refused(batch, folder, tmp_path):
    rows = questions(folder)
    out = tmp_path / "out.jsonl"
    batch(rows[:3])
    text = out.read_bytes()

    def refused(rows, *flags, **options):
        _, said = batch(rows, *flags, code=2, **options)
        assert out.read_bytes() == text
        return said

    assert "other settings (model: " in refused(None, model="qwen2_vl")
    assert "other settings (config: " in refused(None, "--gamma", "0.5")
    assert "other settings (sampling: " in refused(None, "--top-k", "5")
    assert "other settings (max_new_tokens: 4, now 5)" in refused(None, "--max-new-tokens", "5")
    assert "answers to other rows" in refused(rows[:2])
    other = [rows[0], rows[1] | {"prompt": "another ?"}]
    assert "answers to other rows" in refused(other)
    assert "(first: row q2)" in refused([*rows[:2], rows[3]])
    # More rows at the end are no other rows, and greedy answers do not depend on the batch's size.
    assert batch(rows, "--batch-size", "3")[0][:3] == [
        json.loads(line) for line in text.splitlines()
    ]
    (tmp_path / "notes").write_text("mine")
    assert "was not written by --batch" in batch(None, out="notes", code=2)[1]
    assert "was not written by --batch" in batch(None, out="in.jsonl", code=2)[1]
    assert "there is no folder" in batch(None, out="nowhere/out", code=2)[1]


def test_rows_of_a_sampled_batch_keep_their_places(batch, folder):
    """Greedy answers do not depend on them."""
    rows = questions(folder)[:3]
    greedy, _ = batch(rows[:2])
    sampled = ("--temperature", "5")
    drawn, _ = batch(rows[:2], *sampled, out="drawn.jsonl")
    moved, _ = batch([rows[2], *rows[:2]])
    assert moved[1:] == greedy
    for others in ([rows[1], rows[0]], rows):
        assert (
            "other settings (ids_sha256: " in batch(others, *sampled, out="drawn.jsonl", code=2)[1]
        )
    assert batch(rows[:2], *sampled, out="drawn.jsonl")[0] == drawn


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "holds no rows"), ("\n \n", "holds no rows"), (None, "cannot be read")],
)
def test_a_file_without_questions_is_refused(batch, tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "in.jsonl").write_text(text)
    assert sentence in batch(None, code=2)[1]


def test_an_id_belongs_to_one_question(tmp_path):
    asked = {"image": "a.png", "prompt": "what ?"}
    path = write(tmp_path / "in", [asked | {"id": 2}, asked | {"id": "2"}, asked | {"id": 2}])
    with pytest.raises(RequestError, match="two rows of id 2"):
        read_rows(path)
    # None of those stops another: the number of a line, no id, and that of what is no question.
    rows = [asked | {"id": 2}, asked, asked | {"id": None}, asked | {"id": 3}, {"id": 2}]
    read = read_rows(write(path, rows))
    assert [(row.id, row.named, bool(row.error)) for row in read] == [
        (2, True, False),
        (2, False, False),
        (3, False, False),
        (3, True, False),
        (2, True, True),
    ]
    # U+2028 ends no line.
    path.write_text('{"id": "a\u2028b"}\n', encoding="utf-8")
    assert read_rows(path)[0].id == "a\u2028b"


def test_a_bad_line_whose_number_is_an_id(batch, folder, tmp_path):
    """Also when it is resumed: rows without an id keep their places."""
    rows = questions(folder)
    rows = [rows[0] | {"id": 2}, "cut", rows[2] | {"id": None}, rows[3] | {"id": 3}, rows[4]]
    text = [json.dumps(row) + "\n" if row != "cut" else '{"id"\n' for row in rows]
    (tmp_path / "in.jsonl").write_text("".join(text), encoding="utf-8")
    whole, said = batch(None, "--batch-size", "2")
    assert [each["id"] for each in whole] == [2, 2, 3, 3, "q4"]
    assert ["error" in each for each in whole] == [False, True, False, False, False]
    assert "4 answers, 1 failed" in said
    written = (tmp_path / "out.jsonl").read_bytes()
    for count in range(5):
        lines = written.splitlines(keepends=True)
        (tmp_path / "out.jsonl").write_bytes(b"".join(lines[:count]) + lines[count][:-1])
        assert batch(None, "--batch-size", "2")[0] == whole
        assert (tmp_path / "out.jsonl").read_bytes() == written


# Failed rows


@pytest.mark.parametrize("flags", [(), ("--temperature", "5", "--seed", "3")])
def test_what_failed_is_asked_again_on_demand(batch, folder, tmp_path, monkeypatch, flags):
    flags = ("--batch-size", "2", *flags)
    rows = questions(folder)
    pictures = [tmp_path / f"{number}.png" for number in (1, 4)]
    for row, picture in zip((rows[1], rows[4]), pictures, strict=True):
        row["image"] = str(picture)
    first, said = batch(rows, *flags)
    sentence = (
        f"3 answers, 2 failed (--retry-failed asks again); first: row q1, {first[1]['error']}"
    )
    assert said.endswith(f"out.jsonl: {sentence}\n")
    started, starts = Session.start, []
    monkeypatch.setattr(Session, "start", lambda *given: starts.append(1) or started(*given))
    # Without the flag nothing is asked, and it is not said that all is answered.
    again, said = batch(None, *flags)
    assert (again, starts) == (first, [])
    assert said.endswith(f"out.jsonl: {sentence}; no other row is left to ask\n")
    for picture in pictures:
        picture.write_bytes((folder / "b.png").read_bytes())
    answers, said = batch(None, *flags, "--retry-failed")
    assert said.endswith("out.jsonl: 5 answers\n")
    assert starts == [1]
    assert [each["id"] for each in answers] == ["q0", "q1", "q2", "q3", "q4"]
    for number in (0, 2, 3):
        assert answers[number] == first[number]
    if flags == ("--batch-size", "2"):
        assert answers == batch(None, *flags, out="whole.jsonl")[0]
    assert sorted(each.name for each in tmp_path.glob("out*")) == [
        *("out.jsonl", f"out.jsonl{SUFFIX}")
    ]


def test_failed_rows_of_a_file_cut_short(batch, folder, tmp_path, monkeypatch):
    """Answered again, stopped after the first, and resumed: none is lost or doubled."""
    rows = questions(folder)
    picture = rows[0]["image"], rows[3]["image"]
    missing = [rows[0] | {"image": "no.png"}, *rows[1:3], rows[3] | {"image": "no.png"}, rows[4]]
    flags = ("--batch-size", "1")
    batch(missing, *flags)
    out = tmp_path / "out.jsonl"
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:4]) + lines[4][:7])
    # A row may be mended in the place of its picture.
    rows[0]["image"], rows[3]["image"] = picture
    assert "holds answers to other rows" in batch(rows, *flags, code=2)[1]
    asked = []

    def answer_rows(self, rows, first):
        asked.append(rows[0].id)
        if len(asked) == 2:
            # As a kill would find it.
            assert [each["id"] for each in read(out)] == ["q1", "q2", "q0"]
            assert not any("error" in each for each in read(out))
            raise KeyboardInterrupt
        return original(self, rows, first)

    original = Session.answer_rows
    monkeypatch.setattr(Session, "answer_rows", answer_rows)
    batch(None, *flags, "--retry-failed", code=130)
    assert asked == ["q0", "q3"]
    answers, _ = batch(None, *flags, "--retry-failed")
    assert asked == ["q0", "q3", "q3", "q4"]
    assert answers == batch(None, *flags, out="whole.jsonl")[0]


# Two processes


def command(folder, tmp_path, *flags):
    given = ["--batch", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl"]
    given += ["--model", folder / "llava", "--max-new-tokens", "4", *flags]
    return [sys.executable, "scripts/generate.py", *map(str, given)]


@pytest.mark.slow
def test_two_processes_do_not_write_one_file(folder, tmp_path, capfd, monkeypatch):
    """The second says so before it loads a model, and the first is not disturbed."""
    write(tmp_path / "in.jsonl", questions(folder))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command(folder, tmp_path), **given)
    while not (tmp_path / ".out.jsonl.lock").exists():
        assert first.poll() is None
        time.sleep(0.002)
    time.sleep(0.2)  # the file is there a moment before its lock is
    first.send_signal(signal.SIGSTOP)  # so that it does not end too early
    second = subprocess.run(command(folder, tmp_path), **given)
    assert second.returncode == 2
    [sentence] = second.stderr.splitlines()
    assert sentence.startswith(f"error: another process is writing {tmp_path / 'out.jsonl'}: ")
    first.send_signal(signal.SIGCONT)
    first.communicate()
    assert first.returncode == 0
    assert [each["id"] for each in read(tmp_path / "out.jsonl")] == [f"q{n}" for n in range(5)]
    monkeypatch.setattr(Session, "start", None)
    with sole_writer(tmp_path / "out.jsonl"):
        assert generate.main(command(folder, tmp_path, "--retry-failed")[2:]) == 2
    assert "another process is writing" in capfd.readouterr().err


def test_running_out_of_memory_names_the_batch_size(batch, folder, tmp_path, monkeypatch):
    def generate(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    monkeypatch.setattr("causalmm.decoding.generation.CounterfactualGeneration.generate", generate)
    _, said = batch(questions(folder), code=1)
    assert said.splitlines()[-1].startswith("error: not enough memory: try smaller images")
    assert (tmp_path / f"out.jsonl{SUFFIX}").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on(folder, tmp_path):
    rows = [row | {"id": f"{turn} {row['id']}"} for turn in range(4) for row in questions(folder)]
    path, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command = [sys.executable, "scripts/generate.py", "--batch", path, "--model", folder / "llava"]
    command += ["--max-new-tokens", "8", "--batch-size", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(out):
        given = [str(each) for each in [*command, "--out", out]]
        return subprocess.Popen(given, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole.jsonl").wait() == 0
    kills = 0
    for wanted in (1, 10):
        process = start(out)
        while process.poll() is None and (not out.exists() or len(read_lines(out)) < wanted):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    assert len(read_lines(out)) < len(rows)
    assert start(out).wait() == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [each["id"] for each in read(out)] == [each["id"] for each in rows]


def read_lines(path):
    return path.read_bytes().split(b"\n")[:-1]


def test_pixel_limits_of_a_batch(batch, folder, tmp_path, capfd):
    """Each row as alone under the same flags; other limits are other settings."""
    row, flags = questions(folder)[0], ("--max-pixels", "800")
    [limited], _ = batch([row], *flags, model="qwen2_vl")
    given = ["--image", row["image"], "--prompt", row["prompt"], "--model", folder / "qwen2_vl"]
    assert generate.main([str(each) for each in (*given, "--max-new-tokens", "4", *flags)]) == 0
    assert capfd.readouterr().out.strip() == limited["answer"]
    assert json.loads((tmp_path / f"out.jsonl{SUFFIX}").read_text())["max_pixels"] == 800
    assert "other settings (max_pixels" in batch([row], model="qwen2_vl", code=2)[1]


def test_the_network_is_asked_for_a_batch_only_if_allowed(batch, folder, monkeypatch):
    content = (folder / "a.png").read_bytes()
    monkeypatch.setattr("causalmm.inputs.sources.fetch", lambda address: content)
    rows = [{"image": str(folder / "a.png"), "prompt": "what ?"}]
    rows.append(rows[0] | {"image": "https://x/a.png"})
    here, fetched = batch(rows, "--allow-network")[0]
    assert here["answer"] == fetched["answer"]
    _, refused = batch(rows, out="other")[0]
    assert "https://x/a.png is not fetched" in refused["error"]


def test_settings_are_written_beside_the_answers(batch, folder, tmp_path):
    batch(questions(folder)[:1], "--top-p", "0.5", "--batch-size", "3")
    settings = json.loads((tmp_path / f"out.jsonl{SUFFIX}").read_text())
    assert settings["config"] == CausalMMConfig().to_dict()
    assert settings["sampling"]["top_p"] == 0.5
    assert settings["batch_size"] == 3
