"""Reading a yes, no, true or false out of an answer, by each benchmark's own rule.

A rule takes the answer and the right one and returns what was answered, or None where the answer
cannot be read. Only `released` looks at the right one, as the released scripts did.
Tests: tests/evaluation/test_yesno.py.
"""

import re
from collections.abc import Callable, Sequence

Rule = Callable[[str, str], str | None]


def find_word(text: str, words: Sequence[str]) -> re.Match[str] | None:
    """The first of the words that stands by itself, in small letters or capitals.

    Neither letters nor digits touch it, nor does a hyphen or an apostrophe that goes on to one, as
    in "no-one".
    """
    any_word = "|".join(map(re.escape, words))
    before, after = r"(?<![^\W_])(?<![^\W_][-'\u2019])", r"(?![^\W_])(?![-'\u2019][^\W_])"
    return re.search(f"{before}({any_word}){after}", text, re.IGNORECASE)


def strict(answer: str, label: str = "") -> str | None:
    """The first word that is yes or no; None where there is none."""
    found = find_word(answer, ("yes", "no"))
    return found[1].lower() if found else None


def official(answer: str, label: str = "") -> str:
    """POPE's evaluation: "No", "no" or "not" in the first sentence means no, all else yes."""
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def released(answer: str, label: str) -> str:
    """The released CausalMM and VCD scripts: right where the right word is anywhere in the answer.

    So "snow" and "I do not know" are right about what is not there.
    """
    other = {"yes": "no", "no": "yes"}[label]
    return label if label in answer.lower() else other


POPE_RULES: dict[str, Rule] = {"strict": strict, "official": official, "released": released}


def mme(answer: str, label: str = "") -> str | None:
    """MME's evaluation as in lmms-eval: yes or no within the first four characters, or a single y
    or n. MME's own script knows no single letters and leaves spaces and full stops in.
    """
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text)
    return next((word for word in ("yes", "no") if word in text[:4]), None)


def vlind(answer: str, label: str = "") -> str | None:
    """VLind-Bench's evaluation: the first word that is true or false."""
    text = answer.lower().replace("\n", " ").replace(",", "").replace(".", "")
    return next((word for word in text.split(" ") if word in ("true", "false")), None)
