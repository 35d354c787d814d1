"""The runs of a recipe: a row by each of its seeds, as `evaluate run` would make them.

Tests: tests/reproduce/test_command.py.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalmm.cli.flags import flag_name
from causalmm.cli.terminal import tell
from causalmm.errors import RequestError
from causalmm.evaluation import commands
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.over_seeds import seeded_name
from causalmm.evaluation.runner import Run
from causalmm.evaluation.variants import spurious
from causalmm.presets.registry import find as find_preset
from causalmm.reproduce.recipe import CONTROLS, EACH, Recipe

if TYPE_CHECKING:  # it loads torch
    from causalmm.decoding.plan import Towers


def row_flags(
    recipe: Recipe, row: Mapping[str, Any], data: Path | None, own: Sequence[str] = ()
) -> list[str]:
    """The flags of `evaluate BENCHMARK run` for a row, but for those of where and how it runs.

    Files of the recipe are looked for in the folder `data`; `own` are the benchmark's flags in the
    place of the recipe's.
    """
    named = {each.partition("=")[0] for each in own if each.startswith("--")}
    paths = {
        name
        for name, options in BENCHMARKS[recipe.benchmark].flags.items()
        if options.get("type") is Path
    }
    flags: list[str] = []
    for name, value in recipe.data.items():
        if flag_name(name) not in named:
            flags += _flag(name, _in_folder(value, data) if name in paths else value)
    flags += own
    wanted = {"max_new_tokens": recipe.max_new_tokens, "seed": recipe.seed, **row}
    for name, value in wanted.items():
        if value is not None and name != "control":
            flags += _flag(name, value)
    return flags


def fitted(recipe: Recipe, source: str, towers: "Towers") -> Recipe:
    """The recipe for a checkpoint: a row a layer in the place of each that edits `EACH` layer by
    itself, and without rows whose preset the model cannot follow, which is told.

    Raises RequestError where that is a row that the others are compared with.
    """
    counts = {"vision_layers": towers.vision_layers, "language_layers": towers.language_layers}
    rows = {}
    for name, row in recipe.rows.items():
        try:
            if (preset := row.get("preset")) is not None:
                find_preset(preset).check_model(towers)
        except ValueError as error:
            if name in recipe.base:
                raise RequestError(f"recipe {recipe.name}, row {name}: {error}") from error
            tell(f"recipe {recipe.name}: row {name} is left out for {source} ({error})")
            continue
        key = next((key for key in counts if row.get(key) == EACH), None)
        if key is None:
            rows[name] = row
        else:
            rows |= {f"{name} {layer}": {**row, key: [layer]} for layer in range(counts[key])}
    left_out = tuple(name for name in recipe.rows if name not in rows)
    return replace(recipe, rows=rows, others=(*recipe.others, *left_out))


def runs_of(
    recipe: Recipe,
    out: Path,
    running: Sequence[str],
    data: Path | None = None,
    own: Sequence[str] = (),
) -> tuple[argparse.Namespace, list[Run]]:
    """All runs of a recipe, and the flags of any, of which those of running are common to all.

    `running` are flags of `evaluate run` for the model and the machine, `own` the benchmark's.
    Raises RequestError, which names the row.
    """
    found, args = [], None
    for name, row in recipe.rows.items():
        argv = [recipe.benchmark, "run", "--out", str(out), "--batch-size", str(recipe.batch_size)]
        argv += [*running, *row_flags(recipe, row, data, own)]
        if recipe.seeds > 1:
            argv += ["--seeds", str(recipe.seeds)]
        try:
            args = commands.parse_args(argv, "causalmm reproduce run")
            found += _named(name, row, args, out)
        except RequestError as error:
            raise RequestError(f"recipe {recipe.name}, row {name}: {error}") from error
    return args, found


def _named(name: str, row: Mapping[str, Any], args: argparse.Namespace, out: Path) -> list[Run]:
    if (control := row.get("control")) is not None:
        runs = commands.runs_of(args)
        prompted, lean = spurious(runs[0].request).values()
        if control == CONTROLS[0]:
            args = commands.asking_for_yes(args, runs[0])
        runs = commands.asked(args, {"": prompted if control == CONTROLS[0] else lean})
    else:
        runs = commands.runs_of(args)
    named = []
    for run in runs:
        # Of several seeds, runs_of has named each by its own.
        full = seeded_name(name, run.request.seed) if run.name else name
        named.append(replace(run, name=full, folder=out / full))
    return named


def _in_folder(value: Any, data: Path | None) -> Any:
    if isinstance(value, list):
        return [_in_folder(each, data) for each in value]
    return str(value if data is None else data / str(value))


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        joined = ",".join(map(str, value))
        return [f"{flag_name(name)}={joined}"] if name.endswith("_layers") else [
            flag_name(name), *map(str, value)
        ]  # fmt: skip
    return [f"{flag_name(name)}={value}"]
