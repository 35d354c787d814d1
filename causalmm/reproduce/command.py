"""The `reproduce` command: list recipes, show one, run it, and report beside what was published.

Exit codes: 0, 2 for a wrong request, 1 for a failure, 130 when interrupted. A run is resumed when
its command is given again. Tests: tests/reproduce/test_command.py.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causalmm.cli import flags
from causalmm.cli.terminal import exit_code, tell
from causalmm.errors import FailureError, RequestError
from causalmm.evaluation.answers_file import find_runs
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.report import to_json
from causalmm.evaluation.running import answer_runs
from causalmm.evaluation.scoring import read_runs
from causalmm.extras import require
from causalmm.families import checkpoints
from causalmm.inputs.json_lines import difference, read_bytes, to_object, write_json
from causalmm.reproduce.recipe import TRUST, Recipe, find_recipe, make_recipe, names, to_dict
from causalmm.reproduce.report import make_table
from causalmm.reproduce.runs import fitted, row_flags, runs_of

RECORD = "recipe.json"
"""In the folder of a recipe's runs: which recipe they are of."""


def main(argv: list[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command and return its exit code; `prog` is its name in messages."""

    def act() -> None:
        args = parse_args(sys.argv[1:] if argv is None else argv, prog)
        args.act(args)

    return exit_code(act)


def parse_args(argv: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Flags as given, and in `act` what to do with them; behind "--" stand the benchmark's own."""
    argv, own = list(argv), []
    if "--" in argv:
        at = argv.index("--")
        argv, own = argv[:at], argv[at + 1 :]
    parser = flags.Parser(
        prog=prog, description="Make a table of a paper again: its rows, its controls, its report."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="the recipes").set_defaults(act=_list)
    show = actions.add_parser("show", help="what a recipe runs, and what is published")
    show.set_defaults(act=_show)
    _add_recipe(show)
    run = actions.add_parser(
        "run",
        help="every row of a recipe with one load of the model",
        epilog="Behind `--` may stand flags of the benchmark, in the place of the recipe's data: "
        "reproduce run pope --out runs/toy --model demo-llava -- --questions FILE --images FOLDER",
    )
    run.set_defaults(act=_run)
    _add_recipe(run)
    run.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    run.add_argument("--data", type=Path, metavar="FOLDER", help="where the recipe's files lie")
    run.add_argument("--model", help="another checkpoint than the recipe's")
    run.add_argument("--seeds", type=flags.at_least(1), metavar="N", help="in the place of its own")
    run.add_argument(
        "--limit", type=flags.at_least(1), metavar="N", help="a trial: the first N images only"
    )
    flags.add_retry_failed(run)
    flags.add_running(run)
    run.set_defaults(dtype=None)
    report = actions.add_parser("report", help="ours, the published values and the base, together")
    report.set_defaults(act=_report)
    report.add_argument("folder", type=Path, metavar="FOLDER", help="the --out of `run`")
    report.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON, too")
    report.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="draw the differences to the first base, too (.png, .svg or .pdf)",
    )
    args = parser.parse_args(argv)
    if own and args.act is not _run:
        raise RequestError("flags behind -- are for `run`")
    args.own = own
    return args


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="NAME", help=f"one of {', '.join(names())}, or a YAML file of one's own"
    )


def _list(_: argparse.Namespace) -> None:
    recipes = [find_recipe(name) for name in names()]
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        print(f"{recipe.name:<{width}}  {recipe.title} ({recipe.model}; {len(recipe.rows)} rows)")


def _show(args: argparse.Namespace) -> None:
    recipe = find_recipe(args.recipe)
    lines = [recipe.title, f"source: {recipe.source}", f"model: {recipe.model} ({recipe.dtype})"]
    lines += [f"benchmark: {recipe.benchmark}", f"needs: {recipe.needs}"]
    seeds = f"{recipe.seeds}, from {recipe.seed} on, of each row that draws anything"
    lines.append(f"seeds: {seeds}")
    lines.append("rows:")
    for name, row in recipe.rows.items():
        told = shlex.join(row_flags(recipe, row, None)) if row.get("control") is None else (
            f"greedy, {row['control']} (evaluate --spurious)"
        )  # fmt: skip
        lines.append(f"  {name}: {told}")
    lines.append("published:")
    for cell in recipe.published:
        value = "not known" if cell.value is None else f"{cell.value:g} ({cell.trust})"
        about = f"{cell.source}{'' if cell.note is None else f'; {cell.note}'}"
        lines.append(f"  {cell.row}, {cell.set}, {cell.metric}: {value}, {about}")
    lines += [f"  {trust}: {meaning}" for trust, meaning in TRUST.items()]
    for heading, texts in (("not published", recipe.unpublished), ("notes", recipe.notes)):
        lines += [f"{heading}:", *(f"  {text}" for text in texts)] if texts else []
    print("\n".join(lines))


def _run(args: argparse.Namespace) -> None:
    recipe = _changed(find_recipe(args.recipe), args)
    from causalmm.families.loading import read_towers  # loads torch

    recipe = fitted(recipe, recipe.model, read_towers(checkpoints.resolve(recipe.model)))
    record = {
        "recipe": {"name": recipe.name, **to_dict(recipe)},
        "limit": args.limit,
        "data": None if args.data is None else str(args.data),
        "flags": args.own,
    }
    record = json.loads(json.dumps(record))  # as it will be read
    path = args.out / RECORD
    if path.is_file() and (what := difference(to_object(read_bytes(path)), record)) is not None:
        raise RequestError(
            f"{args.out} was begun with another recipe or other flags ({what}): give another folder"
        )
    running = [f"--model={recipe.model}", f"--dtype={recipe.dtype}"]
    running += [f"--device={args.device}", f"--attn={args.attn}"]
    running += [] if args.limit is None else [f"--limit={args.limit}"]
    running += ["--retry-failed"] * args.retry_failed
    of_any, runs = runs_of(recipe, args.out, running, args.data, args.own)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError as error:
        raise FailureError(f"--out {args.out} cannot be written ({error.strerror})") from error
    tell(f"recipe {recipe.name}: {len(runs)} runs of {len(runs[0].questions)} questions each")
    answer_runs(of_any, runs)


def _changed(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe as a command's flags change it."""
    changes = {name: getattr(args, name) for name in ("model", "dtype", "seeds")}
    given = {name: value for name, value in changes.items() if value is not None}
    return make_recipe(to_dict(recipe) | given, f"recipe {recipe.name}", recipe.name)


def _report(args: argparse.Namespace) -> None:
    path = args.folder / RECORD
    if not path.is_file():
        raise RequestError(f"{args.folder} holds no {RECORD}: expected the --out of `run`")
    record = to_object(read_bytes(path))
    values: dict[str, Any] = dict(record["recipe"])
    recipe = make_recipe(values, str(path), values.pop("name"))
    benchmark = BENCHMARKS[recipe.benchmark]
    report = make_table(recipe, benchmark.tally, read_runs(benchmark, find_runs(args.folder), {}))
    if args.figure is not None:
        _draw(report, args.figure)
    if args.out is not None:
        about = {"recipe": record["recipe"], "limit": record["limit"]}
        numbers = {name: to_json(getattr(report, name)) for name in ("missing", "cells", "tests")}
        try:
            write_json(args.out, about | numbers)
        except OSError as error:
            raise FailureError(f"--out {args.out} cannot be written ({error.strerror})") from error
    print(report.text(), flush=True)


def _draw(report: Any, path: Path) -> None:
    require("drawing", "figures")
    from causalmm.reproduce.figure import forest

    base = next((name for name in report.recipe.base if name not in report.missing), None)
    metric = next(iter(dict.fromkeys(cell.metric for cell in report.cells)))
    if base is None or not any(base in cell.differences for cell in report.cells):
        raise RequestError("--figure: no row is finished beside a base")
    try:
        forest(report, base, metric).savefig(path)
    except (OSError, ValueError) as error:
        raise FailureError(f"--figure {path} cannot be written ({error})") from error
