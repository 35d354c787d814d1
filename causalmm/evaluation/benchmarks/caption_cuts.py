"""Captions of two runs cut so that they can be compared: a caption that says less invents less.

Each function takes the answers of a run and of a base to the same questions in the same order,
none of them failed, and returns both with captions cut behind a number of words. Words are what
spaces separate; a caption that is no longer stays as it is. A cut may end within a name of several
words. Tests: tests/evaluation/test_caption_cuts.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from causalmm.evaluation.tally import Pair


def equal_length(run: Sequence[Pair], base: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Both captions of a question cut to as many words as the shorter one has."""
    words = [min(map(_words, both)) for both in zip(run, base, strict=True)]
    return tuple(
        [_cut(pair, most) for pair, most in zip(part, words, strict=True)] for part in (run, base)
    )


def equal_recall(
    run: Sequence[Pair], base: Sequence[Pair], *, recall: Callable[[Sequence[Pair]], float]
) -> tuple[list[Pair], list[Pair]]:
    """The captions of the side with more recall cut to one number of words: the largest at which
    it has no more recall than the other, over all questions. With equal recall none is cut."""
    ours, theirs = recall(run), recall(base)
    if ours > theirs:
        return _cut_to_recall(run, theirs, recall), list(base)
    return list(run), list(base) if ours == theirs else _cut_to_recall(base, ours, recall)


def _cut_to_recall(
    pairs: Sequence[Pair], wanted: float, recall: Callable[[Sequence[Pair]], float]
) -> list[Pair]:
    # From the longest on: a cut within a name may find another object, so recall need not fall.
    for most in range(max(map(_words, pairs)) - 1, 0, -1):
        cut = [_cut(pair, most) for pair in pairs]
        if recall(cut) <= wanted:
            return cut
    return [_cut(pair, 0) for pair in pairs]


def _words(pair: Pair) -> int:
    return len(pair.answer.answer.split())


def _cut(pair: Pair, most: int) -> Pair:
    words = pair.answer.answer.split()
    if len(words) <= most:
        return pair
    return pair._replace(answer=replace(pair.answer, answer=" ".join(words[:most])))
