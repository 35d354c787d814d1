"""Measure what counterfactual branches say alone, one configuration at a time.

A configuration is a tower, a method and a window of its layers, and in the decoder a scope and
heads. What has no formula is left out: `blind` with scope "all", released normalization with scope
"image".

Windows of layers are of these kinds:

all           one window of every layer
halves        2 of them, one after the other; thirds: 3
sliding:W     W layers at a time, from every layer on; sliding:W:S from every S-th
half:, 10:20  one window, as in `language_layers`

A measurement is one line of measurements.jsonl, appended when it is done, so that a run that was
killed goes on with the next one. The first is of the plain model. What is made of them is in
report.py. Tests: tests/evaluation/test_diagnose.py.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from causalmm.cli.session import Session
from causalmm.config import CENTERING, CausalMMConfig
from causalmm.counterfactual.methods import SCOPES, TOWERS, find, names
from causalmm.errors import RequestError
from causalmm.evaluation.diagnosis.fluency import Fluency
from causalmm.evaluation.records import Question, ViewChoice
from causalmm.evaluation.runner import ask_unit, units
from causalmm.heads import ALL, image_heads
from causalmm.inputs.json_lines import to_line, to_object, whole_lines
from causalmm.layers import check_layers, resolve_layers

if TYPE_CHECKING:  # it loads torch
    from causalmm.evaluation.diagnosis.teacher_forcing import FluencyProbe

MEASUREMENTS = "measurements.jsonl"
METHODS = {tower: names(tower) for tower in TOWERS}
"""By tower."""
DEFAULT_WINDOWS = ("all", "halves", "thirds")
_PARTS = {"all": 1, "halves": 2, "thirds": 3}
_SLIDING = re.compile(r"sliding:([1-9]\d*)(?::([1-9]\d*))?")


class Configuration(NamedTuple):
    """What is edited. `PLAIN` edits nothing."""

    tower: str
    method: str
    layers: tuple[int, ...]
    scope: str = SCOPES[0]
    """Of the decoder, as are the heads."""
    heads: str = ALL

    def over(self, base: CausalMMConfig) -> CausalMMConfig:
        """As a configuration of one branch, with the strength and other settings of `base`."""
        decoder = {"language_scope": self.scope, "language_heads": self.heads}
        return replace(
            base,
            **decoder if self.tower == "language" else {},
            mode=self.tower,
            site="attention",
            gamma_vision=None,
            gamma_language=None,
            **dict.fromkeys(CENTERING),
            **{f"{self.tower}_method": self.method},
            **{f"{self.tower}_layers": self.spec},
        )

    @property
    def name(self) -> str:
        """The method, and its scope and heads where they are not all."""
        return " ".join([self.method, *(each for each in self[3:] if each != ALL)])

    @property
    def spec(self) -> str:
        """The layers as a setting names them: a slice, or numbers where they lie apart."""
        if not self.layers:
            return ""
        span = range(self.layers[0], self.layers[-1] + 1)
        if self.layers == tuple(span):
            return f"{span.start}:{span.stop}"
        return ",".join(map(str, self.layers))


PLAIN = Configuration("plain", "", ())


class Candidate(NamedTuple):
    """A configuration, and the kind of window that it is one of."""

    configuration: Configuration
    kind: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a branch says alone, and the adjusted model with it, in the order of the questions.

    None where a question could not be asked. Of `PLAIN` both are what the plain model says.
    """

    configuration: Configuration
    alone: tuple[ViewChoice | None, ...]
    adjusted: tuple[ViewChoice | None, ...]
    errors: Mapping[str, str]
    """By question id."""
    seconds: float
    fluency: Fluency | None = None
    """None where it was not asked for."""


def read_kinds(text: str) -> list[str]:
    """The kinds in a list with commas. Raises RequestError for what is none."""
    kinds = [each.strip() for each in text.split(",") if each.strip()]
    if not kinds:
        raise RequestError("--windows is empty")
    for kind in kinds:
        if kind not in _PARTS and not _SLIDING.fullmatch(kind):
            try:
                check_layers("--windows", kind)
            except ValueError:
                raise RequestError(
                    f"--windows: {kind!r} is none of {', '.join(_PARTS)}, sliding:W, sliding:W:S "
                    'and a slice such as "half:" or "10:20"'
                ) from None
    return list(dict.fromkeys(kinds))


def read_heads(text: str) -> list[str]:
    """The heads in a list with commas, "all" or "image:K". Raises RequestError for others."""
    found = [each.strip() for each in text.split(",") if each.strip()]
    if not found:
        raise RequestError("--heads is empty")
    for each in found:
        if each != ALL and not image_heads(each):
            raise RequestError(f"--heads: {each!r} is neither all nor image:K with K > 0")
    return list(dict.fromkeys(found))


def windows(
    kind: str, tower: str, count: int, full: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """The layers of each window of a kind in a tower of `count` layers, ascending.

    `full` are those with full attention, None: all. Raises RequestError where a tower has no such
    window.
    """
    if (parts := _PARTS.get(kind)) is not None:
        bounds = [count * part // parts for part in range(parts + 1)]
        spans = zip(bounds, bounds[1:], strict=False)
        # A tower of two layers has no three thirds.
        return [tuple(range(first, end)) for first, end in spans if first < end]
    if found := _SLIDING.fullmatch(kind):
        width, step = int(found[1]), int(found[2] or 1)
        if width > count:
            raise RequestError(f"--windows {kind}: the {tower} tower has {count} layers to edit")
        starts = range(0, count - width + 1, step)
        return [tuple(range(first, first + width)) for first in starts]
    try:
        return [resolve_layers("--windows", check_layers("--windows", kind), count, full)]
    except ValueError as error:
        raise RequestError(f"{tower} tower: {error}") from error


def candidates(
    layers: Mapping[str, int],
    towers: Sequence[str],
    methods: Sequence[str],
    kinds: Sequence[str],
    scopes: Sequence[str] = SCOPES[:1],
    heads: Sequence[str] = (ALL,),
    normalization: str = "visible",
    full_vision_layers: Sequence[int] | None = None,
) -> list[Candidate]:
    """All windows of the kinds, by method, scope, heads and tower, given how many layers each tower
    has, and which have full attention (None: all). Scopes and heads are the decoder's: a vision
    method comes once.

    Raises RequestError where a tower has no such window or method.
    """
    found = []
    for tower in towers:
        known = [method for method in METHODS[tower] if method in methods]
        if not known:
            raise RequestError(
                f"--methods {','.join(methods)}: the {tower} tower has {', '.join(METHODS[tower])}"
            )
        edits = _edits(tower, known, scopes, heads, normalization)
        if not edits:
            raise RequestError(
                f"no {tower} method is left: {', '.join(known)} has no formula for scope "
                f"{', '.join(scopes)} and normalization {normalization}"
            )
        if not layers[tower]:
            raise RequestError(f"the model has no {tower} layer to edit: leave it out of --towers")
        found += [
            Candidate(Configuration(tower, method, window, *edit), kind)
            for method, *edit in edits
            for kind in kinds
            for window in windows(
                kind, tower, layers[tower], full_vision_layers if tower == "vision" else None
            )
        ]
    return found


def _edits(
    tower: str,
    known: Sequence[str],
    scopes: Sequence[str],
    heads: Sequence[str],
    normalization: str,
) -> list[tuple[str, str, str]]:
    """Method, scope and heads of each combination that has a formula."""
    if tower == "vision":
        scopes, heads = SCOPES[:1], (ALL,)
    found = []
    for scope in scopes:
        for name in known:
            try:
                find(tower, name).formula(normalization, scope)
            except ValueError:
                continue
            found += [(name, scope, each) for each in heads]
    return found


def measure(
    session: Session,
    questions: Sequence[Question],
    configuration: Configuration,
    base: CausalMMConfig,
    words: Mapping[str, Sequence[int]],
    *,
    batch_size: int,
    tick: Callable[[int], Any],
    probe: "FluencyProbe | None" = None,
) -> Measurement:
    """Ask all questions under a configuration; `tick` is told of so many after every batch.

    `probe` is what the branch is given to read, if its fluency is wanted.
    """
    from causalmm.evaluation.diagnosis.first_token import FirstTokens  # loads torch

    begun = time.perf_counter()
    config = None if configuration == PLAIN else configuration.over(base)
    # One token: what is measured is where the answer begins.
    request = session.request._replace(
        config=config, sampling={"do_sample": False}, max_new_tokens=1
    )
    session = session._replace(request=request)
    said: dict[str, dict[str, ViewChoice]] = {}
    errors: dict[str, str] = {}
    for unit in units(questions, batch_size):
        trace = FirstTokens(words)
        for question, reply, row in ask_unit(session, unit, trace):
            if row is None:
                errors[question.id] = reply
            else:
                said[question.id] = trace.said(row, question.choices)
        tick(len(unit))
    view = "factual" if configuration == PLAIN else configuration.tower
    return Measurement(
        configuration=configuration,
        alone=tuple(said.get(each.id, {}).get(view) for each in questions),
        adjusted=tuple(said.get(each.id, {}).get("adjusted") for each in questions),
        errors=errors,
        fluency=None if probe is None else probe.read(session, config),
        seconds=round(time.perf_counter() - begun, 3),
    )


def measurement_line(measurement: Measurement) -> bytes:
    """As it stands in the file, the line's end included."""
    record = measurement.configuration._asdict()
    record |= {each.name: getattr(measurement, each.name) for each in fields(measurement)[1:]}
    record["fluency"] = measurement.fluency and measurement.fluency.to_dict()
    return to_line(record)


def read_measurements(file: Path, questions: int) -> dict[Configuration, Measurement]:
    """What is measured already; nothing where there is no file.

    A line cut short does not count; one of before there were scopes, heads and fluency has all,
    all and none. Raises RequestError for a line that is no measurement of so
    many questions.
    """
    found: dict[Configuration, Measurement] = {}
    for number, line in enumerate(whole_lines(file), 1):
        try:
            record = to_object(line)
            where = {name: record.pop(name) for name in ("tower", "method", "layers")}
            where |= {name: record.pop(name, ALL) for name in ("scope", "heads")}
            where["layers"] = tuple(where["layers"])
            if (fluency := record.pop("fluency", None)) is not None:
                record["fluency"] = Fluency.from_dict(fluency)
            for view in ("alone", "adjusted"):
                record[view] = tuple(each and ViewChoice(*each) for each in record[view])
            each = Measurement(configuration=Configuration(**where), **record)
        except (KeyError, TypeError, AttributeError):
            each = None
        if each is None or {len(each.alone), len(each.adjusted)} != {questions}:
            raise RequestError(f"{file} line {number} is no measurement of {questions} questions")
        found.setdefault(each.configuration, each)
    return found
