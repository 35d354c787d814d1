"""Statistics equal slow, independent computations."""

import math
import random
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalmm.evaluation.statistics import (
    Estimate,
    ImageCounts,
    Metric,
    Table,
    Term,
    around,
    auc,
    estimates,
    holm,
    mcnemar,
    ratio,
    resampling_weights,
)

ROWS = [
    ImageCounts("b", {"right": 1, "questions": 1}),
    ImageCounts("a", {"right": 1, "questions": 1}),
    ImageCounts("b", {"right": 0, "questions": 1}),
    ImageCounts("c", {"right": 3, "questions": 4}),
]
ACCURACY = ratio("right", "questions")


def random_rows(seed: int, images: int = 20) -> list[ImageCounts]:
    rng = random.Random(seed)
    return [
        ImageCounts(f"image {rng.randrange(images)}", {"right": rng.random() < 0.6, "questions": 1})
        for _ in range(4 * images)
    ] + [ImageCounts(f"image {image}", {"questions": 1}) for image in range(images)]


def accuracy(rows: list[ImageCounts], resamples: int, seed: int = 0) -> Estimate:
    table = Table.of(rows, ["right", "questions"])
    return estimates(table, {"accuracy": ACCURACY}, resamples, seed)["accuracy"]


def test_a_table_adds_up_by_image_whatever_the_order():
    table = Table.of(ROWS, ["right", "questions"])
    assert table.images == (("", "a"), ("", "b"), ("", "c"))
    assert table.counts.tolist() == [[1, 1], [1, 2], [3, 4]]
    assert table.totals() == {"right": 5, "questions": 7}
    again = Table.of(ROWS[::-1], ["right", "questions"])
    assert np.array_equal(again.counts, table.counts)


def test_a_metric_is_its_ratios_and_nothing_over_nothing_is_0():
    metric = Metric((Term("a", "b"), Term("c", "b", 10)))
    assert metric.of({"a": 1, "b": 4, "c": 2}) == 25 + 5
    assert metric.of({"a": 0, "b": 0, "c": 0}) == 0
    assert not metric.undefined({"a": 0, "b": 4, "c": 0})
    assert metric.undefined({"a": 0, "b": 0, "c": 0})
    many = metric.of({"a": np.array([1, 0]), "b": np.array([4, 0]), "c": np.array([2, 0])})
    assert many.tolist() == [30, 0]


@settings(deadline=None)
@given(st.integers(0, 10), st.integers(1, 6))
def test_weights_draw_as_many_images_as_there_are(seed, size):
    strata = ["x", "y"] * size
    weights = resampling_weights(strata, 7, seed)
    assert weights.shape == (7, 2 * size)
    assert (weights[:, ::2].sum(axis=1) == size).all()
    assert (weights[:, 1::2].sum(axis=1) == size).all()
    assert np.array_equal(weights, resampling_weights(strata, 7, seed))


def test_every_resample_of_three_images_comes_as_often_as_it_should():
    drawn = [tuple(row) for row in resampling_weights([""] * 3, 40_000, 0).astype(int).tolist()]
    every = [
        tuple(picks.count(image) for image in range(3)) for picks in product(range(3), repeat=3)
    ]
    for weights in set(every):
        expected = every.count(weights) / len(every)
        assert drawn.count(weights) / len(drawn) == pytest.approx(expected, abs=0.01)


def test_an_interval_is_that_of_resampling_images_one_by_one():
    rows = random_rows(0)
    names = sorted({row.image for row in rows})
    weights = resampling_weights([""] * len(names), 500, seed=3)
    slow = []
    for drawn in weights:
        right = questions = 0.0
        for name, times in zip(names, drawn, strict=True):
            for row in rows:
                if row.image == name:
                    right += times * row.counts.get("right", 0)
                    questions += times * row.counts["questions"]
        slow.append(100 * right / questions)
    found = accuracy(rows, 500, seed=3)
    right = sum(row.counts.get("right", 0) for row in rows)
    assert found.value == pytest.approx(100 * right / len(rows))
    assert [found.low, found.high] == pytest.approx(np.percentile(slow, [2.5, 97.5]))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        # Questions about one image are right or wrong together: 4 questions are worth one.
        right = rng.random(60) < 0.7
        rows = [
            ImageCounts(str(image), {"right": 4 * yes, "questions": 4})
            for image, yes in enumerate(right)
        ]
        found = accuracy(rows, 300)
        covered += found.low <= 70 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_differences_are_paired():
    base = random_rows(1)
    table = Table.of(base, ["right", "questions"])
    better = Table.of(
        [*base, *(ImageCounts(row.image, {"right": 0.1}) for row in base)], ["right", "questions"]
    )
    found = estimates(better, {"accuracy": ACCURACY}, base=table)["accuracy"]
    # Every question gains the same, so nothing is left to chance.
    assert (found.value, found.low, found.high) == pytest.approx((10, 10, 10))
    with pytest.raises(ValueError, match="same images"):
        estimates(better, {}, base=Table.of(ROWS, ["right", "questions"]))


def test_an_estimate_for_reading_and_for_json():
    assert str(Estimate(12.345, 10.0, -0.01)) == "12.3 [10.0, 0.0]"
    assert Estimate(1.0, -2.0, 3.0).text("+") == "+1.0 [-2.0, +3.0]"
    none = around(math.nan, np.array([math.nan]))
    assert str(none) == "-"
    assert none.to_dict() == {"value": None, "interval": None}


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_binomial_test(first, second):
    changed = first + second
    chances = [Fraction(math.comb(changed, k), 2**changed) for k in range(changed + 1)]
    # Two-sided: every outcome that is no more probable than the one seen.
    expected = sum(chance for chance in chances if chance <= chances[first])
    assert mcnemar(first, second) == pytest.approx(float(expected), rel=1e-12)


def test_mcnemar_of_known_and_of_large_counts():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    # Close to the normal approximation with continuity correction, and to 0 without a failure.
    z = (200 - 1) / math.sqrt(9000)
    assert mcnemar(4400, 4600) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)
    assert mcnemar(0, 5000) == 0


def test_holm_by_hand():
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1; the second and third are both 0.06.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    # A p after a larger product takes that one, and none is more than 1.
    assert holm([0.02, 0.021, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert holm([0.4, 0.5, 0.6]) == pytest.approx([1, 1, 1])
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@settings(deadline=None)
@given(P_VALUES, st.floats(0, 1))
def test_holm_rejects_step_by_step(p_values, level):
    """The procedure as it is described: the smallest p is compared with level / m, the next with
    level / (m - 1), and so on up to the first that is larger."""
    rejected = set()
    ascending = sorted(range(len(p_values)), key=lambda at: p_values[at])
    for rank, at in enumerate(ascending):
        if (len(p_values) - rank) * p_values[at] > level:
            break
        rejected.add(at)
    adjusted = holm(p_values)
    if level < 1:
        assert {at for at, p in enumerate(adjusted) if p <= level} == rejected


@settings(deadline=None)
@given(P_VALUES, st.randoms())
def test_holm_is_between_the_values_themselves_and_bonferroni(p_values, rng):
    adjusted = holm(p_values)
    for p, found in zip(p_values, adjusted, strict=True):
        assert p <= found <= min(1, len(p_values) * p)
    order = list(range(len(p_values)))
    rng.shuffle(order)
    assert holm([p_values[at] for at in order]) == [adjusted[at] for at in order]


def slow_auc(scores, positive, weights):
    won = pairs = 0.0
    for one, up, heavy in zip(scores, positive, weights, strict=True):
        for other, down, light in zip(scores, positive, weights, strict=True):
            if up and not down:
                pairs += heavy * light
                won += heavy * light * (one > other) + heavy * light * (one == other) / 2
    return won / pairs if pairs else math.nan


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf]),
            st.booleans(),
            st.integers(0, 3),
        ),
        max_size=12,
    )
)
def test_auc_counts_pairs(rows):
    scores, positive, weights = ([row[at] for row in rows] for at in range(3))
    plain = slow_auc(scores, positive, [1] * len(rows))
    assert float(auc(scores, positive)) == pytest.approx(plain, nan_ok=True)
    table = np.array([weights, [1] * len(rows)], float).reshape(2, len(rows))
    expected = [slow_auc(scores, positive, weights), plain]
    found = auc(np.array(scores), np.array(positive, bool), table)
    assert found.tolist() == pytest.approx(expected, nan_ok=True)
