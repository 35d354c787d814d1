"""Yes-or-no answers: reading them by each benchmark's own rule, and counting a set of them.

A rule takes the answer and the right one and returns what was answered, true and false among it, or
None where the answer cannot be read. Only `released` looks at the right one, as the released
scripts did. Tests: tests/evaluation/test_yesno.py, tests/evaluation/test_pope.py.
"""

import re
from collections.abc import Callable, Sequence

from causalmm.evaluation.statistics import ImageCounts, Metric, Table, ratio
from causalmm.evaluation.tally import Reading, Tally, outcome

CHOICES = ("yes", "no")
METRICS: dict[str, Metric] = {
    "accuracy": ratio("right", "questions"),
    "precision": ratio("tp", "said positive"),
    "recall": ratio("tp", "positives"),
    "F1": ratio("2 tp", "said positive + positives"),
    "yes ratio": ratio("said yes", "said"),
}
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


def yes_no_tally(
    name: str,
    rule: str,
    read: Sequence[Reading],
    headline: bool = True,
    *,
    positive: str = "yes",
) -> Tally:
    """The answers to one set of questions, as a rule read them.

    tp, fp, tn and fn count answers that were read, with `positive` as the positive class. One that
    was not read is wrong all the same: it lowers accuracy and, where the positive answer was right,
    recall; the yes ratio is of what was read.
    """
    rows = []
    for each in read:
        is_positive, said_positive = each.question.label == positive, each.said == positive
        said_negative = each.said is not None and not said_positive
        counts = {
            "tp": said_positive and is_positive,
            "fp": said_positive and not is_positive,
            "tn": said_negative and not is_positive,
            "fn": said_negative and is_positive,
            "unreadable": each.unreadable,
            "failed": each.failed,
            "questions": 1,
            "right": each.right,
            "positives": is_positive,
            "said": each.said is not None,
            "said yes": each.said == "yes",
            "said positive": said_positive,
            "2 tp": 2 * (said_positive and is_positive),
            "said positive + positives": said_positive + is_positive,
        }
        rows.append(ImageCounts(each.question.image, counts))
    return Tally(
        name=name,
        rule=rule,
        table=Table.of(rows),
        metrics=METRICS,
        counted=("tp", "fp", "tn", "fn", "unreadable", "failed"),
        **outcome(read),
        headline=headline,
    )
