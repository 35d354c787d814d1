"""From measurements to an answer: which layers to edit, ranked on one half, reported on the other.

Images are split in two. On the development half configurations are ranked by the AUC that the
adjusted model gains over the plain one, which no lean toward one answer can change, or by the
accuracy gained, the mean over the sets of questions; the other of the two decides between equally
good ones. On the held-out half the same numbers come with their intervals, and beside them the gain
of one constant bias toward the first choice, fitted on the development half: a contrast that gains
less accuracy than that has only leaned. An answer that cannot be read is wrong. What the branch
alone makes of descriptions and texts (fluency.py) is of both halves.
Tests: tests/evaluation/test_diagnose.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any

import numpy as np

from causalmm.errors import FailureError, RequestError
from causalmm.evaluation.diagnosis.fluency import COLUMNS as _FLUENCY
from causalmm.evaluation.diagnosis.fluency import Fluency
from causalmm.evaluation.diagnosis.measurement import (
    PLAIN,
    Candidate,
    Configuration,
    Measurement,
)
from causalmm.evaluation.records import Question, ViewChoice
from causalmm.evaluation.report import BOOTSTRAP, text_table, to_json
from causalmm.evaluation.statistics import (
    LEVEL,
    Estimate,
    ImageCounts,
    Metric,
    Table,
    Term,
    estimates,
    ratio,
)
from causalmm.evaluation.tally import Pair
from causalmm.evaluation.two_way import Signal, auc_difference, best_bias, log_odds

SETS = ("consistent", "contradicting")
"""Of questions whose right answer the prior gives, and whose right answer contradicts it."""
ALL = "all"
"""The one set where nothing says which is which."""
RANKS = {"auc": "AUC gain", "gain": "gain"}
"""What configurations are ranked by, and the name of that number."""
HALVES = ("development", "held out")
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
    fluency: Mapping[str, float] = field(default_factory=dict)
    """Perplexities and masses, see fluency.py; empty where they were not asked for."""
    image_mass_by_layer: tuple[float, ...] = ()
    """Of the plain model, in per cent, from the first decoder layer on."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        by_layer = to_json(self.image_mass_by_layer)
        return {
            "tower": self.configuration.tower,
            "method": self.configuration.method or None,
            "scope": self.configuration.scope,
            "heads": self.configuration.heads,
            "layers": list(self.configuration.layers),
            "setting": self.configuration.spec or None,
            "windows": list(self.kinds),
            "development": to_json(self.development),
            "held_out": to_json(self.held_out),
            "fluency": to_json(self.fluency),
            **({"image_mass_by_layer": by_layer} if by_layer else {}),
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
    rank: str
    """One of `RANKS`."""

    @property
    def best(self) -> Finding | None:
        """The configuration to choose; None where none gains on the development half."""
        first = self.ranked[0]
        return first if first.development[RANKS[self.rank]] > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {each.name: to_json(getattr(self, each.name)) for each in fields(self)}
        found["bias"]["biases"] = found.pop("biases")
        return found | {"bootstrap": BOOTSTRAP | {"seed": found.pop("seed")}}

    def table(self, shown: int) -> str:
        """For reading: the plain model, the bias, and the first so many configurations."""
        questions = ", ".join(
            f"{number} {name}".removesuffix(f" {ALL}")
            for name, number in self.questions["held out"].items()
        )
        any_fluency = any(each.fluency for each in (self.plain, *self.ranked))
        head = (
            f"ranked by the {RANKS[self.rank]} on {self.images['development']} images, shown on "
            f"{self.images['held out']} others with {questions} questions; per cent and points, "
            f"entropy and divergence in nats [{LEVEL} % bootstrap intervals over images]"
            + "; perplexity of plain answers and of texts without image, and the attention on "
            "image tokens in the edited layers, of the branch alone" * any_fluency
        )
        columns = [f"alone{_of(name)}" for name in self.sets]
        columns += ["unreadable", "entropy", "divergence"]
        columns += [*_FLUENCY] * any_fluency
        columns += [f"adjusted{_of(name)}" for name in self.sets]
        ranked = enumerate(self.ranked[:shown], 1)
        ranked_by = RANKS[self.rank]
        rows = [_row("", each, columns, ranked_by) for each in (self.plain, self.bias)]
        rows += [_row(str(place), each, columns, ranked_by) for place, each in ranked]
        edited = ["tower", "method", "scope", "heads", "layers"]
        header = ["", *edited, *columns, "AUC gain", "gain", "ranked by"]
        blocks = [head, text_table(header, rows, left=6), "\n".join(self._notes(shown))]
        return "\n\n".join(block for block in blocks if block)

    def _notes(self, shown: int) -> list[str]:
        notes = []
        if len(self.ranked) > shown:
            notes.append(f"{len(self.ranked) - shown} more configurations are in table.json")
        name = RANKS[self.rank]
        if all(math.isnan(each.development[name]) for each in self.ranked):
            notes.append("there is no AUC where one choice is always right: --rank gain")
        elif self.best is None:
            notes.append(
                f"no configuration has an {name} over the plain model on the development half"
            )
        elif not self.best.held_out[name].low > 0:
            notes.append(
                f"the first one's {name} on the held-out half may be none: see its interval"
            )
        if self.best and self.bias.held_out["gain"].value >= self.best.held_out["gain"].value:
            notes.append("a constant bias gains as much accuracy as the first one or more")
        if self.failed:
            name, error = next(iter(self.failed.items()))
            notes.append(f"{len(self.failed)} questions failed (first: {name}, {error!r})")
        return notes


def diagnose(
    questions: Sequence[Question],
    measured: Mapping[Configuration, Measurement],
    wanted: Sequence[Candidate],
    seed: int = 0,
    rank: str = "auc",
) -> Diagnosis:
    """Rank and report the wanted configurations, by one of `RANKS`.

    `facts["set"]` of a question is its set. Raises FailureError where no question could be asked,
    RequestError where a set has too few images to be split.
    """
    kinds: dict[Configuration, list[str]] = {}
    for each in wanted:
        kinds.setdefault(each.configuration, []).append(each.kind)
    used = [measured[PLAIN], *(measured[configuration] for configuration in kinds)]
    # Of several errors of a question the first counts.
    failed = dict(chain.from_iterable(each.errors.items() for each in reversed(used)))
    kept = [place for place, each in enumerate(questions) if each.id not in failed]
    if not kept:
        raise FailureError(f"no question could be asked (first: {next(iter(failed.values()))})")
    # An image goes by its path: two files may have different images of one name.
    asked = [replace(questions[place], image=questions[place].path) for place in kept]
    plain = [used[0].alone[place] for place in kept]
    given = _Given(
        questions=asked,
        plain=plain,
        halves=split(asked, seed),
        sets=tuple(name for name in (*SETS, ALL) if any(_set(each) == name for each in asked)),
        seed=seed,
    )
    findings = [
        given.finding(
            each.configuration,
            [each.alone[place] for place in kept],
            [each.adjusted[place] for place in kept],
            tuple(dict.fromkeys(kinds[each.configuration])),
            fluency=each.fluency,
        )
        for each in used[1:]
    ]
    by = sorted(RANKS, key=lambda name: name != rank)
    # Of equally good ones that whose branch can be read, and that edits less.
    findings.sort(
        key=lambda each: (
            *(_descending(each.development[RANKS[name]]) for name in by),
            each.development["unreadable"],
            len(each.configuration.layers),
        )
    )
    biases = given.biases()
    leaning = given.leaning(biases)
    sets_asked = {half: [_set(each) for each in given.of(half, asked)] for half in HALVES}
    return Diagnosis(
        sets=given.sets,
        questions={
            half: {name: names.count(name) for name in given.sets}
            for half, names in sets_asked.items()
        },
        images={half: len(images) for half, images in given.halves.items()},
        plain=given.finding(
            PLAIN,
            plain,
            plain,
            shown=("adjusted", "unreadable", "entropy"),
            fluency=used[0].fluency,
        ),
        bias=given.finding(BIAS, plain, leaning, shown=("adjusted", "gain")),
        biases={"/".join(choices): bias for choices, bias in biases.items()},
        ranked=tuple(findings),
        failed=failed,
        seed=seed,
        rank=rank,
    )


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What all findings are made of; views are in the order of the questions."""

    questions: Sequence[Question]
    plain: Sequence[ViewChoice]
    halves: Mapping[str, frozenset[str]]
    """Paths of the images."""
    sets: tuple[str, ...]
    seed: int

    def of(self, half: str, values: Sequence[Any]) -> list[Any]:
        """Those of a half among values in the order of the questions."""
        images = self.halves[half]
        pairs = zip(self.questions, values, strict=True)
        return [value for question, value in pairs if question.path in images]

    def finding(
        self,
        configuration: Configuration,
        alone: Sequence[ViewChoice],
        adjusted: Sequence[ViewChoice],
        kinds: tuple[str, ...] = (),
        shown: tuple[str, ...] = ("",),
        fluency: Fluency | None = None,
    ) -> Finding:
        """Of one configuration; `shown` are beginnings of the metrics that say something of it."""
        rows = self._rows(alone, adjusted)
        tables = {half: Table.of(self.of(half, rows)) for half in HALVES}
        metrics = {
            name: each for name, each in _metrics(self.sets).items() if name.startswith(shown)
        }
        totals = tables["development"].totals()
        found = estimates(tables["held out"], metrics, seed=self.seed)
        development = {name: float(each.of(totals)) for name, each in metrics.items()}
        if configuration not in (PLAIN, BIAS):
            gains = {half: self._auc_gain(half, adjusted) for half in HALVES}
            development["AUC gain"] = gains["development"].value
            found["AUC gain"] = gains["held out"]
        by_layer = fluency.image_mass if fluency and configuration == PLAIN else ()
        return Finding(
            configuration=configuration,
            kinds=kinds,
            development=development,
            held_out=found,
            fluency=fluency.numbers() if fluency else {},
            image_mass_by_layer=tuple(100 * each for each in by_layer),
        )

    def _auc_gain(self, half: str, adjusted: Sequence[ViewChoice]) -> Estimate:
        """NaN where no question has probabilities, or one choice is always right."""
        pairs = [self.of(half, self._pairs(view)) for view in (adjusted, self.plain)]
        gain = auc_difference(*pairs, self.seed)
        return Estimate(math.nan, math.nan, math.nan) if gain is None else gain

    def biases(self) -> dict[tuple[str, str], float]:
        """The bias that makes most plain answers of the development half right, for each pair of
        choices."""
        pairs = self.of("development", self._pairs(self.plain))
        found = {}
        for choices in dict.fromkeys(each.choices for each in self.questions):
            signal = Signal.of([each for each in pairs if each.question.choices == choices])
            found[choices] = best_bias(signal.log_odds, signal.positive) if signal else 0.0
        return found

    def leaning(self, biases: Mapping[tuple[str, str], float]) -> list[ViewChoice]:
        """What the plain model says with its bias, where what it says can be read."""
        found = []
        for question, said in zip(self.questions, self.plain, strict=True):
            odds = log_odds({"factual": said.probabilities}, "factual")
            if said.choice is not None and odds is not None:
                said = said._replace(choice=0 if odds + biases[question.choices] > 0 else 1)
            found.append(said)
        return found

    def _rows(
        self, alone: Sequence[ViewChoice], adjusted: Sequence[ViewChoice]
    ) -> list[ImageCounts]:
        """Counts of each question. Images are resampled among those with the same sets."""
        strata = _sets_by_image(self.questions)
        rows = []
        for question, plain, branch, after in zip(
            self.questions, self.plain, alone, adjusted, strict=True
        ):
            name = _set(question)
            counts = {
                "questions": 1,
                name: 1,
                f"{name} plain": _right(question, plain),
                f"{name} alone": _right(question, branch),
                f"{name} adjusted": _right(question, after),
                "unreadable": branch.choice is None,
                "adjusted unreadable": after.choice is None,
                "entropy": branch.entropy,
                "divergence": branch.divergence or 0.0,
            }
            rows.append(ImageCounts(question.path, counts, "+".join(strata[question.path])))
        return rows

    def _pairs(self, adjusted: Sequence[ViewChoice]) -> list[Pair]:
        """Questions with the probabilities of the plain model and of an adjusted one."""
        pairs = []
        for question, plain, after in zip(self.questions, self.plain, adjusted, strict=True):
            scores = {"factual": plain.probabilities, "adjusted": after.probabilities}
            pairs.append(Pair(question, question.answered("", scores=scores)))
        return pairs


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
    halves = {half: frozenset(order[first::2]) for first, half in enumerate(HALVES)}
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


def _descending(value: float) -> float:
    """A key by which the largest comes first, and NaN last."""
    return math.inf if math.isnan(value) else -round(value, 9)


def _of(name: str) -> str:
    return "" if name == ALL else f" {name}"


def _right(question: Question, said: ViewChoice) -> bool:
    return said.choice is not None and question.choices[said.choice] == question.label


def _metrics(sets: Sequence[str]) -> dict[str, Metric]:
    metrics = {
        f"{view}{_of(name)}": ratio(f"{name} {view}", name)
        for view in ("alone", "adjusted")
        for name in sets
    }
    every = []
    for name in sets:
        gain = (Term(f"{name} adjusted", name), Term(f"{name} plain", name, -100.0))
        metrics[f"gain{_of(name)}"] = Metric(gain)
        every += gain
    # Sets count the same whatever their sizes.
    metrics["gain"] = Metric(tuple(each._replace(scale=each.scale / len(sets)) for each in every))
    return metrics | {
        "unreadable": ratio("unreadable", "questions"),
        "adjusted unreadable": ratio("adjusted unreadable", "questions"),
        "entropy": ratio("entropy", "questions", scale=1.0),
        "divergence": ratio("divergence", "questions", scale=1.0),
    }


def _row(place: str, each: Finding, columns: Sequence[str], ranked_by: str) -> list[str]:
    """Of the table."""
    configuration, found = each.configuration, each.held_out
    values = {name: value.value for name, value in found.items()} | each.fluency
    forms = dict.fromkeys(("entropy", "divergence"), ".2f")
    forms |= dict.fromkeys(("perplexity", "text perplexity"), ".3g")
    shown = {name: f"{values[name]:{forms.get(name, '.1f')}}" for name in columns if name in values}
    cells = [shown.get(name, "") for name in columns]
    gains = [found[name].text("+") if name in found else "" for name in ("AUC gain", "gain")]
    edited = [configuration.tower, configuration.method, "", "", configuration.spec]
    if configuration.tower == "language":
        edited[2:4] = configuration.scope, configuration.heads
    by = f"{each.development[ranked_by]:+.1f}" if ranked_by in each.development else ""
    return [place, *edited, *cells, *gains, by]
