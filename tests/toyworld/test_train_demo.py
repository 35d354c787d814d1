"""Training resumes as if it had not been interrupted, and refuses a state of other settings; what
makes it faster changes nothing."""

import copy
import re
import shutil

import pytest
import torch
from family_rows import fast_first
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from causalmm.cli.sole_writer import sole_writer
from causalmm.toyworld.building import build
from causalmm.toyworld.commands import train_demo
from causalmm.toyworld.lessons import Lessons, block_mask, pictures
from causalmm.toyworld.quick_attention import packed_rows
from causalmm.toyworld.quick_vision import quicken
from causalmm.toyworld.scenes import SceneStyle, scene
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


@pytest.mark.parametrize("values", fast_first(1, [{}, {"family": "qwen2_vl", "text_rows": 2}]))
def test_resuming_equals_not_being_interrupted(values, tmp_path, monkeypatch):
    settings = TrainingSettings(**(SETTINGS | values))
    whole = Trainer(settings, tmp_path / "whole")
    whole.run(workers=0)

    first = Trainer(settings, tmp_path / "resumed")
    learn = first.learn

    def learn_two(batch):
        if first.step == 2:
            first.save()
            raise Interrupted
        return learn(batch)

    monkeypatch.setattr(first, "learn", learn_two)
    with pytest.raises(Interrupted):
        first.run(workers=0)
    second = Trainer(settings, tmp_path / "resumed")
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


def test_quick_vision_equals_upstreams():
    model, processor = build("qwen2_vl")
    plain, quick = model.model.visual, copy.deepcopy(model.model.visual)
    quicken(quick)
    assert list(quick.state_dict()) == list(plain.state_dict())
    drawn = [scene(number, style=SceneStyle(size=(126, 98))) for number in (1, 2, 3)]
    batch = pictures(processor, drawn)
    features = [
        tower(batch["pixel_values"], grid_thw=batch["image_grid_thw"]).pooler_output
        for tower in (plain, quick)
    ]
    assert_close(features[1], features[0])
    towards = torch.randn_like(features[0])
    for each in features:
        (each * towards).sum().backward()
    for (name, one), other in zip(plain.named_parameters(), quick.parameters(), strict=True):
        assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("prefix", "lengths"), [(70, [[20] * 12, [45, 3, 30]]), (0, [[51], [7]])])
def test_packed_rows_equal_attention_with_a_mask(prefix, lengths):
    rows = [
        torch.arange(len(row) + 1).repeat_interleave(torch.tensor([prefix, *row]))
        for row in lengths
    ]
    segment = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    size = segment.shape[1]
    shapes = [(2, heads, size, 8) for heads in (4, 2, 2)]
    query, key, value = (torch.randn(shape, requires_grad=True) for shape in shapes)
    seen = block_mask(segment)
    reach = max(max(row) for row in lengths)
    quick, _ = packed_rows(
        None,
        query,
        key,
        value,
        torch.zeros(()).masked_fill(~seen, -torch.inf),
        prefix=prefix,
        reach=reach,
    )
    whole = scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
    real = segment >= 0
    quick, whole = quick[real], whole.transpose(1, 2)[real]
    assert_close(quick, whole)
    towards = torch.randn_like(whole)
    gradients = [
        torch.autograd.grad((each * towards).sum(), (query, key, value)) for each in (quick, whole)
    ]
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_compiled_layers_learn_the_same(family):
    settings = TrainingSettings(
        family=family, steps=1, rows=2, warmup=1, cell_steps=1, cell_rows=2, text_rows=2
    )
    plain, compiled = Trainer(settings, None), Trainer(settings, None, compiled=True)
    lessons = Lessons(settings, plain.processor)
    for step in range(2):
        records = [trainer.learn(lessons[step]) for trainer in (plain, compiled)]
        for name, value in records[0].items():
            assert value == pytest.approx(records[1][name], abs=0.02), name


def test_a_finished_run_is_not_repeated(tmp_path):
    settings = TrainingSettings(**(SETTINGS | {"steps": 1, "cell_steps": 0, "late_steps": 0}))
    Trainer(settings, tmp_path).run(workers=0)
    again = Trainer(settings, tmp_path)
    again.run(workers=0)
    assert again.step == 1


def test_a_state_belongs_to_one_process_at_a_time(tmp_path, capsys):
    folder = tmp_path / "demo-llava-0"
    folder.mkdir()
    argv = ["llava", "--only", "train", "--steps", "1", "--no-compile", "--runs", str(tmp_path)]
    with sole_writer(folder / "state.pt"):
        assert train_demo.main([*argv, "--out", str(tmp_path / "out")]) == 1
    assert f"error: another process is writing {folder / 'state.pt'}: " in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_refuses_a_state_of_other_settings(tmp_path):
    settings = SETTINGS | {"steps": 1, "cell_steps": 0, "late_steps": 0}
    Trainer(TrainingSettings(**settings), tmp_path).run(workers=0)
    with pytest.raises(ValueError, match="a run with other seed"):
        Trainer(TrainingSettings(**settings, seed=1), tmp_path).run(workers=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"family": "clip"}, "family='clip': expected one of llava, qwen2_vl"),
        ({"steps": 0}, "steps=0"),
        ({"learning_rate": 0}, "learning_rate=0"),
    ],
)
def test_settings_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**(SETTINGS | values))
