"""Which objects a caption names, each time that it names one, as CHAIR's published evaluator reads.

Every word is read in singular and plural, long names come before short ones, and the words of a
name must follow one another with nothing but space between them: "bottle of wine, glasses" names
no wine glass. Compounds with hyphens are words of their own: "hot-dog" is not "hot dog".

A vocabulary is a JSON file {object: [synonyms]}, or a text file with an object and its synonyms on
each line, commas between them, as CHAIR publishes COCO's. Both come with the phrases and exceptions
of that evaluator (utils/chair.py in LisaAnne/Hallucination), which chair_phrases.json holds. A
phrase that is read as what the vocabulary does not name names nothing, and one that the vocabulary
has as a name is that name.

The published code differs only where it misses
what its own list has: "bus", "ties", "thieves", "canoes" and a few more, whose singulars it gets
wrong ("bu", "ty"); "iPhone", since captions are in small letters by then; "motor bike" and
"cheesecake", which its list has after two spaces; "stove top oven", of three words, which it counts
as "stove" and as "oven"; and words that touch signs, as in "**dog**" or "dog/cat".
Tests: tests/evaluation/test_chair.py.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from causalmm.errors import RequestError
from causalmm.inputs.json_lines import read_json, read_lines

# At the end of a word: grandchildren, firemen.
_IRREGULAR = {
    "person": "people",
    "child": "children",
    "man": "men",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "mouse": "mice",
    "ox": "oxen",
}
# A vocabulary's name that ends in s may be a plural, but these are none and less an s would be
# another word.
_NO_PLURALS = {"news", "glass", "grass", "dress", "canvas", "bass", "bus", "gas", "lens"}
# A word, which goes on after hyphens and apostrophes but not into a possessive or a shortened verb;
# or a sign. So "dog's" holds the word "dog", and "o'clock" no clock.
_TOKEN = re.compile(
    r"[^\W_]+(?:(?:[-\u2010\u2011]|['\u2019](?!(?:s|d|m|ll|re|ve)\b))[^\W_]+)*|[^\w\s]|_"
)

Words = tuple[str, ...]


class Phrases(NamedTuple):
    """Words that are not to be taken for what they would name."""

    readings: Mapping[str, str | None]
    """The name that a phrase is read as; None where it names nothing."""
    not_beside: Mapping[str, str]
    """Names nothing in a caption that also says the other."""


class _Name(NamedTuple):
    text: str
    """As the vocabulary has it, whatever the number in which a caption says it."""
    object: str | None
    """What it names, if anything."""


class Vocabulary:
    """Names of objects, by what a caption may call them."""

    def __init__(
        self, synonyms: Mapping[str, Sequence[str]], phrases: Phrases | None = None
    ) -> None:
        """Takes the synonyms of every object; the object's own name is one of them.

        `phrases` hold where no name says otherwise. Raises RequestError for a name without letters
        or of two objects.
        """
        self.objects = tuple(synonyms)
        phrases = phrases or Phrases({}, {})
        self._names: dict[Words, _Name] = {}
        self._learn(_given_names(synonyms))
        self._learn(
            {
                _tokens(phrase): self._name(phrase if name is None else name)
                for phrase, name in phrases.readings.items()
            }
        )
        self._not_beside = {
            self._name(word).text: self._name(other).text
            for word, other in phrases.not_beside.items()
        }
        # Whether or not they name anything, that they are said must be seen.
        for text in (*self._not_beside, *self._not_beside.values()):
            self._learn({_tokens(text): _Name(text, None)})
        self._longest = max(map(len, self._names), default=0)

    def object(self, name: str) -> str | None:
        """The object that a name stands for."""
        return self._name(name).object

    def mentions(self, text: str) -> list[str]:
        """The object of every name in a text, in the text's order; "hot dog" names no dog."""
        said = list(self._said(_tokens(text)))
        texts = {name.text for name in said}
        return [
            name.object
            for name in said
            if name.object is not None and self._not_beside.get(name.text) not in texts
        ]

    def _name(self, text: str) -> _Name:
        return self._names.get(_tokens(text)) or _Name(_text(text), None)

    def _said(self, words: Words) -> Iterator[_Name]:
        at = 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                if name := self._names.get(words[at : at + length]):
                    yield name
                    at += length
                    break
            else:
                at += 1

    def _learn(self, names: Mapping[Words, _Name]) -> None:
        """What is known stays, and a name that is given counts before one that is derived."""
        for words, name in names.items():
            self._names.setdefault(words, name)
        for words, name in names.items():
            for forms in product(*((word, *_other_number(word)) for word in words)):
                self._names.setdefault(forms, name)


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in a JSON or text file, with the phrases of the published evaluator.

    Raises RequestError where it cannot be read or names nothing.
    """
    if path.suffix.lower() == ".json":
        given = read_json(path)
        if not isinstance(given, dict) or not all(map(_is_names, given.values())):
            raise RequestError(f"{path} is not a JSON object of lists of synonyms by object")
    else:
        given = {}
        for number, line in read_lines(path):
            thing, *names = [name.strip() for name in line.split(",") if name.strip()] or [""]
            if not thing or thing in given:
                what = f"names {thing!r} again" if thing else "names nothing"
                raise RequestError(f"{path} line {number} {what}")
            given[thing] = names
    if not given:
        raise RequestError(f"{path} names no objects")
    return Vocabulary(given, published_phrases())


def published_phrases() -> Phrases:
    """Those of CHAIR's evaluator."""
    given = read_json(Path(__file__).with_name("chair_phrases.json"))
    return Phrases(given["phrases"], given["not_beside"])


def _given_names(synonyms: Mapping[str, Sequence[str]]) -> dict[Words, _Name]:
    known: dict[Words, _Name] = {}
    for thing, names in synonyms.items():
        for name in (thing, *names):
            if not _is_name(name):
                raise RequestError(f"the vocabulary names {thing!r} {name!r}: expected a word")
            other = known.setdefault(_tokens(name), _Name(_text(name), thing)).object
            if other != thing:
                raise RequestError(f"the vocabulary has {name!r} for {other!r} and {thing!r}")
    return known


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and any(token[0].isalnum() for token in _tokens(value))


def _tokens(text: str) -> Words:
    return tuple(_TOKEN.findall(text.lower()))


def _text(name: str) -> str:
    return " ".join(_tokens(name))


def _other_number(word: str) -> Iterator[str]:
    """The plurals that a word may have, and the singulars that it may be a plural of."""
    yield from _plurals(word)
    for single, plural in _IRREGULAR.items():
        if word.endswith(plural):
            yield word.removesuffix(plural) + single
    if not word.endswith("s") or word in _NO_PLURALS:
        return
    if len(word) > 2 and word in _plurals(word[:-1]):
        yield word[:-1]
    for stem in (word[:-2], word[:-3] + "y", word[:-3] + "f", word[:-3] + "fe"):
        # Toes are no plural of "to".
        if len(stem) > 2 and word in _plurals(stem):
            yield stem


def _plurals(word: str) -> list[str]:
    """More than one where the spelling does not tell (shelf, roof; potato, photo; fireman, human):
    what is no word harms nobody."""
    irregular = [
        word.removesuffix(single) + plural
        for single, plural in _IRREGULAR.items()
        if word.endswith(single)
    ]
    if re.search(r"[^aeiou]y$", word):
        return [*irregular, word[:-1] + "ies"]
    if re.search(r"(s|x|z|ch|sh)$", word):
        return [*irregular, word + "es"]
    if word.endswith("fe"):
        return [*irregular, word + "s", word[:-2] + "ves"]
    if re.search(r"[^f]f$", word):
        return [*irregular, word + "s", word[:-1] + "ves"]
    if word.endswith("o"):
        return [*irregular, word + "s", word + "es"]
    return [*irregular, word + "s"]
