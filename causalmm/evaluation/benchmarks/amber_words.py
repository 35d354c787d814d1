"""AMBER's generative measures: which objects a caption names, and which of them are there.

The rule is that of inference.py in junyangwang0410/AMBER, as far as its own files go. relation.json
names objects and, for each, words that stand for it: together the words that count. An image has
objects that are there (`truth`) and likely objects that are not (`hallu`).

What differs: there, a word counts where NLTK tags it a noun, in the form that WordNet's lemmatizer
gives it, capitals as they are. Here a word counts whatever its part of speech, in singular and
plural, in capitals or not, except NOT_NOUNS. And there, a word that none of an image's lists has
still stands for an object where spaCy's word vectors (en_core_web_lg) find it more than 0.8 similar
to a word of the lists; here it stands for none. So of the same mentions CHAIR and Hal are here as
high or higher, and Cover and Cog as low or lower: for numbers to be set beside published ones,
export the answers and run inference.py.
Tests: tests/evaluation/test_amber.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.vocabulary import Vocabulary
from causalmm.evaluation.statistics import Metric, ratio
from causalmm.inputs.json_lines import read_json, read_lines

METRICS: dict[str, Metric] = {
    "CHAIR": ratio("invented", "mentions"),
    "Cover": ratio("covered", "there"),
    "Hal": ratio("inventing captions", "captions"),
    "Cog": ratio("likely invented", "likely"),
    # A caption that says less invents less.
    "words": ratio("words", "captions", scale=1),
}
NOT_NOUNS = ("can", "hot", "leave")
"""Words of relation.json that captions nearly always use as other parts of speech; "leaves", for
which "leave" stands there, is no form of it to WordNet's lemmatizer either."""


@dataclass(frozen=True, eq=False)
class WordLists:
    """The words that count."""

    stands_for: Mapping[str, tuple[str, ...]]
    """By object: the words that stand for it besides its name."""
    safe: frozenset[str]
    """Words that count as mentions and are never taken for invented."""
    vocabulary: Vocabulary

    def mentions(self, caption: str) -> list[str]:
        """Every word of the lists in a caption, as the lists have it, in the caption's order."""
        return self.vocabulary.mentions(caption)

    def counts(self, caption: str, truth: Sequence[str], likely: Sequence[str]) -> dict[str, float]:
        """What one caption adds. A word covers one object at most, see `_object_of`; an object that
        an image has twice counts twice in Cover, which then never reaches 100."""
        mentions = self.mentions(caption)
        covered, likely_invented, invented = set(), set(), 0
        for word in mentions:
            if word in self.safe:
                continue
            if (there := self._object_of(word, truth)) is not None:
                covered.add(there)
                continue
            invented += 1
            if (guessed := self._object_of(word, likely)) is not None:
                likely_invented.add(guessed)
        return {
            "captions": 1,
            "mentions": len(mentions),
            "invented": invented,
            "inventing captions": invented > 0,
            "covered": len(covered),
            "there": len(truth),
            "likely invented": len(likely_invented),
            "likely": len(likely),
            "words": len(caption.split()),
        }

    def _object_of(self, word: str, objects: Sequence[str]) -> int | None:
        """The place of the object that a word stands for: the first for which it stands besides the
        name, and only then one of this name."""
        for place, each in enumerate(objects):
            if word in self.stands_for[each]:
                return place
        return objects.index(word) if word in objects else None


def read_word_lists(relation: Path, safe_words: Path) -> WordLists:
    """The lists in relation.json, {object: [words]}, and safe_words.txt, a word a line.

    Raises RequestError where they cannot be read or are of another form.
    """
    given = read_json(relation)
    if not isinstance(given, dict) or not all(map(_is_words, given.values())):
        raise RequestError(f"{relation} is not a JSON object of lists of words by object")
    words = dict.fromkeys([*given, *(word for each in given.values() for word in each)])
    return WordLists(
        stands_for={name: tuple(each) for name, each in given.items()},
        safe=frozenset(line.strip() for _, line in read_lines(safe_words)),
        vocabulary=Vocabulary({word: [] for word in words if word not in NOT_NOUNS}),
    )


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)
