"""Training resumes as if it had not been interrupted, and refuses a state of other settings."""

import re

import pytest
import torch

from causalmm.toyworld.building import build
from causalmm.toyworld.lessons import Lessons
from causalmm.toyworld.settings import TrainingSettings
from causalmm.toyworld.training import Trainer
from causalmm.toyworld.vocabulary import GROUP_OF

SETTINGS = {
    "family": "llava",
    "steps": 2,
    "rows": 2,
    "warmup": 2,
    "cell_steps": 1,
    "cell_rows": 2,
    "late_steps": 1,
}


class Interrupted(Exception):
    pass


def test_resuming_equals_not_being_interrupted(tmp_path, monkeypatch):
    whole = Trainer(TrainingSettings(**SETTINGS), tmp_path / "whole")
    whole.run(workers=0)

    first = Trainer(TrainingSettings(**SETTINGS), tmp_path / "resumed")
    learn = first.learn

    def learn_two(batch):
        if first.step == 2:
            first.save()
            raise Interrupted
        return learn(batch)

    monkeypatch.setattr(first, "learn", learn_two)
    with pytest.raises(Interrupted):
        first.run(workers=0)
    second = Trainer(TrainingSettings(**SETTINGS), tmp_path / "resumed")
    second.run(workers=0)
    assert second.step == whole.step == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_late_lessons_seldom_ask_for_something_absent_that_would_fit():
    settings = TrainingSettings(
        family="llava", steps=1, late_steps=1, rows=40, own_group=1.0, coherent=1.0
    )
    _, processor = build("llava")
    lessons = Lessons(settings, processor)
    early, late = (fitting_absent(processor, lessons[step]) for step in (0, 1))
    assert early > 0.5
    assert late < 0.2  # what chance gives


def fitting_absent(processor, batch):
    """The share of absent things asked about that are of the group of a present one."""
    fits = []
    for tokens in batch["input_ids"]:
        text = processor.tokenizer.decode(tokens)
        asked = re.findall(r"Is there an? (\w+) in the image\?.*?ASSISTANT: (Yes|No)", text)
        present = {GROUP_OF[name] for name, answer in asked if answer == "Yes"}
        fits += [GROUP_OF[name] in present for name, answer in asked if answer == "No"]
    assert len(fits) > 60
    return sum(fits) / len(fits)


def test_a_finished_run_is_not_repeated(tmp_path):
    settings = TrainingSettings(**(SETTINGS | {"steps": 1, "cell_steps": 0, "late_steps": 0}))
    Trainer(settings, tmp_path).run(workers=0)
    again = Trainer(settings, tmp_path)
    again.run(workers=0)
    assert again.step == 1


def test_refuses_a_state_of_other_settings(tmp_path):
    settings = SETTINGS | {"steps": 1, "cell_steps": 0, "late_steps": 0}
    Trainer(TrainingSettings(**settings), tmp_path).run(workers=0)
    with pytest.raises(ValueError, match="a run with other seed"):
        Trainer(TrainingSettings(**settings, seed=1), tmp_path).run(workers=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"family": "clip"}, "family='clip': expected one of llava, qwen2vl"),
        ({"steps": 0}, "steps=0"),
        ({"learning_rate": 0}, "learning_rate=0"),
    ],
)
def test_settings_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**(SETTINGS | values))
