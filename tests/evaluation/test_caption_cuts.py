"""Captions are cut as the definitions of equal length and equal recall say."""

import random

import pytest

from causalmm.evaluation.benchmarks.caption_cuts import equal_length, equal_recall
from causalmm.evaluation.records import Question
from causalmm.evaluation.tally import Pair


def pairs(captions):
    questions = [
        Question(id=str(at), image=f"{at}.jpg", path="", prompt="Describe it.")
        for at in range(len(captions))
    ]
    return [Pair(each, each.answered(text)) for each, text in zip(questions, captions, strict=True)]


def texts(part):
    return [pair.answer.answer for pair in part]


def found_letters(part):
    """As recall: of the letters a to e, how many a caption names as words."""
    return sum(len(set("abcde") & set(text.split())) for text in texts(part)) / (5 * len(part))


def test_equal_length_by_hand():
    run, base = equal_length(pairs(["a b c", "a", "", "a  b"]), pairs(["x", "x y z", "x", "x  y"]))
    assert texts(run) == ["a", "a", "", "a  b"]
    assert texts(base) == ["x", "x", "", "x  y"]


def test_equal_recall_by_hand():
    run, base = pairs(["a b x c", "x x d"]), pairs(["a b", "x"])
    cut, kept = equal_recall(run, base, recall=found_letters)
    assert texts(cut) == ["a b", "x x"]
    assert kept == base
    # Whichever is the run, the side that finds more is cut.
    kept, cut_base = equal_recall(base, run, recall=found_letters)
    assert (kept, texts(cut_base)) == (base, texts(cut))
    # Where one word more would find too much, less is found.
    cut, _ = equal_recall(pairs(["a", "b"]), pairs(["a", ""]), recall=found_letters)
    assert texts(cut) == ["", ""]


def test_the_longest_cut_is_taken_where_recall_falls_with_words():
    """A recall that is smaller at 3 words than at 2: "hot dog" names no dog."""
    recall = {1: 0.0, 2: 1.0, 3: 0.0, 4: 2.0}
    cut, _ = equal_recall(
        pairs(["one two three four"]),
        pairs(["one two three"]),
        recall=lambda part: recall[len(texts(part)[0].split())],
    )
    assert texts(cut) == ["one two three"]


@pytest.mark.parametrize("seed", range(5))
def test_what_the_cuts_promise(seed):
    rng = random.Random(seed)

    def captions(words):
        return pairs([" ".join(rng.choices(words, k=rng.randrange(8))) for _ in range(20)])

    run, base = sorted((captions("abcdex"), captions("abxxx")), key=lambda _: rng.random())
    for mine, other, cut, cut_other in zip(run, base, *equal_length(run, base), strict=True):
        shorter = min(len(each.answer.answer.split()) for each in (mine, other))
        for whole, part in ((mine, cut), (other, cut_other)):
            assert part.answer.answer.split() == whole.answer.answer.split()[:shorter]
    sides = [(run, base), equal_recall(run, base, recall=found_letters)]
    if found_letters(run) < found_letters(base):
        sides = [pair[::-1] for pair in sides]
    (more, less), (cut, kept) = sides
    assert kept == less
    assert found_letters(cut) <= found_letters(less) < found_letters(more)
    most = max(len(text.split()) for text in texts(cut))
    assert texts(cut) == [" ".join(text.split()[:most]) for text in texts(more)]
    one_more = pairs([" ".join(text.split()[: most + 1]) for text in texts(more)])
    assert found_letters(one_more) > found_letters(less)


@pytest.mark.parametrize("captions", [["a b", "c"], ["", ""], []])
def test_equal_captions_are_not_cut(captions):
    for matched in (
        equal_length(pairs(captions), pairs(captions)),
        equal_recall(pairs(captions), pairs(captions), recall=lambda part: float(len(part))),
    ):
        assert matched == (pairs(captions), pairs(captions))
