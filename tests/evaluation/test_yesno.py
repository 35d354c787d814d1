"""Each benchmark's rule reads an answer as the benchmark's own evaluation does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalmm.evaluation.benchmarks import yes_no

# answer: strict, official, released for a yes question, released for a no question
POPE = {
    "yes": ("yes", "yes", "yes", "yes"),
    "Yes.": ("yes", "yes", "yes", "yes"),
    "no": ("no", "no", "no", "no"),
    "No": ("no", "no", "no", "no"),
    # Only "No", "no" and "not" count for the official rule.
    "NO": ("no", "yes", "no", "no"),
    "No.": ("no", "no", "no", "no"),
    "No, there is not.": ("no", "no", "no", "no"),
    "No\nThere is none": ("no", "yes", "no", "no"),
    "There is no snow.": ("no", "no", "no", "no"),
    "snow": (None, "yes", "no", "no"),
    "know": (None, "yes", "no", "no"),
    "not sure": (None, "no", "no", "no"),
    "I do not know, yes?": ("yes", "no", "yes", "no"),
    # The first sentence decides, or the first word, or any part of any word.
    "Yes. There is no cat.": ("yes", "yes", "yes", "no"),
    "It is there. No cat, though.": ("no", "yes", "no", "no"),
    "yes and no": ("yes", "no", "yes", "no"),
    "eyes": (None, "yes", "yes", "yes"),
    "no-one": (None, "yes", "no", "no"),
    "No-one's there, yes": ("yes", "yes", "yes", "no"),
    "yes-": ("yes", "yes", "yes", "yes"),
    "_No_": ("no", "yes", "no", "no"),
    "**Yes**": ("yes", "yes", "yes", "yes"),
    "no1": (None, "yes", "no", "no"),
    "": (None, "yes", "no", "yes"),
    "A dog.": (None, "yes", "no", "yes"),
    "N0": (None, "yes", "no", "yes"),
}


@pytest.mark.parametrize("answer", POPE)
def test_pope_rules(answer):
    read = (
        yes_no.strict(answer, "yes"),
        yes_no.official(answer, "no"),
        yes_no.released(answer, "yes"),
        yes_no.released(answer, "no"),
    )
    assert read == POPE[answer]


@settings(deadline=None)
@given(st.text(alphabet="yesno YESNO.,-\u00e9\n"))
def test_strict_reads_what_a_split_into_words_reads(answer):
    words, word = [], ""
    for index, character in enumerate(answer + " "):
        between = answer[index - 1 : index].isalnum() and answer[index + 1 : index + 2].isalnum()
        if character.isalnum() or (character == "-" and between):
            word += character
        elif word:
            words.append(word.lower())
            word = ""
    expected = next((word for word in words if word in ("yes", "no")), None)
    assert yes_no.strict(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *[("yes", "yes"), ("Yes.", "yes"), (" NO ", "no"), ("y", "yes"), ("N.", "no")],
        *[("Yes, it is", "yes"), ("No, it is not", "no"), ("not", "no"), ("snow", "no")],
        # "yes" comes before "no", and only within four characters.
        *[("noyes", "no"), ("oyes", "yes"), ("anno", "no"), ("There is no", None)],
        *[("the no", None), ("x", None), ("", None), ("A. no", "no"), ("It yes", None)],
    ],
)
def test_mme_rule(answer, expected):
    assert yes_no.mme(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *[("True", "true"), ("False.", "false"), ("The statement is true.", "true")],
        *[("It is, false, not true", "false"), ("Statement\nTrue\nFalse", "true")],
        *[("untrue", None), ("true!", None), ("", None), ("tr.ue", "true"), ("yes", None)],
    ],
)
def test_vlind_rule(answer, expected):
    assert yes_no.vlind(answer) == expected
