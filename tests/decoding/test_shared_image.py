"""Prompts that share their pictures, decoded together: the tokens and logits of each one alone."""

import pytest
import torch
from family_rows import row_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import sample
from tiny_words import words
from torch.nn.functional import pad

from causalmm import BranchTrace, CausalMMConfig, answer_questions
from causalmm.config import MODES
from causalmm.decoding.shared_image import generate_together, shared_tokens

WAYS = (None, *MODES)
GREEDY = {"do_sample": False, "max_new_tokens": 7}


def prompts(family, lengths=(2, 7, 4), begun=None, **shape):
    """The same pictures with texts of these lengths behind them."""
    begun = sample(family, seed=1, **shape) if begun is None else begun
    rows = []
    for number, length in enumerate(lengths):
        text = torch.tensor([words(length, seed=40 + number)])
        row = dict(begun, input_ids=torch.cat([begun["input_ids"], text], dim=1))
        row["attention_mask"] = torch.ones_like(row["input_ids"])
        if "mm_token_type_ids" in begun:
            row["mm_token_type_ids"] = pad(begun["mm_token_type_ids"], (0, length))
        rows.append(row)
    return rows


def check_alone(model, rows, mode):
    config = None if mode is None else CausalMMConfig(mode=mode, epsilon=0, draws=2, seed=3)
    settings = GREEDY | {"suppress_tokens": [model.config.image_token_id]}
    trace = BranchTrace()
    together = generate_together(model, rows, causalmm=config, causalmm_trace=trace, **settings)
    assert torch.equal(together, generate_together(model, rows, causalmm=config, **settings))
    for number, row in enumerate(rows):
        single = BranchTrace()
        alone = model.generate(**row, causalmm=config, causalmm_trace=single, **settings)
        assert torch.equal(together[number], alone[0, row["input_ids"].shape[1] :])
        for one, other in zip(trace.steps, single.steps, strict=True):
            torch.testing.assert_close(
                one.adjusted[number], other.adjusted[0], atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("mode", WAYS)
def test_each_answer_is_the_one_it_gets_alone(family, model, mode):
    check_alone(model, prompts(family), mode)


def test_several_pictures(family, model):
    rows = prompts(family, **row_of(family).two_images)
    config = CausalMMConfig(vision_method="reversed", language_method="reverse", epsilon=0)
    together = generate_together(model, rows, causalmm=config, **GREEDY)
    for number, row in enumerate(rows):
        alone = model.generate(**row, causalmm=config, **GREEDY)
        assert torch.equal(together[number], alone[0, row["input_ids"].shape[1] :])


@pytest.mark.parametrize("mode", [None, "multimodal"])
def test_an_image_and_a_video(family, model, mode):
    if (video := row_of(family).video) is None:
        pytest.skip("reads no videos")
    check_alone(model, prompts(family, begun=video(seed=1)), mode)


def test_pictures_are_encoded_and_the_beginning_prefilled_once(family, model):
    rows = prompts(family)
    tower = model.get_encoder("image")
    encoded, prefilled = [], []
    hooks = [
        tower.register_forward_hook(lambda *_: encoded.append(1)),
        model.model.language_model.layers[0].register_forward_hook(
            lambda _module, _inputs, output: prefilled.append(tuple(output.shape[:2]))
        ),
    ]
    generate_together(model, rows, causalmm=CausalMMConfig(), **GREEDY)
    for hook in hooks:
        hook.remove()
    assert encoded == [1]
    shared = rows[0]["input_ids"].shape[1] - 2
    # Factual and vision rows; the language rows join at a later layer.
    assert prefilled[:2] == [(2, shared), (6, 7)]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=4))
def test_shared_tokens(rows):
    shared = shared_tokens([torch.tensor(row) for row in rows])
    assert all(row[:shared] == rows[0][:shared] and len(row) > shared for row in rows)
    longer = [row[: shared + 1] for row in rows]
    assert any(row != longer[0] for row in longer) or min(len(row) for row in rows) == shared + 1


def test_refuses_what_cannot_share(family, model):
    rows = prompts(family)
    with pytest.raises(ValueError, match="one sequence a prompt"):
        generate_together(model, rows, num_beams=2)
    other = sample(family, seed=1, before=4)
    with pytest.raises(ValueError, match="the prompts differ before their last picture"):
        generate_together(model, [rows[0], other])
    with pytest.raises(ValueError, match="prompts is empty"):
        answer_questions(model, None, None, [])
