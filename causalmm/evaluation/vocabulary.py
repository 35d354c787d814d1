"""Which objects a caption names: synonyms mapped to one object, long names first, plurals read too.

A vocabulary is a JSON file {object: [synonyms]}, or a text file with an object and its synonyms on
each line, commas between them. Held by tests/test_chair.py.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from causalmm.errors import RequestError
from causalmm.evaluation.question_files import read_json, read_lines

_IRREGULAR = {
    "person": "people",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "mouse": "mice",
    "ox": "oxen",
}
# A vocabulary's name that ends in s may be a plural, but these are none and less an s would be
# another word.
_NO_PLURALS = {"news", "glass", "grass", "dress", "canvas", "bass", "bus", "gas", "lens"}


class Vocabulary:
    """Names of objects, by what a caption may call them."""

    def __init__(self, synonyms: Mapping[str, Sequence[str]]) -> None:
        """Takes the synonyms of every object; the object's own name is one of them.

        Raises RequestError for a name without letters, or of two objects.
        """
        self.objects = tuple(synonyms)
        self._objects: dict[tuple[str, ...], str] = {}
        for thing, names in synonyms.items():
            for name in (thing, *names):
                words = tuple(_words(name))
                if not words:
                    raise RequestError(f"the vocabulary names {thing!r} {name!r}: expected a word")
                if (other := self._objects.setdefault(words, thing)) != thing:
                    raise RequestError(f"the vocabulary has {name!r} for {other!r} and {thing!r}")
        # After all given names, since a name that is given counts before one that is derived.
        for words, thing in list(self._objects.items()):
            for last in _other_number(words[-1]):
                self._objects.setdefault((*words[:-1], last), thing)
        self._longest = max(map(len, self._objects), default=0)

    def object(self, name: str) -> str | None:
        """The object that a name stands for."""
        return self._objects.get(tuple(_words(name)))

    def mentioned(self, text: str) -> set[str]:
        """The objects that a text names; "hot dog" names no dog."""
        words, found, at = _words(text), set(), 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                if thing := self._objects.get(tuple(words[at : at + length])):
                    found.add(thing)
                    at += length
                    break
            else:
                at += 1
        return found


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in a JSON or text file.

    Raises RequestError where it cannot be read or names nothing.
    """
    if path.suffix == ".json":
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
    return Vocabulary(given)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _other_number(word: str) -> Iterator[str]:
    """The plurals that a word may have, and the singulars that it may be a plural of."""
    yield from _plurals(word)
    yield from (single for single, plural in _IRREGULAR.items() if word == plural)
    if word.endswith("men"):
        yield word.removesuffix("men") + "man"
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
    irregular = [_IRREGULAR[word]] if word in _IRREGULAR else []
    if word.endswith("man"):
        irregular.append(word.removesuffix("man") + "men")
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
