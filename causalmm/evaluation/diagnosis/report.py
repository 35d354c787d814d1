"""From measurements to an answer: which layers to edit, ranked on one half, reported on the other.

Images are split in two. On the development half configurations are ranked by what the adjusted
answer gains over the plain one, the mean over the sets of questions; on the held-out half the same
numbers come with their intervals, and beside them the gain of one constant bias toward the first
choice, fitted on the development half: a contrast that gains less than that has only leaned.
An answer that cannot be read is wrong. Held by tests/evaluation/test_diagnose.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from causalmm.errors import FailureError, RequestError
from causalmm.evaluation.diagnosis.measurement import (
    PLAIN,
    Candidate,
    Configuration,
    Measurement,
    failures,
)
from causalmm.evaluation.diagnosis.view import ViewChoice
from causalmm.evaluation.records import Answer, Question
from causalmm.evaluation.report import text_table
from causalmm.evaluation.statistics import (
    LEVEL,
    RESAMPLES,
    Estimate,
    Metric,
    Row,
    Table,
    Term,
    estimates,
    ratio,
)
from causalmm.evaluation.tally import Pair
from causalmm.evaluation.two_way import auc_difference, best_bias

SETS = ("consistent", "contradicting")
"""Of questions whose right answer the prior gives, and whose right answer contradicts it."""
ALL = "all"
"""The one set where nothing says which is which."""
BIAS = Configuration("bias", "", ())
"""Stands for the plain model with a constant added to the log-odds."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One configuration: what its branch says alone, and what the adjusted model says with it."""

    configuration: Configuration
    kinds: tuple[str, ...]
    """Kinds of windows that it is one of."""
    development: Mapping[str, float]
    held_out: Mapping[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        configuration = self.configuration
        return {
            "tower": configuration.tower,
            "method": configuration.method or None,
            "layers": list(configuration.layers),
            "setting": configuration.spec or None,
            "windows": list(self.kinds),
            "development": {name: _number(value) for name, value in self.development.items()},
            "held_out": {name: each.to_dict() for name, each in self.held_out.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that is found, the best configuration of the development half first."""

    sets: tuple[str, ...]
    questions: Mapping[str, Mapping[str, int]]
    """By half and set."""
    images: Mapping[str, int]
    """By half."""
    plain: Finding
    bias: Finding
    biases: Mapping[str, float]
    """Added to the log-odds of the first choice, by the choices."""
    ranked: tuple[Finding, ...]
    failed: Mapping[str, str]
    """The error by question id."""
    seed: int

    @property
    def best(self) -> Finding | None:
        """The configuration to choose; None where none gains on the development half."""
        first = self.ranked[0]
        return first if first.development["gain"] > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "sets": list(self.sets),
            "questions": {half: dict(each) for half, each in self.questions.items()},
            "images": dict(self.images),
            "plain": self.plain.to_dict(),
            "bias": self.bias.to_dict() | {"biases": dict(self.biases)},
            "ranked": [each.to_dict() for each in self.ranked],
            "failed": dict(self.failed),
            "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": self.seed},
        }

    def table(self, shown: int) -> str:
        """For reading: the plain model, the bias, and the first so many configurations."""
        questions = ", ".join(
            f"{number} {name}".removesuffix(f" {ALL}")
            for name, number in self.questions["held out"].items()
        )
        head = (
            f"ranked by the gain on {self.images['development']} images, shown on "
            f"{self.images['held out']} others with {questions} questions; per cent and points, "
            f"entropy and divergence in nats [{LEVEL} % bootstrap intervals over images]"
        )
        alone = [f"alone{_of(name)}" for name in self.sets]
        adjusted = [f"adjusted{_of(name)}" for name in self.sets]
        plain_columns = [*alone, "unreadable", "entropy", "divergence", *adjusted]
        header = ["", "tower", "method", "layers", *plain_columns, "gain", "AUC gain", "ranked by"]
        rows = [self._row("", each, plain_columns) for each in (self.plain, self.bias)]
        rows += [
            self._row(str(place), each, plain_columns)
            for place, each in enumerate(self.ranked[:shown], 1)
        ]
        blocks = [head, text_table(header, rows, left=4), "\n".join(self._notes(shown))]
        return "\n\n".join(block for block in blocks if block)

    def _row(self, place: str, each: Finding, columns: Sequence[str]) -> list[str]:
        configuration, found = each.configuration, each.held_out
        cells = [
            f"{found[name].value:.{2 if name in ('entropy', 'divergence') else 1}f}"
            if name in found
            else ""
            for name in columns
        ]
        gains = [found[name].text("+") if name in found else "" for name in ("gain", "AUC gain")]
        ranked_by = f"{each.development['gain']:+.1f}" if "gain" in each.development else ""
        edited = [configuration.tower, configuration.method, configuration.spec]
        return [place, *edited, *cells, *gains, ranked_by]

    def _notes(self, shown: int) -> list[str]:
        notes = []
        if len(self.ranked) > shown:
            notes.append(f"{len(self.ranked) - shown} more configurations are in table.json")
        if self.best is None:
            notes.append("no configuration gains over the plain model on the development half")
        elif self.best.held_out["gain"].low <= 0:
            notes.append("the first one's gain on the held-out half may be none: see its interval")
        if self.best and self.bias.held_out["gain"].value >= self.best.held_out["gain"].value:
            notes.append("a constant bias gains as much as the first one or more")
        if self.failed:
            name, error = next(iter(self.failed.items()))
            notes.append(f"{len(self.failed)} questions failed (first: {name}, {error!r})")
        return notes


def diagnose(
    questions: Sequence[Question],
    measured: Mapping[Configuration, Measurement],
    wanted: Sequence[Candidate],
    seed: int = 0,
) -> Diagnosis:
    """Rank and report the wanted configurations.

    `facts["set"]` of a question is its set. Raises FailureError where no question could be asked,
    RequestError where a set has too few images to be split.
    """
    kinds: dict[Configuration, list[str]] = {}
    for each in wanted:
        kinds.setdefault(each.configuration, []).append(each.kind)
    used = [measured[PLAIN], *(measured[configuration] for configuration in kinds)]
    failed = failures(used)
    kept = [place for place, each in enumerate(questions) if each.id not in failed]
    if not kept:
        raise FailureError(f"no question could be asked (first: {next(iter(failed.values()))})")
    asked = [questions[place] for place in kept]
    halves = split(asked, seed)
    plain = [used[0].alone[place] for place in kept]
    given = _Given(
        questions=asked,
        plain=plain,
        halves=halves,
        sets=tuple(name for name in (*SETS, ALL) if any(_set(each) == name for each in asked)),
        seed=seed,
    )
    findings = [
        given.finding(
            each.configuration,
            [each.alone[place] for place in kept],
            [each.adjusted[place] for place in kept],
            kinds[each.configuration],
        )
        for each in used[1:]
    ]
    # Of equally good ones that whose branch can be read, and that edits less.
    findings.sort(
        key=lambda each: (
            -round(each.development["gain"], 9),
            each.development["unreadable"],
            len(each.configuration.layers),
        )
    )
    biases = _biases(asked, plain, halves["development"])
    leaning = [_biased(*each, biases) for each in zip(asked, plain, strict=True)]
    return Diagnosis(
        sets=given.sets,
        questions={half: given.counts(half) for half in halves},
        images={half: len(images) for half, images in halves.items()},
        plain=given.finding(PLAIN, plain, plain, shown=("adjusted", "unreadable", "entropy")),
        bias=given.finding(BIAS, plain, leaning, shown=("adjusted", "gain")),
        biases={"/".join(choices): bias for choices, bias in biases.items()},
        ranked=tuple(findings),
        failed=failed,
        seed=seed,
    )


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What all findings are made of."""

    questions: Sequence[Question]
    plain: Sequence[ViewChoice]
    halves: Mapping[str, frozenset[str]]
    sets: tuple[str, ...]
    seed: int

    def finding(
        self,
        configuration: Configuration,
        alone: Sequence[ViewChoice],
        adjusted: Sequence[ViewChoice],
        kinds: Sequence[str] = (),
        shown: tuple[str, ...] = ("",),
    ) -> Finding:
        """Of one configuration; `shown` are beginnings of the metrics that say something of it."""
        table = {
            half: _table(self.questions, images, self.plain, alone, adjusted, self.sets)
            for half, images in self.halves.items()
        }
        metrics = {
            name: each for name, each in _metrics(self.sets).items() if name.startswith(shown)
        }
        totals = table["development"].totals()
        found = estimates(table["held out"], metrics, RESAMPLES, self.seed)
        if configuration not in (PLAIN, BIAS):
            gain = _auc_gain(
                self.questions, self.halves["held out"], self.plain, adjusted, self.seed
            )
            found |= {} if gain is None else {"AUC gain": gain}
        return Finding(
            configuration=configuration,
            kinds=tuple(dict.fromkeys(kinds)),
            development={name: float(each.of(totals)) for name, each in metrics.items()},
            held_out=found,
        )

    def counts(self, half: str) -> dict[str, int]:
        """Questions of a half by set."""
        images = self.halves[half]
        here = [_set(each) for each in self.questions if each.path in images]
        return {name: here.count(name) for name in self.sets}


def split(questions: Sequence[Question], seed: int = 0) -> dict[str, frozenset[str]]:
    """Paths of the images of either half: of each set, and of what is in both, half of its images.

    Raises RequestError where a set would have no image in a half.
    """
    sets = _sets_by_image(questions)
    strata: dict[tuple[str, ...], list[str]] = {}
    for path in sorted(sets):
        strata.setdefault(sets[path], []).append(path)
    generator = np.random.default_rng(seed)
    order = [
        strata[name][place]
        for name in sorted(strata)
        for place in generator.permutation(len(strata[name]))
    ]
    halves = {
        half: frozenset(order[first::2]) for first, half in enumerate(("development", "held out"))
    }
    for name in dict.fromkeys(map(_set, questions)):
        for images in halves.values():
            if not any(name in sets[path] for path in images):
                which = "" if name == ALL else f"prior-{name} "
                raise RequestError(
                    f"the {which}questions are about too few images to rank on one half of them "
                    "and report on the other: expected at least 2, better 100"
                )
    return halves


def _sets_by_image(questions: Sequence[Question]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for each in questions:
        found.setdefault(each.path, set()).add(_set(each))
    return {path: tuple(sorted(sets)) for path, sets in found.items()}


def _set(question: Question) -> str:
    return question.facts["set"]


def _of(name: str) -> str:
    return "" if name == ALL else f" {name}"


def _right(question: Question, said: ViewChoice) -> bool:
    return said.choice is not None and question.choices[said.choice] == question.label


def _table(
    questions: Sequence[Question],
    images: frozenset[str],
    plain: Sequence[ViewChoice],
    alone: Sequence[ViewChoice],
    adjusted: Sequence[ViewChoice],
    sets: Sequence[str],
) -> Table:
    """Counts of a half. Images are resampled among those with the same sets of questions."""
    strata = _sets_by_image(questions)
    rows = []
    for question, usual, branch, after in zip(questions, plain, alone, adjusted, strict=True):
        if question.path not in images:
            continue
        name = _set(question)
        counts = {
            "questions": 1,
            name: 1,
            f"{name} plain": _right(question, usual),
            f"{name} alone": _right(question, branch),
            f"{name} adjusted": _right(question, after),
            "unreadable": branch.choice is None,
            "adjusted unreadable": after.choice is None,
            "entropy": branch.entropy,
            "divergence": branch.divergence or 0.0,
        }
        rows.append(Row(question.path, counts, "+".join(strata[question.path])))
    columns = ["questions", "unreadable", "adjusted unreadable", "entropy", "divergence"]
    for name in sets:
        columns += [name, f"{name} plain", f"{name} alone", f"{name} adjusted"]
    return Table.of(rows, columns)


def _metrics(sets: Sequence[str]) -> dict[str, Metric]:
    metrics = {f"alone{_of(name)}": ratio(f"{name} alone", name) for name in sets}
    metrics |= {f"adjusted{_of(name)}": ratio(f"{name} adjusted", name) for name in sets}
    gains = {
        name: (Term(f"{name} adjusted", name), Term(f"{name} plain", name, -100.0)) for name in sets
    }
    metrics |= {f"gain{_of(name)}": Metric(terms) for name, terms in gains.items()}
    # Sets count the same whatever their sizes.
    metrics["gain"] = Metric(
        tuple(
            Term(part, whole, scale / len(sets))
            for terms in gains.values()
            for part, whole, scale in terms
        )
    )
    return metrics | {
        "unreadable": ratio("unreadable", "questions"),
        "adjusted unreadable": ratio("adjusted unreadable", "questions"),
        "entropy": ratio("entropy", "questions", scale=1.0),
        "divergence": ratio("divergence", "questions", scale=1.0),
    }


def _log_odds(said: ViewChoice) -> float | None:
    first, second = said.probabilities
    return math.log(first) - math.log(second) if first > 0 and second > 0 else None


def _biases(
    questions: Sequence[Question], plain: Sequence[ViewChoice], images: frozenset[str]
) -> dict[tuple[str, str], float]:
    """The bias that makes most answers about these images right, for each pair of choices."""
    known: dict[tuple[str, str], list[tuple[float, bool]]] = {}
    for question, said in zip(questions, plain, strict=True):
        odds = known.setdefault(question.choices, [])
        if question.path in images and (value := _log_odds(said)) is not None:
            odds.append((value, question.label == question.choices[0]))
    biases = {}
    for choices, odds in known.items():
        values = np.array([value for value, _ in odds], float)
        positive = np.array([positive for _, positive in odds], bool)
        biases[choices] = best_bias(values, positive)
    return biases


def _biased(
    question: Question, said: ViewChoice, biases: Mapping[tuple[str, str], float]
) -> ViewChoice:
    odds = _log_odds(said)
    if said.choice is None or odds is None:
        return said
    return said._replace(choice=0 if odds + biases[question.choices] > 0 else 1)


def _auc_gain(
    questions: Sequence[Question],
    images: frozenset[str],
    plain: Sequence[ViewChoice],
    adjusted: Sequence[ViewChoice],
    seed: int,
) -> Estimate | None:
    """AUC of the adjusted probabilities less that of the plain ones, all sets together."""
    runs: dict[str, list[Pair]] = {"plain": [], "adjusted": []}
    for question, before, after in zip(questions, plain, adjusted, strict=True):
        if question.path in images:
            scores = {"factual": before.probabilities}
            runs["plain"].append(_pair(question, scores))
            runs["adjusted"].append(_pair(question, scores | {"adjusted": after.probabilities}))
    return auc_difference(runs["adjusted"], runs["plain"], RESAMPLES, seed)


def _pair(question: Question, scores: Mapping[str, tuple[float, float]]) -> Pair:
    # By its path: two files may have different images of one name.
    question = replace(question, image=question.path)
    answer = Answer(
        question_id=question.id,
        image=question.image,
        prompt=question.prompt,
        answer="",
        scores=scores,
    )
    return Pair(question, answer)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
