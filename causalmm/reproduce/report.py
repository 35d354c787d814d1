"""What a recipe's runs gave, beside what was published and beside greedy decoding.

Every number has an interval: the bootstrap's over images, of the mean over seeds; behind ± is the
standard deviation over seeds. Differences are paired, by image and by seed. McNemar's exact p of
each run against a base, on one set of questions and by one rule, is corrected by Holm's procedure
over the rows of the table. Tests: tests/reproduce/test_report.py.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from causalmm.errors import RequestError
from causalmm.evaluation.over_seeds import OverSeeds, groups, together
from causalmm.evaluation.report import text_table
from causalmm.evaluation.scoring import AnsweredRun
from causalmm.evaluation.statistics import LEVEL, Estimate, holm, mcnemar
from causalmm.evaluation.tally import Pair, Tally, join
from causalmm.reproduce.recipe import TRUST, Published, Recipe

Tallies = Callable[[Sequence[Pair]], list[Tally]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of a row on one set of questions, read by one rule."""

    set: str
    rule: str
    row: str
    metric: str
    seeds: int
    ours: Estimate
    spread: float
    """Standard deviation over seeds; NaN of one run."""
    published: Published | None
    differences: Mapping[str, Estimate]
    """To each base."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """A row against a base by McNemar's test, its first seed against the base's."""

    set: str
    rule: str
    row: str
    base: str
    only_row_right: int
    only_base_right: int
    mcnemar_p: float
    holm_p: float


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """A recipe's report."""

    recipe: Recipe
    missing: tuple[str, ...]
    """Rows without a run, or whose runs are not finished."""
    cells: tuple[Cell, ...]
    tests: tuple[Test, ...]

    def text(self) -> str:
        """For reading: a table a set and rule, then what is published, and what is not."""
        recipe = self.recipe
        blocks = [
            f"{recipe.title}\n{recipe.source}",
            f"ours: mean over seeds [{LEVEL} % bootstrap interval over images] ± standard "
            "deviation over seeds; differences are paired",
        ]
        if self.missing:
            blocks.append(f"not finished, and left out: {', '.join(self.missing)}")
        for set_, rule in dict.fromkeys((cell.set, cell.rule) for cell in self.cells):
            blocks.append(f"{set_}, read by the rule {rule}")
            blocks.append(self._table(set_, rule))
        if others := [cell for cell in recipe.published if cell.row in recipe.others]:
            blocks.append("published, not run here:")
            rows = [[each.row, each.set, each.metric, _published(each)] for each in others]
            blocks.append(text_table(["row", "questions", "metric", "published"], rows, left=3))
        trusts = dict.fromkeys(each.trust for each in recipe.published if each.value is not None)
        if trusts:
            told = "; ".join(f"{trust}: {TRUST[trust]}" for trust in trusts)
            blocks.append(f"trust of published values: {told}")
        if recipe.unpublished:
            lines = "".join(f"\n- {each}" for each in recipe.unpublished)
            blocks.append(f"not published, and this table depends on it:{lines}")
        if recipe.notes:
            blocks.append("notes:" + "".join(f"\n- {each}" for each in recipe.notes))
        return "\n\n".join(blocks)

    def _table(self, set_: str, rule: str) -> str:
        cells = [cell for cell in self.cells if (cell.set, cell.rule) == (set_, rule)]
        tests = {
            (test.row, test.base): test
            for test in self.tests
            if (test.set, test.rule) == (set_, rule)
        }
        bases = self.recipe.base
        rows = []
        for cell in cells:
            spread = "" if math.isnan(cell.spread) else f" ± {cell.spread:.1f}"
            line = [cell.row, cell.metric, cell.seeds, f"{cell.ours}{spread}"]
            line.append("-" if cell.published is None else _published(cell.published))
            for base in bases:
                found = cell.differences.get(base)
                line.append("-" if found is None else found.text("+"))
                test = tests.get((cell.row, base))
                line.append("-" if test is None else f"{test.holm_p:.3g}")
            rows.append(line)
        less = [name for base in bases for name in (f"less {base}", "Holm p")]
        return text_table(["row", "metric", "seeds", "ours", "published", *less], rows, left=2)


def make_table(recipe: Recipe, tally: Tallies, runs: Mapping[str, AnsweredRun]) -> TableReport:
    """The report on a recipe's runs, by the names of their folders.

    Raises RequestError where no row is finished.
    """
    grouped = groups(runs)
    missing = []
    pairs: dict[str, dict[int | None, list[Pair]]] = {}
    for name in recipe.rows:
        found = {
            seed: join(runs[run].questions, runs[run].answers)
            for seed, run in grouped.get(name, {}).items()
            if len(runs[run].answers) == len(runs[run].questions)
        }
        if found:
            pairs[name] = found
        else:
            missing.append(name)
    if not pairs:
        raise RequestError(f"recipe {recipe.name}: no row is finished: run it first")
    bases = [name for name in recipe.base if name in pairs]
    cells, tests = [], []
    for rule in recipe.rules or (None,):
        counted = _by_rule(tally, rule)
        measured = {name: _measured(counted, name, found) for name, found in pairs.items()}
        less = {
            (name, base): _measured(counted, name, found, pairs[base])
            for name, found in pairs.items()
            for base in bases
            if base != name
        }
        first = {name: {each.name: each for each in counted(found[min(found, key=_order)])}
                 for name, found in pairs.items()}  # fmt: skip
        for at, set_ in enumerate(next(iter(measured.values()))):
            sets = {name: rows[at] for name, rows in measured.items()}
            read_by = next(iter(first.values()))[set_.name].rule
            cells += _cells(recipe, sets, less, at, read_by)
            alike = {
                (name, base): less_base for (name, base), less_base in less.items() if less_base
            }
            tests += _tests(set_.name, read_by, alike, first)
    order = {name: at for at, name in enumerate(dict.fromkeys(cell.set for cell in cells))}
    return TableReport(
        recipe=recipe,
        missing=tuple(missing),
        cells=tuple(sorted(cells, key=lambda cell: order[cell.set])),
        tests=tuple(tests),
    )


def _by_rule(tally: Tallies, rule: str | None) -> Tallies:
    """Only the tallies of a rule, all of which are headlines; None: the benchmark's headlines."""

    def counted(pairs: Sequence[Pair]) -> list[Tally]:
        found = tally(pairs)
        if rule is None:
            return [each for each in found if each.headline]
        some = [replace(each, headline=True) for each in found if each.rule == rule]
        if not some:
            known = ", ".join(dict.fromkeys(each.rule for each in found))
            raise RequestError(f"rules: {rule!r}: expected one of {known}")
        return some

    return counted


def _asked(pairs: Sequence[Pair]) -> set[str]:
    return {pair.question.id for pair in pairs}


def _order(seed: int | None) -> float:
    return -math.inf if seed is None else seed


def _measured(
    tally: Tallies,
    name: str,
    found: Mapping[int | None, list[Pair]],
    base: Mapping[int | None, list[Pair]] | None = None,
) -> list[OverSeeds]:
    """A row over its seeds, less a base, paired by seed where the base has the same ones; nothing
    where the base was asked other questions."""
    seeds = sorted(found, key=_order)
    ours = [found[seed] for seed in seeds]
    if base is None:
        return together(tally, name, None, _seeds(seeds), ours, ())
    if _asked(ours[0]) != _asked(next(iter(base.values()))):
        return []
    if set(seeds) <= base.keys():
        theirs = [base[seed] for seed in seeds]
    elif len(base) == 1:
        theirs = [*base.values()] * len(seeds)
    else:
        # A run in which nothing is drawn, against each of the base's.
        every = sorted(base, key=_order)
        ours, theirs = ours * (len(every) // len(ours)), [base[seed] for seed in every]
        if len(ours) != len(theirs):
            return []
    return together(tally, name, "base", _seeds(seeds), ours, theirs)


def _seeds(seeds: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(seed for seed in seeds if seed is not None)


def _cells(
    recipe: Recipe,
    sets: Mapping[str, OverSeeds],
    less: Mapping[tuple[str, str], list[OverSeeds]],
    at: int,
    rule: str,
) -> list[Cell]:
    published = {(each.row, each.set, each.metric): each for each in recipe.published}
    cells = []
    for name, found in sets.items():
        for metric, ours in found.metrics.items():
            if recipe.metrics and metric not in recipe.metrics:
                continue
            differences = {
                base: rows[at].metrics[metric]
                for (row, base), rows in less.items()
                if row == name and rows
            }
            cells.append(
                Cell(
                    set=found.name,
                    rule=rule,
                    row=name,
                    metric=metric,
                    seeds=max(1, len(found.seeds)),
                    ours=ours,
                    spread=found.spread[metric],
                    published=published.get((name, found.name, metric)),
                    differences=differences,
                )
            )
    return cells


def _tests(
    set_: str,
    rule: str,
    compared: Iterable[tuple[str, str]],
    first: Mapping[str, Mapping[str, Tally]],
) -> list[Test]:
    """Of each row and base in `compared`; corrected over the rows of a base."""
    found = []
    for base in dict.fromkeys(base for _, base in compared):
        theirs = first[base][set_].right
        some = []
        for name, other in compared:
            if other != base:
                continue
            ours = first[name][set_].right
            both = ours.keys() & theirs.keys()
            only_row = sum(ours[id] and not theirs[id] for id in both)
            only_base = sum(theirs[id] and not ours[id] for id in both)
            p = mcnemar(only_row, only_base)
            some.append(
                Test(
                    set=set_, rule=rule, row=name, base=base, only_row_right=only_row,
                    only_base_right=only_base, mcnemar_p=p, holm_p=p,
                )
            )  # fmt: skip
        corrected = holm([each.mcnemar_p for each in some])
        found += [replace(each, holm_p=p) for each, p in zip(some, corrected, strict=True)]
    return found


def _published(cell: Published) -> str:
    if cell.value is None:
        return "not known"
    return f"{cell.value:g} ({cell.trust})"
