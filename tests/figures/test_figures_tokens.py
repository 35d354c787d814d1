"""What the figure of tokens shows: the probabilities of every branch, and what changed."""

import base64
import io
import math
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from dense_branches import Falsified, attach, branch_logits
from family_rows import FAMILIES
from PIL import Image
from tiny_models import model_pair, sample
from tiny_words import VOCAB

from causalmm import CausalMMConfig
from causalmm.decoding.trace import StepLogits
from causalmm.figures import tokens
from causalmm.figures.page import page

LENGTH = 8


class Words:
    """A tokenizer of the tiny models' ids."""

    def decode(self, ids):
        return f" <w{ids[0]}>"

    def convert_ids_to_tokens(self, token):
        raise AssertionError(token)


def answered(model, inputs, config, **changes):
    settings = {
        "count": 3,
        "max_new_tokens": LENGTH,
        "sampling": {"do_sample": False},
        "seed": 0,
    }
    return tokens.answer_steps(model, Words(), inputs, config, **(settings | changes))


# -- probabilities -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["vision", "language", "multimodal", "joint"])
def test_probabilities_are_those_of_separate_runs(family, mode):
    ours, upstream = model_pair(family)
    host = attach(upstream, family)
    inputs = sample(family, 2)
    config = CausalMMConfig(
        mode=mode,
        vision_method="uniform",
        vision_layers="all",
        language_method="reverse_and_normalize",
        language_layers="2:",
        gamma=1.5,
        epsilon=0.2,
    )
    steps = answered(ours, inputs, config)
    assert len(steps) == LENGTH
    answer = torch.tensor([step.chosen.id for step in steps])

    # One upstream model run for each branch, dense maps; the layers of these models.
    vision = {"vision": "uniform", "vision_layers": (0, 1, 2)}
    language = {"language": "reverse_and_normalize", "language_layers": (2, 3)}
    falsified = {
        "vision": {"vision": Falsified(**vision)},
        "language": {"language": Falsified(**language)},
        "joint": {"joint": Falsified(**vision, **language)},
    }
    falsified["multimodal"] = falsified["vision"] | falsified["language"]
    factual = branch_logits(upstream, host, inputs, answer, None)
    branches = {
        name: branch_logits(upstream, host, inputs, answer, each)
        for name, each in falsified[mode].items()
    }
    adjusted = factual + sum(config.gamma * (factual - each) for each in branches.values())
    implausible = factual < factual.amax(-1, keepdim=True) + math.log(config.epsilon)
    adjusted = adjusted.masked_fill(implausible, -torch.inf)

    for number, step in enumerate(steps):
        for candidate in step.candidates:
            assert candidate.label == f"<w{candidate.id}>"
            place = number, candidate.id
            assert candidate.factual == pytest.approx(factual.softmax(-1)[place].item(), abs=1e-4)
            assert candidate.adjusted == pytest.approx(adjusted.softmax(-1)[place].item(), abs=1e-4)
            assert candidate.branches == {
                name: pytest.approx(each.softmax(-1)[place].item(), abs=1e-4)
                for name, each in branches.items()
            }
            assert candidate.dropped == implausible[place]
        best = factual[number].argmax().item(), adjusted[number].argmax().item()
        assert (step.factual_best.id, step.adjusted_best.id) == best
        assert step.chosen.id == best[1]
        assert step.changed == (best[0] != best[1])
        assert step.replaced == (step.factual_best if step.changed else None)
    assert 0 < sum(step.changed for step in steps) < LENGTH


def test_without_strength_there_is_no_branch_and_no_change():
    model, _ = model_pair("llava")
    steps = answered(model, sample("llava", 2), CausalMMConfig(gamma=0, epsilon=0))
    for step in steps:
        assert not step.changed
        for candidate in step.candidates:
            assert candidate.branches == {}
            assert candidate.factual == candidate.adjusted
            assert not candidate.dropped


def test_a_seed_repeats_a_sampled_answer():
    model, _ = model_pair("llava")
    sampling = {"do_sample": True, "temperature": 3.0, "top_k": 0}

    def ids(seed):
        steps = answered(model, sample("llava", 2), CausalMMConfig(), sampling=sampling, seed=seed)
        for step in steps:
            assert step.chosen in step.candidates
        return [step.chosen.id for step in steps]

    assert ids(1) == ids(1) != ids(2)


# -- candidates --------------------------------------------------------------------------------


def logits(*probabilities):
    return torch.tensor([probabilities]).log()


FACTUAL = logits(0.5, 0.3, 0.1, 0.096, 0.004)
ADJUSTED = logits(0.2, 0.4, 0.3, 0.0, 0.1)
VISION = logits(0.001, 0.001, 0.001, 0.001, 0.996)


def ids_of(count, chosen=1, vision=None):
    given = StepLogits(FACTUAL, ADJUSTED, vision)
    return [each.id for each in tokens.step(given, chosen, count, Words()).candidates]


def test_candidates_are_the_likeliest_of_any_pass_in_factual_order():
    assert ids_of(2) == [0, 1]
    assert ids_of(3) == [0, 1, 2]
    assert ids_of(3, vision=VISION) == [0, 1, 4]
    assert ids_of(4, vision=VISION) == [0, 1, 2, 4]


def test_first_places_and_the_chosen_token_are_always_among_them():
    assert ids_of(1) == [0, 1]
    assert ids_of(1, chosen=3) == [0, 1, 3]
    step = tokens.step(StepLogits(FACTUAL, ADJUSTED), 3, 1, Words())
    assert (step.factual_best.id, step.adjusted_best.id, step.chosen.id) == (0, 1, 3)
    assert step.changed
    # The adjustment changed the first place, but chance chose.
    assert step.replaced is None
    assert step.chosen.dropped
    assert step.chosen.adjusted == 0


def test_what_no_pass_finds_likely_is_left_out():
    sure = logits(0.998, 0.001, 0.001)
    step = tokens.step(StepLogits(sure, sure), 0, 3, Words())
    assert [each.id for each in step.candidates] == [0]


def test_more_candidates_than_there_are_tokens():
    model, _ = model_pair("llava")
    steps = answered(model, sample("llava", 2), CausalMMConfig(), count=1000, max_new_tokens=1)
    assert len(steps[0].candidates) <= VOCAB


# -- the page ----------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Notes tags, links and text, and that every element is closed where it should be."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.links, self.marked = [], [], []
        self.texts = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs[name] for name in ("src", "href") if name in attrs]
        if attrs.get("class") == "changed":
            self.marked.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data))


def candidate(token, label, factual, adjusted, dropped=False):
    return tokens.TokenCandidate(token, label, factual, {"vision": 0.25}, adjusted, dropped)


RED = candidate(1, '<b>red & "r"</b>', 0.6, 0.0, dropped=True)
BLUE = candidate(2, "<script>alert(1)</script>", 0.4, 1.0)
STEPS = [
    tokens.Step([RED, BLUE], BLUE, RED, BLUE),
    tokens.Step([BLUE], BLUE, BLUE, BLUE),
]


@pytest.fixture(scope="module")
def html():
    return page(
        STEPS,
        prompt="Is 1 < 2 & 3 > 2?",
        pictures=[np.full((4, 6, 3), 7, np.uint8)],
        model="a<b",
        settings={"gamma": 1.0, "vision_layers": [1, 2]},
    )


@pytest.fixture(scope="module")
def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def test_every_token_is_in_the_page_as_text(html, read):
    texts = [text for _, text in read.texts]
    for each in (RED, BLUE):
        assert each.label in texts
        assert each.label not in html
    assert "Is 1 < 2 & 3 > 2?" in texts
    assert ("td", "[1, 2]") in read.texts
    assert not [tag for tag, _ in read.texts if tag in ("b", "script")]


def test_the_page_says_what_was_changed(read):
    # Once in the answer and once in the list.
    assert read.marked == ["a", "li"]
    assert [text for tag, text in read.texts if tag == "del"] == [RED.label] * 2
    assert [text for tag, text in read.texts if tag == "ins"] == [BLUE.label] * 2
    texts = " ".join(text for _, text in read.texts)
    assert "changed 1 of 2 tokens" in texts


def test_the_page_holds_the_probabilities(read):
    cells = [text for tag, text in read.texts if tag == "td"][2:]  # after the settings
    assert cells == ["60.0%", "25.0%", "dropped", "40.0%", "25.0%", "100.0%"] + [
        "40.0%",
        "25.0%",
        "100.0%",
    ]


def test_the_page_needs_nothing_beside_it(html, read):
    picture, *links = read.links
    assert links == ["#token1", "#token2"]
    assert 'id="token1"' in html
    assert 'id="token2"' in html
    kind, data = picture.split("base64,")
    assert kind == "data:image/png;"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert np.array_equal(np.asarray(image), np.full((4, 6, 3), 7))
    assert "@import" not in html
    assert "url(" not in html
    assert "http" not in html
