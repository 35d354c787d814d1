"""Toy world: scenes are functions of their number, biases as documented, wording exact."""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from causalmm.toyworld import questions as ask
from causalmm.toyworld.building import build
from causalmm.toyworld.drawing import DRAWINGS
from causalmm.toyworld.evaluation import (
    SETS,
    Asked,
    accuracy,
    chair,
    difference,
    mentioned,
    question_set,
)
from causalmm.toyworld.lessons import IGNORED, collate, text_rows
from causalmm.toyworld.recipes import RECIPES
from causalmm.toyworld.scenes import SceneStyle, scene
from causalmm.toyworld.settings import TrainingSettings
from causalmm.toyworld.training import Trainer
from causalmm.toyworld.vocabulary import (
    CANONICAL,
    CLASSES,
    COLOURS,
    GROUP_OF,
    article,
    plural,
)


@pytest.fixture(scope="module")
def training_scenes():
    return [scene(number, split="train") for number in range(250)]


def test_a_scene_is_a_function_of_its_split_and_number():
    one, again = scene(7, split="test"), scene(7, split="test")
    assert np.array_equal(np.asarray(one.image), np.asarray(again.image))
    assert one.items == again.items
    others = [scene(7, split="train"), scene(8, split="test")]
    for other in others:
        assert not np.array_equal(np.asarray(one.image), np.asarray(other.image))


def test_every_class_is_drawn_and_has_a_colour_and_a_group():
    assert set(DRAWINGS) == set(CLASSES) == set(CANONICAL) == set(GROUP_OF)
    assert len(COLOURS) == 11
    assert set(CANONICAL.values()) <= set(COLOURS)


def test_objects_are_as_many_and_as_large_as_documented(training_scenes):
    assert {len(each.items) for each in training_scenes} == {1, 2, 3, 4}
    sizes = [item.size for each in training_scenes for item in each.items]
    assert 13 <= min(sizes) < 15
    assert 42 < max(sizes) <= 46
    for each in training_scenes:
        assert [item.x for item in each.items] == sorted(item.x for item in each.items)
        assert len(set(each.names)) == len(each.items)


def test_biases_are_as_documented(training_scenes):
    several = [each for each in training_scenes if len(each.items) > 1]
    coherent = [len({GROUP_OF[name] for name in each.names}) == 1 for each in several]
    assert 0.72 < np.mean(coherent) < 0.9
    canonical = [
        item.colour == CANONICAL[item.name] for each in training_scenes for item in each.items
    ]
    assert 0.77 < np.mean(canonical) < 0.87


def test_a_quarter_of_the_absent_objects_would_fit_the_scene(training_scenes):
    rng = random.Random(0)
    near = []
    for each in training_scenes:
        if len(each.items) < 4 and len({GROUP_OF[name] for name in each.names}) == 1:
            absent = ask.absent_name(each.names, 0.25, rng)
            assert absent not in each.names
            near.append(GROUP_OF[absent] == GROUP_OF[each.names[0]])
    # One in four by design, and some of the others by chance.
    assert 0.2 < np.mean(near) < 0.45


def test_cells_say_what_is_where(training_scenes):
    for each in training_scenes[:40]:
        assert each.cells.shape == (8, 8)
        for index, item in enumerate(each.items, start=1):
            rows, columns = np.nonzero(each.cells == index)
            if len(rows):
                assert abs(columns.mean() * 14 + 7 - item.x) < item.size
                assert abs(rows.mean() * 14 + 7 - item.y) < item.size


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"canonical": 1.2}, "canonical=1.2: expected a probability"),
        ({"counts": (1.0, 0, 0, 0.5)}, "four probabilities"),
        ({"size": (100, 112)}, "multiples of 14"),
    ],
)
def test_a_style_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SceneStyle(**values)
    with pytest.raises(ValueError, match="expected one of train, development, test"):
        scene(1, split="dev")


def test_wording_of_the_benchmarks():
    pope = ask.existence("apple", True, ask.ONE_WORD)
    assert pope.text == (
        "Is there an apple in the image? Please answer this question with one word."
    )
    mme = ask.existence("cup", False, ask.YES_OR_NO)
    assert (mme.text, mme.answer) == (
        "Is there a cup in the image? Please answer yes or no.",
        "No",
    )
    assert ask.image_statement(ask.presence("banana"), True).text == (
        "Only respond in True or False.\nStatement: There is banana in the given image.\n"
        "Based on the image, is the given statement true or false?"
    )
    assert ask.sense_statement("banana", "yellow") == ask.SceneQuestion(
        kind="sense",
        text="Only respond in True or False.\nStatement: Bananas are yellow.\n"
        "Based on common sense, is the given statement true or false?",
        answer="True",
    )
    assert ask.context_statement("leaf", "blue", "green") == ask.SceneQuestion(
        kind="context",
        text="Only respond in True or False.\nContext: In this world, all leaves are blue.\n"
        "Statement: Leaves are green.\n"
        "Based on the context, is the given statement true or false?",
        answer="False",
    )
    assert ask.caption([("apple", "red"), ("cup", "orange")]).answer == (
        "A red apple, an orange cup."
    )
    assert (article("anchor"), plural("butterfly"), plural("fish")) == ("an", "butterflies", "fish")


def test_training_questions_are_answered_by_the_scene(training_scenes):
    rng = random.Random(0)
    kinds: Counter[str] = Counter()
    for each in training_scenes:
        shown = {item.name: item.colour for item in each.items}
        for question in ask.training_questions(each.items, rng):
            kinds[question.kind] += 1
            if question.kind == "existence":
                name = question.text.split()[3]
                assert (name in shown) == (question.answer == "Yes")
            if question.kind == "colour" and question.text.startswith("What"):
                name = question.text.split()[-1].rstrip("?")
                assert shown[name] == question.answer.lower()
            if question.kind == "caption":
                assert mentioned(question.answer) == set(shown)
    assert set(kinds) == set(ask.KINDS)


@pytest.mark.parametrize("name", SETS)
def test_question_sets_are_fixed_and_balanced(name):
    asked = question_set(name, "qwen2_vl", "test", 40)
    again = question_set(name, "qwen2_vl", "test", 40)
    assert [each.question for each in asked] == [each.question for each in again]
    assert len({each.scene.image.size for each in asked}) == len(RECIPES["qwen2_vl"].sizes)
    if name.startswith("existence"):
        assert Counter(each.question.answer for each in asked) == {"Yes": 40, "No": 40}
    if name == "existence adversarial":
        for each in asked:
            assert GROUP_OF[each.question.text.split()[3]] == GROUP_OF[each.scene.names[0]]
    if name == "odd colour":
        for each in asked:
            asked_about = each.question.text.split()[-1].rstrip("?")
            assert each.question.answer.lower() != CANONICAL[asked_about]


def test_chair_by_hand():
    scenes = {tuple(sorted(scene(n).names)): scene(n) for n in range(4)}
    (names, drawn) = next((k, v) for k, v in scenes.items() if len(k) >= 2)
    absent = next(name for name in CLASSES if name not in names)
    asked = [
        Asked(0, drawn, ask.existence("cup", True)),
        Asked(1, drawn, ask.existence("cup", True)),
    ]
    found = chair([f"A {names[0]} and two {plural(absent)}.", f"{plural(names[0])}!"], asked)
    assert found["chair_i"]["value"] == pytest.approx(100 / 3, abs=0.01)
    assert found["chair_s"]["value"] == 50
    assert found["recall"]["value"] == pytest.approx(100 / len(names), abs=0.01)


def test_intervals_resample_images_not_questions():
    drawn = scene(1)
    asked = [Asked(n // 2, drawn, ask.existence("cup", True)) for n in range(40)]
    right = np.arange(40) % 2 == 0
    assert accuracy(right, asked) == {"value": 50.0, "interval": [50.0, 50.0], "questions": 40}
    assert difference(right, ~right, asked)["value"] == 0.0


@pytest.fixture(scope="module", params=RECIPES)
def built(request):
    return request.param, *build(request.param)


def test_models_are_as_small_as_promised(built):
    _, model, _ = built
    assert 3e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 6e6


def test_any_text_survives_the_tokenizer(built):
    _, _, processor = built
    text = "Façade, naïve; 12 °C – «ok»?\n\tIs there a cup?"
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert processor.tokenizer.decode(ids) == text


def test_a_packed_question_is_computed_as_if_asked_alone(built):
    family, _, _ = built
    trainer = Trainer(TrainingSettings(family=family, steps=1), folder=None)
    model, processor = trainer.model.eval(), trainer.processor
    size = RECIPES[family].sizes[-1]
    drawn = [scene(number, style=SceneStyle(size=size)) for number in (5, 6)]
    asked = [ask.training_questions(each.items, random.Random(0)) for each in drawn]
    batch = collate(family, processor, drawn, asked)
    with torch.no_grad():
        packed = model.lm_head(trainer.hidden_states(batch))
    for row, each in enumerate(drawn):
        prefix = int((batch["segment"][row] == 0).sum())
        for number, question in enumerate(asked[row], start=1):
            (places,) = (batch["segment"][row] == number).nonzero(as_tuple=True)
            ids, labels = batch["input_ids"][row, places], batch["labels"][row, places]
            shown = {"images": [each.image]}
            alone = answer_alone(family, model, processor, question, shown)
            assert_as_if_alone(processor, question, ids, labels, packed[row, places], alone, prefix)


def test_a_text_row_is_computed_as_if_asked_alone(built):
    family, _, _ = built
    trainer = Trainer(TrainingSettings(family=family, steps=1), folder=None)
    model, processor = trainer.model.eval(), trainer.processor
    asked = ask.blind_questions(random.Random(1)) + [ask.sense_statement("cup", "red")]
    batch = text_rows(family, processor, asked)
    with torch.no_grad():
        packed = model.lm_head(trainer.text_states(batch))
    for row, question in enumerate(asked):
        places = batch["segment"][row] == 1
        ids, labels = batch["input_ids"][row, places], batch["labels"][row, places]
        alone = answer_alone(family, model, processor, question, {})
        assert_as_if_alone(processor, question, ids, labels, packed[row, places], alone, prefix=0)


def test_answers_to_statements_about_the_image_weigh_what_they_are_told_to(built):
    family, _, processor = built
    drawn = scene(5)
    asked = ask.training_questions(drawn.items, random.Random(0), text_apart=True)
    trainer = Trainer(TrainingSettings(family=family, steps=1), folder=None)
    losses = {}
    for weight in (1.0, 3.0):
        batch = collate(family, processor, [drawn], [asked], weight)
        taught = batch["labels"] != IGNORED
        statements = [
            number for number, each in enumerate(asked, start=1) if each.kind == "statement"
        ]
        about = torch.isin(batch["segment"], torch.tensor(statements))
        assert statements
        assert batch["weights"][taught & about].eq(weight).all()
        assert batch["weights"][taught & ~about].eq(1).all()
        with torch.no_grad():
            hidden = trainer.hidden_states(batch)
            losses[weight], _ = trainer._answers(hidden, batch)
            logits = trainer.model.lm_head(hidden)[:, :-1].log_softmax(-1)
        labels = batch["labels"][:, 1:]
        each = -logits.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        weights = taught[:, 1:] * (1 + (weight - 1) * about[:, 1:])
        torch.testing.assert_close(losses[weight], (each * weights).sum() / weights.sum())
    assert losses[1.0] != losses[3.0]


def answer_alone(family, model, processor, question, shown):
    """Input ids and logits of a question and its answer in a row of their own."""
    content = [{"type": "image"}] * len(shown) + [{"type": "text", "text": question.text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    answer = RECIPES[family].space + question.answer
    inputs = processor(**shown, text=[prompt + answer], return_tensors="pt")
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        return inputs["input_ids"][0], model(**inputs).logits[0]


def assert_as_if_alone(processor, question, ids, labels, logits, alone, prefix):
    alone_ids, alone_logits = (part[prefix:] for part in alone)
    # The packed row also holds the end token, which the prompt alone does not.
    assert torch.equal(ids[:-1], alone_ids)
    torch.testing.assert_close(logits[:-1], alone_logits, atol=1e-4, rtol=1e-4)
    taught = labels[labels != IGNORED].tolist()
    assert taught[-1] == processor.tokenizer.eos_token_id
    assert processor.tokenizer.decode(taught[:-1]).strip() == question.answer


def test_questions_without_a_picture_are_rarer_where_they_are_asked_apart(training_scenes):
    blind = {}
    for apart in (False, True):
        rng = random.Random(0)
        kinds = [
            question.kind
            for each in training_scenes
            for question in ask.training_questions(each.items, rng, text_apart=apart)
        ]
        blind[apart] = sum(kind in ("sense", "context") for kind in kinds)
        assert kinds.count("statement") >= len(training_scenes)
    assert 0 < blind[True] < blind[False] / 2
