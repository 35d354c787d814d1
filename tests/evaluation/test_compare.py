"""Comparisons are paired, count what changed, and refuse runs over different questions."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from answered import answered, failed

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.compare import compare
from causalmm.evaluation.records import Question
from causalmm.evaluation.report import to_json
from causalmm.evaluation.statistics import holm, resampling_weights

POPE = BENCHMARKS["pope"]


def ask(images: int, name: str = "toy/odd") -> list[Question]:
    """Two questions an image, one of each label."""
    return [
        Question(
            id=f"{name}/{2 * image + at}",
            image=f"{image:03}.jpg",
            path="",
            prompt="Is it?",
            choices=("yes", "no"),
            label=label,
            facts={"set": name},
        )
        for image in range(images)
        for at, label in enumerate(("yes", "no"))
    ]


def compared(questions, runs, benchmark="pope"):
    known = BENCHMARKS[benchmark]
    return compare(benchmark, known.tally, questions, runs, matchings=known.matchings)


def random_run(questions, accuracy: float, seed: int):
    rng = random.Random(seed)
    other = {"yes": "no", "no": "yes"}
    return answered(
        questions, lambda each: each.label if rng.random() < accuracy else other[each.label]
    )


def test_by_hand():
    questions = ask(3)
    base = answered(questions, ["yes", "no", "no", "no", "no", "yes"])  # 3 of 6
    run = answered(questions, ["yes", "yes", "yes", "no", "yes", "no"])  # 5 of 6
    found = compared(questions, {"base": base, "run": run})
    (only,) = found.differences
    assert (only.name, only.run, only.questions) == ("toy/odd", "run", 6)
    assert (only.only_run_right, only.only_base_right) == (3, 1)
    assert only.mcnemar_p == 10 / 16
    values = {name: each.value for name, each in only.metrics.items()}
    # tp 1, fp 1, tn 2, fn 2 against 3, 1, 2, 0
    assert values == pytest.approx(
        {
            "accuracy": 100 * (5 / 6 - 3 / 6),
            "precision": 100 * (3 / 4 - 1 / 2),
            "recall": 100 * (1 - 1 / 3),
            "F1": 100 * (6 / 7 - 2 / 5),
            "yes ratio": 100 * (4 / 6 - 2 / 6),
        }
    )
    levels = {
        name: report.scores[0].metrics["accuracy"].value for name, report in found.reports.items()
    }
    assert levels == pytest.approx({"base": 50, "run": 500 / 6})
    assert {report.scores[0].rule for report in found.reports.values()} == {"strict"}
    assert found.bases == ("base",)


def test_an_interval_is_that_of_resampling_the_images_of_both_together():
    questions = ask(30)
    runs = {"a": random_run(questions, 0.6, 1), "b": random_run(questions, 0.8, 2)}
    (found,) = compared(questions, runs).differences
    right = {
        name: np.array([answers[each.id].answer == each.label for each in questions], float)
        for name, answers in runs.items()
    }
    gain = (right["b"] - right["a"]).reshape(30, 2).sum(axis=1)
    slow = [100 * (drawn * gain).sum() / 60 for drawn in resampling_weights([""] * 30, 1000, 0)]
    metric = found.metrics["accuracy"]
    assert [metric.low, metric.high] == pytest.approx(np.percentile(slow, [2.5, 97.5]))


def test_a_run_against_its_own_answers_differs_by_nothing():
    questions = ask(10)
    run = random_run(questions, 0.7, 0)
    (found,) = compared(questions, {"one": run, "again": dict(run)}).differences
    assert all((each.value, each.low, each.high) == (0, 0, 0) for each in found.metrics.values())
    assert (found.only_run_right, found.only_base_right, found.mcnemar_p) == (0, 0, 1)


def test_several_runs_and_sets_against_the_first():
    questions = ask(4, "toy/odd") + ask(4, "toy/even")
    sets = ("toy/odd", "toy/even", "all")
    runs = {name: random_run(questions, 0.7, seed) for seed, name in enumerate("abc")}
    found = compared(questions, runs)
    assert [(each.name, each.base, each.run) for each in found.differences] == [
        (name, "a", run) for name in sets for run in ("b", "c")
    ]
    title, levels, to_a, differences, note = found.table().split("\n\n")
    assert title.startswith("pope: 16 questions about 4 images, read by the rule: strict;")
    assert to_a == "differences to a (paired):"
    assert first_cells(levels) == [(name, run) for name in sets for run in "abc"]
    assert first_cells(differences) == [(name, run) for name in sets for run in "bc"]
    assert note.startswith("Holm p is McNemar's p corrected for all runs")
    json.dumps(to_json(found), allow_nan=False)


def first_cells(table):
    rows = [line.split("|") for line in table.splitlines()[2:]]
    return [(row[1].strip(), row[2].strip()) for row in rows]


def test_a_family_of_tests_is_the_runs_on_one_set_against_one_base():
    odd, even = ask(20, "toy/odd"), ask(20, "toy/even")
    runs = {"base": random_run(odd + even, 0.5, 0)}
    runs |= {f"run {seed}": random_run(odd + even, 0.9, seed) for seed in range(1, 4)}
    found = compare("pope", POPE.tally, odd + even, runs, bases=["base", "run 1"]).differences
    for base in ("base", "run 1"):
        for name in ("toy/odd", "toy/even", "all"):
            same = [each for each in found if (each.base, each.name) == (base, name)]
            assert len(same) == 3
            assert [each.holm_p for each in same] == holm([each.mcnemar_p for each in same])
    alone = compared(
        odd, {each: {i.id: runs[each][i.id] for i in odd} for each in ("base", "run 1")}
    )
    (only,) = alone.differences
    assert only.holm_p == only.mcnemar_p
    (together,) = (e for e in found if (e.base, e.name, e.run) == ("base", "toy/odd", "run 1"))
    assert together.mcnemar_p == only.mcnemar_p < together.holm_p


def test_several_bases():
    questions = ask(4)
    runs = {name: random_run(questions, 0.7, seed) for seed, name in enumerate("abc")}
    found = compare("pope", POPE.tally, questions, runs, bases=["a", "c", "a"])
    pairs = [(each.base, each.run) for each in found.differences]
    assert pairs == [("a", "b"), ("a", "c"), ("c", "a"), ("c", "b")]
    there, back = found.differences[1:3]
    assert there.metrics["accuracy"].value == -back.metrics["accuracy"].value
    assert (there.only_run_right, there.only_base_right) == (
        back.only_base_right,
        back.only_run_right,
    )
    assert "differences to c (paired):" in found.table()
    with pytest.raises(RequestError, match="base 'd': expected one of the runs a, b, c"):
        compare("pope", POPE.tally, questions, runs, bases=["d"])


def test_a_failed_answer_is_wrong_in_a_comparison_too():
    questions = ask(2)
    base = answered(questions, lambda each: each.label)
    (found,) = compared(questions, {"a": base, "b": failed(base, "toy/odd/1")}).differences
    assert found.metrics["accuracy"].value == -25
    assert (found.only_run_right, found.only_base_right) == (0, 1)


def test_auc_is_compared_where_both_runs_have_probabilities():
    questions = ask(10)

    def with_scores(view, chance):
        scores = {each.id: {view: (chance(each), 1 - chance(each))} for each in questions}
        return answered(questions, lambda each: each.label, scores)

    runs = {
        "worst": with_scores("factual", lambda each: 0.2 if each.label == "yes" else 0.4),
        "best": with_scores("adjusted", lambda each: 0.2 if each.label == "yes" else 0.1),
        "none": answered(questions, lambda each: each.label),
    }
    best, none = compared(questions, runs).differences
    assert (best.metrics["AUC"].value, best.metrics["AUC"].low) == (100, 100)
    assert "AUC" not in none.metrics
    levels = compared(questions, runs).table().split("\n\n")[1].splitlines()
    assert [cell.strip() for cell in levels[0].split("|")[-5:-1]] == [
        *("AUC", "bias gain", "unreadable", "failed")
    ]
    auc = [line.split("|")[-5].strip() for line in levels[2:]]
    assert auc == ["0.0 [0.0, 0.0]", "100.0 [100.0, 100.0]", "-"]


def test_other_questions_are_refused():
    questions = ask(3)
    whole = answered(questions, lambda each: "yes")
    part = answered(questions[:4], lambda each: "yes")
    sentence = r"b lacks 2 of the questions of a \(first: toy/odd/4\)"
    with pytest.raises(RequestError, match=sentence):
        compared(questions, {"a": whole, "b": part})
    with pytest.raises(RequestError, match=sentence):
        compared(questions[:4], {"b": part, "a": whole})
    asked = [replace(each, prompt="Is it not?") for each in questions]
    other = answered(asked, lambda each: "yes")
    with pytest.raises(RequestError, match="is about another prompt"):
        compared(questions, {"a": whole, "b": other})
    lacking = {id: answer for id, answer in whole.items() if id != "toy/odd/3"}
    with pytest.raises(RequestError, match="1 of 6 questions have no answer"):
        compared(questions, {"a": lacking, "b": lacking})
    with pytest.raises(RequestError, match="needs two runs or more"):
        compared(questions, {"a": whole})


def test_mme_is_compared_by_its_sums(tmp_path):
    (tmp_path / "count.txt").write_text("a.jpg\tOne?\tYes\na.jpg\tTwo?\tNo\n", encoding="utf-8")
    (tmp_path / "OCR.txt").write_text("b.jpg\tA?\tYes\nb.jpg\tB?\tNo\n", encoding="utf-8")
    questions = BENCHMARKS["mme"].read(tmp_path)
    scores = {each.id: {"factual": (0.6, 0.3)} for each in questions}
    runs = {
        "a": answered(questions, ["yes", "yes", "yes", "no"], scores),
        "b": answered(questions, ["yes", "no", "yes", "no"], scores),
    }
    comparison = compared(questions, runs, "mme")
    levels = comparison.table().split("\n\n")[1].splitlines()
    assert [cell.strip() for cell in levels[0].split("|")[3:9]] == [
        *("acc", "acc+", "score", "yes ratio", "AUC", "bias gain")
    ]
    assert levels[2].split("|")[6].strip() == "100.0 [100.0, 100.0]"
    found = comparison.differences
    assert [(each.name, each.metrics["score"].value) for each in found] == [
        ("perception", 150),
        ("total", 150),
    ]


def test_captions_are_compared_where_both_runs_have_one(tmp_path):
    annotations, vocabulary = tmp_path / "a.json", tmp_path / "v.json"
    annotations.write_text(json.dumps({"a": ["dog"], "b": ["dog"], "c": []}))
    vocabulary.write_text(json.dumps({"dog": [], "cat": []}))
    questions = BENCHMARKS["chair"].read(annotations, vocabulary=vocabulary)
    base = answered(questions, ["a dog and a cat", "a cat", "a cat"])
    run = failed(answered(questions, ["a dog", "a dog", "a cat"]), "c")
    (found,) = compared(questions, {"base": base, "run": run}, "chair").differences
    # Of a dog and two cats, two were invented; the third cat is in one run only.
    assert found.metrics["CHAIR_i"].value == pytest.approx(-200 / 3)
    assert (found.questions, found.only_run_right, found.mcnemar_p) == (2, 2, 0.5)
    assert found.only_base_right == 0
    for id in ("a", "b"):
        run = failed(run, id)
    (found,) = compared(questions, {"base": base, "run": run}, "chair").differences
    assert (found.questions, found.metrics["CHAIR_i"].value, found.mcnemar_p) == (0, 0, 1)


def test_captions_are_compared_at_equal_length_and_recall(tmp_path):
    annotations, vocabulary = tmp_path / "a.json", tmp_path / "v.json"
    annotations.write_text(json.dumps({"a": ["dog", "cup"], "b": ["dog"], "c": []}))
    vocabulary.write_text(json.dumps({"dog": [], "cat": [], "cup": []}))
    questions = BENCHMARKS["chair"].read(annotations, vocabulary=vocabulary)
    # Recall 1 and 2 of 3; the third caption of the run failed and is left out of both.
    base = answered(questions, ["dog", "a cat", "a cat"])
    run = failed(answered(questions, ["a cat and dog", "dog and cat", "a cat"]), "c")
    comparison = compared(questions, {"base": base, "run": run}, "chair")
    (found,) = comparison.differences
    length, recall = found.matched["equal length"], found.matched["equal recall"]
    # "a" and "dog and" against the base's "dog" and "a cat".
    assert (length.run["CHAIR_i"].value, length.base["CHAIR_i"].value) == (0, 50)
    assert (length.run["words"].value, length.base["words"].value) == (1.5, 1.5)
    assert length.difference["CHAIR_i"].value == -50
    # Behind three words the run finds one object: "a cat and" and "dog and cat".
    assert (recall.run["recall"].value, recall.base["recall"].value) == pytest.approx(
        (100 / 3,) * 2
    )
    assert recall.run["words"].value == 3
    assert recall.difference["CHAIR_i"].value == pytest.approx(200 / 3 - 50)
    # The captions as they are: two cats of four objects, one cat of two.
    assert found.metrics["CHAIR_i"].value == 0
    blocks = comparison.table().split("\n\n")
    for block in (blocks[1], blocks[3]):
        assert "recall" in block.splitlines()[0]
        assert "words" in block.splitlines()[0]
    assert "differences to base at equal recall (paired):" in blocks
    assert "66.7 against 50.0: +16.7 [" in blocks[blocks.index(blocks[-2])]
    json.dumps(to_json(comparison), allow_nan=False)


def test_a_caption_run_against_itself_differs_by_nothing_at_equal_length_and_recall(tmp_path):
    annotations, vocabulary = tmp_path / "a.json", tmp_path / "v.json"
    annotations.write_text(json.dumps({name: ["dog"] for name in "abcd"}))
    vocabulary.write_text(json.dumps({"dog": [], "cat": []}))
    questions = BENCHMARKS["chair"].read(annotations, vocabulary=vocabulary)
    run = answered(questions, ["a dog", "a cat and a dog", "nothing", ""])
    (found,) = compared(questions, {"one": run, "again": dict(run)}, "chair").differences
    plain = found.matched["equal length"].run
    assert set(found.matched) == {"equal length", "equal recall"}
    for each in found.matched.values():
        assert each.run == each.base == plain
        assert {(e.value, e.low, e.high) for e in each.difference.values()} == {(0, 0, 0)}
