"""VCD's answers are a run that `evaluate.py compare` takes, and go on after a kill."""

import json

import pytest
import vcd_answers
from tiny_evaluation import save_pictures, save_questions, save_yes_no_checkpoint

from causalmm.cli.sole_writer import sole_writer
from causalmm.evaluation.commands import main as evaluate

pytest.importorskip("mitigv")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vcd")
    save_pictures(folder)
    return ["--questions", str(save_questions(folder)), "--images", str(folder)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_yes_no_checkpoint("llava", tmp_path_factory.mktemp("model") / "llava"))


def answers(folder):
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


def test_vcd_is_a_run_like_any_other(flags, model, tmp_path, capsys):
    asked = ["--model", model, "--max-new-tokens", "4"]
    vcd, plain = tmp_path / "vcd", tmp_path / "greedy"
    assert vcd_answers.main(["pope", *flags, *asked, "--out", str(vcd)]) == 0
    whole = answers(vcd)
    assert len(whole) == 7
    assert all(each["answer"] and each.get("error") is None for each in whole)
    record = json.loads((vcd / "run.json").read_text(encoding="utf-8"))
    assert record["questions"] == 7
    assert record["vcd"]["beta"] == 0.1
    generation = {"do_sample": False, "max_new_tokens": 4, "repetition_penalty": 1.0}
    assert record["generation"] == generation

    # Killed in the middle of the fourth line, it goes on with that one.
    lines = (vcd / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (vcd / "answers.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:9])
    assert vcd_answers.main(["pope", *flags, *asked, "--out", str(vcd)]) == 0
    assert answers(vcd) == whole
    assert (vcd / "answers.jsonl").read_bytes().startswith(b"".join(lines[:3]))

    assert evaluate(["pope", "run", *flags, *asked, "--mode", "plain", "--out", str(plain)]) == 0
    capsys.readouterr()
    assert evaluate(["pope", "compare", str(plain), str(vcd), *flags]) == 0
    assert "vcd" in capsys.readouterr().out


def test_a_run_with_other_settings_is_refused(flags, model, tmp_path, capsys):
    asked = ["pope", *flags, "--model", model, "--out", str(tmp_path), "--max-new-tokens"]
    assert vcd_answers.main([*asked, "1"]) == 0
    assert vcd_answers.main([*asked, "2"]) == 2
    assert "begun with other settings" in capsys.readouterr().err


def test_a_missing_picture_is_a_failed_answer(flags, model, tmp_path):
    elsewhere = [*flags[:2], "--images", str(tmp_path)]
    out = tmp_path / "vcd"
    assert vcd_answers.main(["pope", *elsewhere, "--model", model, "--out", str(out)]) == 0
    assert all(each["answer"] is None and "a.png" in each["error"] for each in answers(out)[:1])


def test_a_folder_belongs_to_one_process_at_a_time(flags, model, tmp_path, capsys):
    with sole_writer(tmp_path / "answers.jsonl"):
        argv = ["pope", *flags, "--model", model, "--out", str(tmp_path)]
        assert vcd_answers.main(argv) == 2
    assert "another process is writing" in capsys.readouterr().err


def test_qwen2_vl_is_refused(flags, tmp_path, capsys):
    model = save_yes_no_checkpoint("qwen2_vl", tmp_path / "qwen2_vl")
    argv = ["pope", *flags, "--model", str(model), "--out", str(tmp_path / "out")]
    assert vcd_answers.main(argv) == 2
    assert "a LLaVA checkpoint" in capsys.readouterr().err
