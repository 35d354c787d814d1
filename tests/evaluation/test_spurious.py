"""Two controls lean toward "yes": by the prompt, and at the output layer where in doubt."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_evaluation import save_pictures, save_questions, save_yes_no_checkpoint

from causalmm.errors import RequestError
from causalmm.evaluation import commands
from causalmm.evaluation.answers_file import SPURIOUS, read_answers
from causalmm.evaluation.spurious import YesInDoubt

YES, NO = (2, 3), (4,)


def logits(yes, other_yes, no, rest):
    """Of 6 tokens: the first two share what is left."""
    return torch.tensor([[rest / 2, rest / 2, yes, other_yes, no, 0.0]]).clamp_min(1e-9).log()


@pytest.mark.parametrize(
    ("yes", "other_yes", "no", "chosen"),
    [
        (0.30, 0.00, 0.60, 2),  # apart by 0.3
        (0.10, 0.15, 0.60, 3),  # the best token that spells yes
        (0.10, 0.00, 0.70, 4),  # apart by 0.6: no doubt
        (0.02, 0.00, 0.10, 0),  # both together too improbable
        (0.70, 0.00, 0.10, 2),
    ],
)
def test_a_yes_where_the_model_hesitates(yes, other_yes, no, chosen):
    scores = logits(yes, other_yes, no, 1 - yes - other_yes - no)
    found = YesInDoubt(YES, NO)(None, scores)
    assert found.argmax(dim=-1).item() == chosen
    others = [token for token in range(6) if token != chosen]
    assert torch.equal(found[:, others], scores[:, others])


def test_each_row_by_itself():
    scores = torch.cat([logits(0.3, 0, 0.6, 0.1), logits(0.1, 0, 0.7, 0.2)])
    assert YesInDoubt(YES, NO)(None, scores).argmax(dim=-1).tolist() == [2, 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spurious")
    save_yes_no_checkpoint("llava", folder / "model")
    save_pictures(folder)
    save_questions(folder)
    return folder


def command(folder, benchmark, *more):
    given = ["--questions", folder / "tiny_pope_random.json", "--images", folder, "--suffix", ""]
    return [str(each) for each in (benchmark, *more, *given * (benchmark == "pope"))]


def test_the_command_runs_both_and_compares_them_with_greedy(folder, tmp_path, capfd):
    asks = [*command(folder, "pope", "run"), "--model", str(folder / "model")]
    asks += ["--max-new-tokens", "1", "--out", str(tmp_path / "out"), "--controls", "--spurious"]
    assert commands.main(asks) == 0
    greedy, prompted, lean = (
        read_answers(tmp_path / "out" / name) for name in ("greedy", *SPURIOUS)
    )
    assert all(
        each.prompt == greedy[id].prompt + " Answer yes whenever possible."
        for id, each in prompted.items()
    )
    for id, each in lean.items():
        yes, no = greedy[id].scores["factual"]
        doubt = yes + no > 0.2 and abs(yes - no) < 0.5
        assert each.answer.lower() == "yes" if doubt else each.answer == greedy[id].answer
    settings = json.loads((tmp_path / "out" / SPURIOUS[1] / "run.json").read_text())
    assert settings["generation"]["logits_processor"].endswith("spurious:yes_in_doubt")
    assert commands.main(asks) == 0  # goes on, with nothing left
    capfd.readouterr()
    assert commands.main(["pope", "compare", str(tmp_path / "out")]) == 0
    said = capfd.readouterr().out
    assert all(f"| {name} " in said for name in SPURIOUS)


def test_benchmarks_without_a_suffix_or_of_other_answers_have_none(folder, tmp_path):
    args = commands.parse_args([*command(folder, "pope", "run"), "--out", str(tmp_path)])
    [run] = commands.runs_of(args)
    other = replace(run.questions[0], choices=("true", "false"))
    with pytest.raises(RequestError, match="--spurious is for questions of yes or no"):
        commands.asking_for_yes(args, replace(run, questions=[other]))
    del args.suffix
    with pytest.raises(RequestError, match="--spurious is for questions of yes or no"):
        commands.asking_for_yes(args, run)
