"""What is said of P(yes) equals slow computations; the bias control finds a lean, nothing else."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from answered import answered, failed
from hypothesis import given, settings
from hypothesis import strategies as st

from causalmm.evaluation.records import Question
from causalmm.evaluation.statistics import Estimate
from causalmm.evaluation.tally import join
from causalmm.evaluation.two_way import (
    Signal,
    auc_difference,
    best_bias,
    bias_control,
    two_way,
)


def ask(labels, images=None):
    return [
        Question(
            id=str(at),
            image=f"image {at if images is None else images[at]}",
            path="",
            prompt="Is it?",
            choices=("yes", "no"),
            label=label,
        )
        for at, label in enumerate(labels)
    ]


def pairs(labels, chances, view="factual", images=None):
    """Questions with P(yes) as given and P(no) what is left."""
    questions = ask(labels, images)
    scores = {str(at): {view: (chance, 1 - chance)} for at, chance in enumerate(chances)}
    return join(questions, answered(questions, lambda each: "yes", scores))


def leaning(lean: float, questions: int = 600, seed: int = 0):
    """Log-odds that know something, with a constant added."""
    rng = random.Random(seed)
    labels = [rng.choice(("yes", "no")) for _ in range(questions)]
    odds = [(2 if label == "yes" else -2) + rng.gauss(0, 1.5) + lean for label in labels]
    images = [at // 3 for at in range(questions)]
    return pairs(labels, [1 / (1 + math.exp(-value)) for value in odds], images=images)


def metrics(rows):
    return {name: each.value for name, each in rows[0].metrics.items()}


def test_by_hand():
    rows = two_way("set", pairs(["yes", "yes", "no", "no"], [0.9, 0.3, 0.6, 0.2]))
    assert [(row.name, row.view, row.questions) for row in rows] == [("set", "factual", 4)]
    found = metrics(rows)
    # 0.9 above 0.6 and 0.2, 0.3 above 0.2: 3 of 4 pairs.
    assert (found["accuracy"], found["yes ratio"], found["AUC"]) == pytest.approx((50, 50, 75))


def test_every_view_has_a_row_and_what_failed_has_none():
    questions = ask(["yes", "no", "no"])
    scores = {str(at): {"factual": (0.4, 0.3), "vision": (0.1, 0.2)} for at in range(3)}
    answers = failed(answered(questions, lambda each: "yes", scores), "2")
    rows = two_way("set", join(questions, answers))
    assert [(row.view, row.questions) for row in rows] == [("factual", 2), ("vision", 2)]
    assert [row.metrics["yes ratio"].value for row in rows] == [100, 0]


def test_answers_without_probabilities_have_no_rows():
    questions = ask(["yes"])
    assert two_way("set", join(questions, answered(questions, ["yes"]))) == []


def test_a_masked_choice_is_certain_and_two_masked_ones_say_nothing():
    questions = ask(["yes", "no", "yes"])
    scores = {"0": (0.5, 0.0), "1": (0.0, 0.5), "2": (0.0, 0.0)}
    scores = {id: {"adjusted": pair} for id, pair in scores.items()}
    rows = two_way("set", join(questions, answered(questions, lambda each: "yes", scores)))
    assert rows[0].questions == 2
    found = metrics(rows)
    assert (found["accuracy"], found["AUC"], found["bias gain"]) == (100, 100, 0)


def masked(labels, chances, epsilon=0.1):
    """A run at gamma 0: "adjusted" is "factual" without the choices that the mask drops."""
    questions = ask(labels, [at // 3 for at in range(len(labels))])
    scores = {}
    for at, chance in enumerate(chances):
        pair = (chance, 1 - chance)
        kept = [value if value >= epsilon * max(pair) else 0.0 for value in pair]
        adjusted = tuple(value / sum(kept) for value in kept)
        scores[str(at)] = {"factual": pair, "adjusted": adjusted}
    return join(questions, answered(questions, lambda each: "yes", scores))


def test_the_mask_alone_changes_no_auc_and_no_bias_reaches_what_it_settles():
    rng = random.Random(0)
    labels = [rng.choice(("yes", "no")) for _ in range(300)]
    # Mostly sure, at times wrongly, and leaning toward no.
    odds = [(3 if label == "yes" else -3) + rng.gauss(0, 3) - 1 for label in labels]
    pairs = masked(labels, [1 / (1 + math.exp(-value)) for value in odds])
    factual, adjusted = two_way("set", pairs)
    assert sum(0 in pair.answer.scores["adjusted"] for pair in pairs) > 150
    for name in ("accuracy", "yes ratio", "AUC"):
        assert adjusted.metrics[name] == factual.metrics[name]
    assert all(abs(bias) < math.log(10) + 1 for bias in adjusted.biases)
    signal = Signal.of(pairs, "adjusted")
    settled = np.abs(signal.log_odds) > 500
    for bias in adjusted.biases:
        assert np.array_equal((signal.log_odds + bias > 0)[settled], (signal.log_odds > 0)[settled])


def test_a_lean_is_the_mean_shift_of_what_stays_open():
    questions = ask(["yes", "no", "yes", "no"], images=[0, 0, 1, 1])
    scores = {
        "0": {"factual": (0.5, 0.5), "adjusted": (0.8, 0.2), "vision": (0.2, 0.8)},
        "1": {"factual": (0.2, 0.8), "adjusted": (0.5, 0.5)},
        "2": {"factual": (0.5, 0.5), "adjusted": (0.5, 0.5)},
        "3": {"factual": (0.9, 0.1), "adjusted": (1.0, 0.0)},  # settled by the mask
    }
    rows = two_way("set", join(questions, answered(questions, lambda each: "yes", scores)))
    factual, adjusted, vision = rows
    shifts = [math.log(4), math.log(4), 0.0]
    assert adjusted.shift.value == pytest.approx(2 / 3 * math.log(4))
    assert adjusted.shift.low <= adjusted.shift.value <= adjusted.shift.high
    assert adjusted.spread == pytest.approx(np.std(shifts))
    assert (vision.shift.value, vision.spread) == pytest.approx((-math.log(4), 0))
    assert math.isnan(factual.shift.value)
    assert math.isnan(factual.spread)


def test_a_lean_is_told_before_the_mask():
    questions = ask(["yes", "no"])
    scores = {"factual": (0.9, 0.1), "adjusted": (1.0, 0.0), "unmasked": (0.6, 0.4)}
    scores = {str(at): scores for at in range(2)}
    rows = two_way("set", join(questions, answered(questions, lambda each: "yes", scores)))
    assert [row.view for row in rows] == ["factual", "adjusted"]
    assert rows[1].shift.value == pytest.approx(math.log(1.5) - math.log(9))


def test_an_added_constant_is_a_lean_without_spread():
    lean = 1.25
    pairs = leaning(0.0)
    for place, pair in enumerate(pairs):
        yes, no = pair.answer.scores["factual"]
        moved = yes * math.exp(lean)
        scores = {"factual": (yes, no), "adjusted": (moved / (moved + no), no / (moved + no))}
        pairs[place] = pair._replace(answer=replace(pair.answer, scores=scores))
    _, adjusted = two_way("set", pairs)
    assert adjusted.shift.to_dict() == {
        "value": pytest.approx(lean),
        "interval": [pytest.approx(lean), pytest.approx(lean)],
    }
    assert adjusted.spread == pytest.approx(0, abs=1e-9)


def test_auc_of_one_label_is_unknown():
    rows = two_way("set", pairs(["yes", "yes"], [0.1, 0.9]))
    assert rows[0].metrics["AUC"].to_dict() == {"value": None, "interval": None}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=12))
def test_the_best_bias_is_the_best_of_all(rows):
    odds = np.array([value / 2 for value, _ in rows])
    positive = np.array([label for _, label in rows])

    def right(bias):
        return int(((odds + bias > 0) == positive).sum())

    found = best_bias(odds, positive)
    tried = [step / 8 for step in range(-40, 41)]
    assert right(found) == max(map(right, tried))
    # No bias is given up only for a better one.
    assert found == 0 or right(found) > right(0)


def test_neighbouring_floats_are_told_apart():
    low = 1.0
    high = math.nextafter(low, 2)
    bias = best_bias(np.array([low, high]), np.array([False, True]))
    assert (low + bias > 0, high + bias > 0) == (False, True)
    assert best_bias(np.array([]), np.array([], bool)) == 0


def test_the_control_finds_a_lean():
    straight, leaned = (two_way("set", leaning(lean)) for lean in (0.0, 2.0))
    assert abs(straight[0].metrics["bias gain"].value) < 2
    gain = leaned[0].metrics["bias gain"]
    assert gain.low > 5
    assert gain.value == pytest.approx(
        metrics(straight)["accuracy"] - metrics(leaned)["accuracy"], abs=3
    )
    assert leaned[0].biases == pytest.approx((-2, -2), abs=0.7)
    # A lean is no knowledge.
    assert metrics(leaned)["AUC"] == pytest.approx(metrics(straight)["AUC"], abs=1e-9)


def test_the_control_fits_on_the_other_half_only():
    signal = Signal.of(leaning(1.0, 60, seed=1), "factual")
    found, biases = bias_control(signal, seed=4)
    halves = np.random.default_rng(4).permutation(20) % 2
    gains = []
    for half in (0, 1):
        inside = [halves[image] == half for image in signal.image]
        fitted = best_bias(
            signal.log_odds[np.logical_not(inside)], signal.positive[np.logical_not(inside)]
        )
        assert fitted == biases[1 - half]
        scored = list(zip(signal.log_odds[inside], signal.positive[inside], strict=True))
        before = sum((value > 0) == label for value, label in scored)
        after = sum((value + fitted > 0) == label for value, label in scored)
        gains.append(100 * (after - before) / len(scored))
    assert found.value == pytest.approx(sum(gains) / 2)
    assert found.low <= found.value <= found.high


def test_one_image_leaves_nothing_to_fit_on():
    rows = two_way("set", pairs(["no", "no"], [0.9, 0.8], images=[0, 0]))
    assert rows[0].metrics["bias gain"] == Estimate(0, 0, 0)


def test_auc_differences_use_the_questions_that_both_runs_have():
    labels, images = ["yes", "no"] * 20, [at // 4 for at in range(40)]
    rng = random.Random(0)
    base = pairs(labels, [rng.random() for _ in labels], images=images)
    same = auc_difference(base, base)
    assert same == Estimate(0, 0, 0)
    # The other run decides by its adjusted probabilities, and knows all but the last question.
    known = [0.9 if label == "yes" else 0.1 for label in labels]
    better = pairs(labels, known, view="adjusted", images=images)
    better[-1] = better[-1]._replace(answer=failed({"39": better[-1].answer}, "39")["39"])
    gain = auc_difference(better, base)
    alone = two_way("set", base[:-1])[0].metrics["AUC"].value
    assert gain.value == pytest.approx(100 - alone)
    assert gain.low > 0
    assert auc_difference(base, base[:0]) is None
    assert auc_difference(base, better[-1:]) is None
