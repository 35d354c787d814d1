"""Yes-or-no questions counted: accuracy, precision, recall, F1 and yes ratio of a set.

Tests: tests/evaluation/test_pope.py.
"""

from collections.abc import Sequence

from causalmm.evaluation.statistics import ImageCounts, Metric, Table, ratio
from causalmm.evaluation.tally import Reading, Tally, outcome

CHOICES = ("yes", "no")
METRICS: dict[str, Metric] = {
    "accuracy": ratio("right", "questions"),
    "precision": ratio("tp", "said yes"),
    "recall": ratio("tp", "positives"),
    "F1": ratio("2 tp", "said yes + positives"),
    "yes ratio": ratio("said yes", "said"),
}


def yes_no_tally(name: str, rule: str, read: Sequence[Reading], headline: bool = True) -> Tally:
    """The answers to one set of questions, as a rule read them.

    tp, fp, tn and fn count answers that were read. One that was not is wrong all the same: it
    lowers accuracy and, where yes was right, recall; the yes ratio is of what was read.
    """
    rows = []
    for each in read:
        positive, yes = each.question.label == "yes", each.said == "yes"
        counts = {
            "tp": yes and positive,
            "fp": yes and not positive,
            "tn": each.said == "no" and not positive,
            "fn": each.said == "no" and positive,
            "unreadable": each.unreadable,
            "failed": each.failed,
            "questions": 1,
            "right": each.right,
            "positives": positive,
            "said": each.said is not None,
            "said yes": yes,
            "2 tp": 2 * (yes and positive),
            "said yes + positives": yes + positive,
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
