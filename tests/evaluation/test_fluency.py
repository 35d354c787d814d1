"""Fluency and image mass of a branch, against forwards of one prompt each and dense maps."""

import json
import math

import pytest
import torch
from dense_methods import METHODS as DENSE
from dense_methods import Map
from family_rows import TWO_FAMILIES, fast_first
from tiny_evaluation import save_pictures, save_questions, save_yes_no_checkpoint

from causalmm import CausalMMConfig
from causalmm.cli.session import Session
from causalmm.evaluation.diagnosis import command
from causalmm.evaluation.diagnosis.fluency import ANSWER_TOKENS, PROMPT, Fluency, spread
from causalmm.evaluation.diagnosis.teacher_forcing import FluencyProbe, edits_text, read_branch
from causalmm.inputs.messages import one_turn

TEXTS = ["is there a banana ?", "what is this user here for ?", "is this it ?"]
PICTURES = ("a", "b", "c")


@pytest.fixture(scope="module", params=fast_first(1, TWO_FAMILIES))
def asked(request, tmp_path_factory):
    """A session on a tiny model, and the paths of three pictures of different sizes."""
    folder = tmp_path_factory.mktemp("fluency")
    save_yes_no_checkpoint(request.param, folder / "model")
    save_pictures(folder)
    questions = save_questions(folder)
    given = ["--questions", questions, "--images", folder, "--model", folder / "model"]
    args = command.parse_args([str(each) for each in (*given, "--out", folder / "out")])
    session = Session.start(args, command.find_model(args))
    return session, [str(folder / f"{name}.png") for name in PICTURES]


@pytest.fixture(scope="module")
def probe(asked):
    return FluencyProbe.of(*asked, TEXTS, 2)


def singles(session, paths):
    """The inputs of each picture alone and the tokens that the plain model answers."""
    found = []
    for path in paths:
        inputs = session.inputs(one_turn([path], PROMPT))
        output = session.model.generate(**inputs, do_sample=False, max_new_tokens=ANSWER_TOKENS)
        found.append((inputs, output[:, inputs["input_ids"].shape[1] :]))
    return found


def longer(inputs, tokens):
    """The inputs of a prompt followed by some of its answer."""
    shape = inputs["input_ids"].shape
    longer = dict(inputs)
    for name, part in inputs.items():
        if part.shape == shape:
            fill = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            more = fill.get(name, torch.zeros_like(tokens))
            longer[name] = torch.cat([part, more], dim=1)
    return longer


def branch_logs(session, inputs, config):
    """Log-probabilities of a branch at the last position: at strength 1 and unmasked, 2 l - l'."""
    with torch.no_grad():
        factual = session.model(**inputs).logits[0, -1].double()
        if config is None:
            return factual.log_softmax(-1)
        adjusted = session.model(**inputs, causalmm=config).logits[0, -1].double()
    return (2 * factual - adjusted).log_softmax(-1)


BRANCHES = [
    None,
    CausalMMConfig(mode="vision", vision_method="reversed", epsilon=0),
    CausalMMConfig(mode="language", language_method="random", language_layers="1:3", epsilon=0),
    CausalMMConfig(
        mode="language", language_method="blind", language_scope="image", epsilon=0, draws=1
    ),
    CausalMMConfig(mode="language", language_method="random", draws=2, epsilon=0),
]


@pytest.mark.parametrize("config", BRANCHES)
def test_one_forward_gives_what_a_prompt_for_each_token_gives(asked, probe, config):
    session, paths = asked
    found = probe.read(session, config)
    nats = tokens = 0
    for inputs, answer in singles(session, paths):
        for end, token in enumerate(answer[0].tolist()):
            nats -= branch_logs(session, longer(inputs, answer[:, :end]), config)[token].item()
            tokens += 1
    assert found.answer_tokens == tokens > 3
    assert found.answer_nats == pytest.approx(nats, rel=1e-4)
    nats = tokens = 0
    for text in TEXTS:
        ids = session.processor.tokenizer(text, return_tensors="pt").input_ids
        for end in range(1, ids.shape[1]):
            before = {"input_ids": ids[:, :end], "attention_mask": torch.ones_like(ids[:, :end])}
            nats -= branch_logs(session, before, config)[ids[0, end]].item()
            tokens += 1
    assert found.text_tokens == tokens > 8
    assert found.text_nats == pytest.approx(nats, rel=1e-4)


@pytest.mark.parametrize("config", BRANCHES[1:4])
def test_batches_are_their_members(asked, probe, config):
    session, paths = asked
    one_by_one = FluencyProbe.of(session, paths, TEXTS, 1).read(session, config)
    for name, value in one_by_one.to_dict().items():
        assert getattr(probe.read(session, config), name) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "edits"),
    [
        ({"mode": "vision"}, False),
        ({"mode": "language", "language_scope": "image"}, False),
        ({"mode": "language", "language_heads": "image:1"}, False),
        ({"mode": "language"}, True),
    ],
)
def test_text_without_a_picture_is_factual_where_only_image_tokens_are_edited(
    asked, probe, settings, edits
):
    session, _ = asked
    config = CausalMMConfig(**settings)
    assert edits_text(config) == edits
    with torch.no_grad():
        plain = [read_branch(session, each, None, "factual").nats for each in probe.texts]
        branch = [read_branch(session, each, config, config.mode).nats for each in probe.texts]
    assert (branch == pytest.approx(plain, rel=1e-5)) != edits


# -- image mass


def layer_maps(session, paths):
    """Of each picture with its answer: weights of every layer [H, L, L], and which keys are image
    tokens, bool [L]."""
    token = session.model.config.image_token_id
    for inputs, answer in singles(session, paths):
        inputs = longer(inputs, answer)
        session.model.set_attn_implementation("eager")
        with torch.no_grad():
            maps = session.model(**inputs, output_attentions=True).attentions
        session.model.set_attn_implementation("sdpa")
        yield [each[0].double() for each in maps], inputs["input_ids"][0] == token


def text_queries(image):
    """Text tokens that see an image token before them."""
    return ~image & (image.cumsum(0) > 0)


def test_the_plain_model_s_mass_is_that_of_its_maps(asked, probe):
    session, paths = asked
    sums, number = 0, 0
    for maps, image in layer_maps(session, paths):
        seen = [each[:, text_queries(image)][..., image].sum(-1) for each in maps]
        sums = sums + torch.stack([each.sum() for each in seen])
        number += seen[0].numel()
    found = probe.read(session, None)
    assert found.image_mass == pytest.approx((sums / number).tolist(), rel=1e-4)
    assert len(found.image_mass) == session.model.causalmm_towers().language_layers
    assert found.branch_image_mass == ()


@pytest.mark.parametrize("heads", ["all", "1", "image:2"])
@pytest.mark.parametrize(
    ("method", "scope"),
    [
        *((method, "all") for method in ("uniform", "reverse", "reverse_and_normalize")),
        *((method, "image") for method in ("uniform", "reverse", "random", "blind")),
    ],
)
def test_a_branch_s_mass_is_that_of_the_edited_maps(asked, probe, method, scope, heads):
    """In the first edited layer, which sees the factual keys. Shares of all weights: those of
    `reverse` do not sum to 1."""
    session, paths = asked
    config = CausalMMConfig(
        mode="language",
        language_method=method,
        language_scope=scope,
        language_heads=heads,
        language_layers=(1,),
    )
    sums, number = [0.0, 0.0], 0
    for maps, image in layer_maps(session, paths):
        weights, looking = maps[1], text_queries(image)
        given = Map(
            weights=weights,
            seen=torch.ones_like(weights, dtype=torch.bool).tril(),
            numbers=lambda like=weights: torch.ones_like(like),
            orders=lambda: None,
            start=0,
            image=(~image[:, None] & image[None]).expand_as(weights),
        )
        edited = DENSE["language", method, "image" if scope == "image" else "visible"](given)
        edited = edited / edited.sum(-1, keepdim=True)
        masses = [each[:, looking][..., image].sum(-1) for each in (weights, edited)]
        if heads == "image:2":
            kept = masses[0].sum(-1).topk(2).indices
            masses[1] = masses[0].index_copy(0, kept, masses[1][kept])
        elif heads == "1":
            masses[1] = masses[0].index_copy(0, torch.tensor([1]), masses[1][1:2])
        sums = [total + float(each.sum()) for total, each in zip(sums, masses, strict=True)]
        number += masses[0].numel()
    found = probe.read(session, config)
    assert found.image_mass == pytest.approx([sums[0] / number], rel=1e-4)
    assert found.branch_image_mass == pytest.approx([sums[1] / number], rel=1e-4, abs=1e-6)
    if scope == "image" and method != "reverse":
        same = method != "blind"
        assert (found.branch_image_mass == pytest.approx(found.image_mass)) == same


# -- what is read, and numbers


def test_an_answer_ends_with_its_end_and_before_a_picture(asked, monkeypatch):
    session, paths = asked
    processor = session.processor
    picture = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    [(_, answer)] = singles(session, paths[:1])
    ids = answer[0].tolist()
    generate = session.model.generate

    def replies(*given, **settings):
        output = generate(*given, **settings)
        output[:, -ANSWER_TOKENS + 2] = picture
        return output

    monkeypatch.setattr(session.model, "generate", replies)
    [readings] = FluencyProbe.of(session, paths[:1], [], 1).answers
    assert readings.inputs["input_ids"][0, -2:].tolist() == ids[:2]
    assert readings.counted.tolist() == [[True, True]]
    monkeypatch.undo()
    # Where the answer's third token ends it.
    first = ids.index(ids[2])
    monkeypatch.setattr(session.model.generation_config, "eos_token_id", ids[2])
    [readings] = FluencyProbe.of(session, paths[:1], [], 1).answers
    assert readings.counted.sum() == first + 1
    assert readings.inputs["input_ids"][0, -1] == ids[2]


def test_a_picture_that_cannot_be_opened_is_left_out(asked):
    session, paths = asked
    probe = FluencyProbe.of(session, ["none.png", paths[0]], [], 2)
    assert [len(each.counted) for each in probe.answers] == [1]
    assert FluencyProbe.of(session, ["none.png"], [], 2).answers == []
    found = FluencyProbe([], []).read(session, None)
    assert math.isnan(found.numbers()["perplexity"])


@pytest.mark.parametrize(
    ("number", "expected"), [(0, ""), (1, "a"), (2, "ac"), (3, "abd"), (4, "abcd"), (9, "abcde")]
)
def test_values_from_everywhere_in_their_order(number, expected):
    assert "".join(spread("aabcabde", number)) == expected


def test_numbers_of_the_report():
    found = Fluency(
        answer_nats=math.log(8) * 3,
        answer_tokens=3,
        text_nats=1e9,
        text_tokens=2,
        image_mass=(0.2, 0.4),
        branch_image_mass=(0.0, 0.1),
    )
    assert Fluency.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    numbers = found.numbers()
    assert numbers.pop("text perplexity") > 1e300
    expected = {"perplexity": 8, "plain image mass": 30, "image mass": 5}
    assert numbers == {name: pytest.approx(value) for name, value in expected.items()}
