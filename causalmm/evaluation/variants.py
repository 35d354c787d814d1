"""Which ways of answering one command runs: a single one, the row of controls, or a grid.

Tests: tests/evaluation/test_evaluation_variants.py.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from causalmm.cli.request import SAMPLING_OFF, SETTINGS, Request, settle
from causalmm.errors import RequestError, first_line
from causalmm.evaluation.answers_file import CONTROLS, SPURIOUS
from causalmm.evaluation.over_seeds import groups, seeded_name
from causalmm.inputs.json_lines import read_bytes

_LONGEST_NAME = 255
"""Of a folder, on the usual file systems."""
YES_PROMPT = " Answer yes whenever possible."
_NAMES = ("preset", *SETTINGS)
"""What a grid may vary."""


def controls(request: Request) -> dict[str, Request]:
    """What any gain must be measured against, and the chosen configuration, greedy and sampled, by
    the name of the folder.

    Raises RequestError where the request has no configuration.
    """
    if request.config is None:
        raise RequestError("--controls needs a mode other than plain to compare with")
    mask = replace(request.config, gamma=0.0, gamma_vision=None, gamma_language=None)
    greedy, sampled = _greedy(request), request.sampling
    if not sampled["do_sample"]:
        sampled = greedy | {"do_sample": True, **SAMPLING_OFF}
    ways = (
        (None, greedy),
        (None, sampled),
        (mask, sampled),
        (request.config, greedy),
        (request.config, sampled),
    )
    return {
        name: request._replace(config=config, sampling=sampling)
        for name, (config, sampling) in zip(CONTROLS, ways, strict=True)
    }


def spurious(request: Request) -> dict[str, Request]:
    """Two controls that lean toward "yes" (arXiv 2504.10020), by the name of the folder: greedy
    with `YES_PROMPT` after every question, and greedy with a yes in doubt (spurious.py)."""
    greedy = request._replace(config=None, preset=None, sampling=_greedy(request))
    lean = greedy._replace(logits_processor="causalmm.evaluation.spurious:yes_in_doubt")
    return dict(zip(SPURIOUS, (greedy, lean), strict=True))


def with_seeds(requests: Mapping[str, Request], count: int) -> dict[str, Request]:
    """Every request with so many seeds, from its own on; those in which nothing is drawn once.

    Raises RequestError where a name says a seed already.
    """
    found = {}
    for name, request in requests.items():
        config = request.config
        if None not in groups([name]).get(name, {}):
            raise RequestError("--seeds: the grid has a seed of its own")
        if not request.sampling["do_sample"] and not (config and config.stochastic):
            found[name] = request
            continue
        for seed in range(request.seed, request.seed + count):
            seeded = config and replace(config, seed=seed)
            found[seeded_name(name, seed)] = request._replace(config=seeded, seed=seed)
    return found


def _greedy(request: Request) -> dict[str, Any]:
    """How a request chooses tokens, without drawing them."""
    kept = {name: value for name, value in request.sampling.items() if name not in SAMPLING_OFF}
    return kept | {"do_sample": False}


def grid(request: Request, path: str | Path) -> dict[str, Request]:
    """Every combination of the settings in a YAML file, over the request's, by the folder's name.

    The file holds a mapping from settings to a value or a list of values, or a list of such
    mappings; mode may be plain, and preset takes the place of all settings that were not given as
    flags. Raises RequestError for anything else.
    """
    if request.config is None:
        raise RequestError("--grid needs a mode other than plain; in the file, mode may be plain")
    requests: dict[str, Request] = {}
    for given in _combinations(path):
        name = _name(given)
        if name in requests:
            raise RequestError(f"{path}: two combinations would have the name {name}")
        if len(name) > _LONGEST_NAME:
            raise RequestError(
                f"{path}: give settings that do not vary as flags: the name {name} is too long"
            )
        preset = given.pop("preset", request.preset)
        plain = given.get("mode") == "plain"
        if plain:
            del given["mode"]
            preset = None
        try:
            # A preset replaces the request's configuration, but not what was given as flags.
            flags = {} if preset is None else request.given
            config = settle(request.config, preset, {**flags, **given})
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from error
        requests[name] = request._replace(
            config=None if plain else config, preset=preset, seed=config.seed
        )
    return requests


def _combinations(path: str | Path) -> Iterator[dict[str, Any]]:
    try:
        read = yaml.safe_load(read_bytes(Path(path)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not YAML ({first_line(error)})") from error
    tables = read if isinstance(read, list) else [read]
    if not tables or not all(isinstance(table, Mapping) and table for table in tables):
        raise RequestError(f"{path}: expected settings and lists of their values")
    for table in tables:
        values = [_values(path, str(name), given) for name, given in table.items()]
        for combination in itertools.product(*values):
            yield dict(zip(map(str, table), combination, strict=True))


def _values(path: str | Path, name: str, given: Any) -> list[Any]:
    values = given if isinstance(given, list) else [given]
    if name not in _NAMES:
        known = ", ".join(_NAMES)
        raise RequestError(f"{path}: unknown setting {name!r}: expected one of {known}")
    if not values:
        raise RequestError(f"{path}: {name} has no values")
    for value in values:
        # YAML reads 10:20 as a number to the base of 60, and half: as a mapping.
        if name.endswith("_layers") and not isinstance(value, str | list):
            raise RequestError(f'{path}: {name}: {value!r}: write layers in quotes, as "half:"')
    return values


def _name(given: Mapping[str, Any]) -> str:
    """A folder's name. All that is given, so that a grid may grow and its runs go on."""
    return ",".join(f"{key}={_word(given[key])}" for key in _NAMES if key in given)


def _word(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return re.sub(r"[^\w.:+-]", "_", str(value))
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
