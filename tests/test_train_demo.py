"""Training resumes as if it had not been interrupted, and refuses a state of other settings."""

import pytest
import torch

from causalmm.toyworld.training import Trainer, TrainingSettings

SETTINGS = {"family": "llava", "steps": 3, "rows": 2, "warmup": 2, "cell_steps": 1, "cell_rows": 2}


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


def test_a_finished_run_is_not_repeated(tmp_path):
    settings = TrainingSettings(**(SETTINGS | {"steps": 1, "cell_steps": 0}))
    Trainer(settings, tmp_path).run(workers=0)
    again = Trainer(settings, tmp_path)
    again.run(workers=0)
    assert again.step == 1


def test_refuses_a_state_of_other_settings(tmp_path):
    settings = SETTINGS | {"steps": 1, "cell_steps": 0}
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
