"""The figure `tokens`: the candidates for each token of an answer. Numbers from tokens.py.

Tests: tests/figures/test_figures_drawing.py.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from causalmm.figures import colours
from causalmm.figures.canvas import NORMAL, SMALL, WIDTH, new_axes, new_figure, shortened
from causalmm.figures.tokens import Step, TokenCandidate


def tokens_figure(steps: Sequence[Step], title: str) -> Figure:
    """A panel a token: how far the adjustment moves each candidate, and what it is moved from."""
    columns = min(4, len(steps))
    rows = [steps[start : start + columns] for start in range(0, len(steps), columns)]
    left, gap, label, head, foot = 0.1, 0.16, 0.78, 0.98, 0.25
    line, caption = 0.2, 0.5
    width = (WIDTH - left - (columns - 1) * gap - 0.1) / columns
    heights = [max(len(step.candidates) for step in row) * line for row in rows]
    # Without a caption below the last row: its numbers stand in the foot.
    figure = new_figure(head + sum(heights) + (len(rows) - 1) * caption + foot, title)
    _legend(figure, steps[0])
    top = figure.get_figheight() - head
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, step in enumerate(row):
            high = len(step.candidates) * line
            place = left + column * (width + gap) + label
            axes = new_axes(figure, (place, top - high, width - label - 0.08, high))
            _step_panel(axes, step, number * columns + column)
        top -= height + caption
    return figure


def _step_panel(axes: Any, step: Step, number: int) -> None:
    axes.set_xlim(-0.06, 1.06)
    axes.set_ylim(len(step.candidates) - 0.5, -0.5)
    axes.set_axisbelow(True)
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"], fontsize=SMALL, color=colours.FAINT)
    axes.grid(axis="x", linewidth=0.4, color=colours.UNSEEN)
    labels = [shortened(each.label) for each in step.candidates]
    axes.set_yticks(range(len(labels)), labels, fontsize=NORMAL, parse_math=False)
    axes.tick_params(length=0, pad=3)
    colour = colours.CHANGED if step.changed else colours.ADJUSTED
    for candidate, label in zip(step.candidates, axes.get_yticklabels(), strict=True):
        if candidate.id == step.chosen.id:
            label.set_fontweight("bold")
            label.set_color(colour)
    name = shortened(step.chosen.label)
    if step.replaced is not None:
        name = f"{shortened(step.replaced.label)} → {name}"
    if step.changed:
        for spine in axes.spines.values():
            spine.set_color(colours.CHANGED)
            spine.set_linewidth(1.2)
    heading = {"fontsize": NORMAL + 1, "color": colour, "loc": "left", "pad": 3}
    axes.set_title(f"{number + 1}  {name}", parse_math=False, **heading)
    for position, candidate in enumerate(step.candidates):
        _candidate(axes, position, candidate)


def _candidate(axes: Any, position: int, candidate: TokenCandidate) -> None:
    def mark(probability: float, shape: str, size: float, colour: str, **look: Any) -> None:
        axes.plot(probability, position, shape, markersize=size, color=colour, **look)

    move = [candidate.factual, candidate.adjusted]
    axes.plot(move, [position, position], color=colours.ADJUSTED, linewidth=0.8)
    for name, probability in candidate.branches.items():
        mark(probability, "D", 3.6, colours.BRANCHES[name])
    ring = {"markerfacecolor": "white", "markeredgewidth": 1.3}
    mark(candidate.factual, "o", 5.5, colours.FACTUAL, **ring)
    mark(candidate.adjusted, "x" if candidate.dropped else "o", 4, colours.ADJUSTED)


def _legend(figure: Figure, step: Step) -> None:
    entries = [("factual", "o", colours.FACTUAL)]
    entries += [
        (f"{name} counterfactual", "D", colours.BRANCHES[name]) for name in step.chosen.branches
    ]
    entries.append(("adjusted", "o", colours.ADJUSTED))
    entries.append(("dropped as implausible", "x", colours.ADJUSTED))
    look = {"linestyle": "none", "markersize": 5}
    handles = [
        Line2D([], [], label=label, marker=marker, color=colour, **look)
        for label, marker, colour in entries
    ]
    handles[0].set_markerfacecolor("white")
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 1 - 0.3 / figure.get_figheight()),
        ncols=len(handles),
        fontsize=NORMAL,
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    figure.text(
        0.13 / WIDTH,
        1 - 0.62 / figure.get_figheight(),
        "bold: the token chosen; red frame: the adjustment put another token first",
        fontsize=SMALL,
        color=colours.FAINT,
        va="center",
    )
