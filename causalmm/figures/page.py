"""The tokens of an answer as one page of HTML that needs nothing beside it: no file, no script.

Held by tests/figures/test_figures_tokens.py.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from causalmm.figures import colours
from causalmm.figures.tokens import BRANCHES, Candidate, Step

_COLOURED = ("factual", *BRANCHES, "adjusted")
_BARS = "\n".join(f".{name} .bar {{ background: var(--{name}); }}" for name in _COLOURED)
_STYLE = f"""
:root {{ color-scheme: light dark;
  --paper: #fff; --ink: #1a1a1a; --faint: #6b6b6b; --line: #e2e2e2; --card: #fafafa;
  --factual: {colours.FACTUAL}; --adjusted: #1a1a1a; --changed: {colours.CHANGED};
  --vision: {colours.BRANCHES["vision"]}; --language: {colours.BRANCHES["language"]};
  --joint: {colours.BRANCHES["joint"]}; }}
@media (prefers-color-scheme: dark) {{ :root {{
  --paper: #16181b; --ink: #e8e8e8; --faint: #a0a0a0; --line: #34373b; --card: #1e2125;
  --factual: #56b4e9; --adjusted: #e8e8e8; --changed: #ff7a52; }} }}
body {{ margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }}
main {{ max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem; }}
h1 {{ font-size: 1.5rem; margin: 0 0 1rem; }}
h2 {{ font-size: 1rem; margin: 0 0 .5rem; }}
h2 small, .faint, figcaption {{ color: var(--faint); font-weight: normal; }}
.question {{ display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }}
.question img {{ width: 12rem; border-radius: .4rem; display: block; margin-bottom: .5rem; }}
.question > div {{ flex: 1 1 20rem; }}
.prompt {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 1rem; }}
.answer {{ line-height: 2.1; }}
.answer a {{ color: inherit; text-decoration: none; padding: .15rem .4rem; margin-right: .15rem;
  border: 1px solid var(--line); border-radius: .4rem; white-space: pre; }}
.answer a:hover, .answer a:focus {{ border-color: var(--ink); }}
.changed del {{ color: var(--faint); }}
.answer .changed, li.changed {{ border-color: var(--changed) !important; }}
.changed ins {{ color: var(--changed); text-decoration: none; font-weight: 600; }}
ol {{ list-style: none; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(27rem, 1fr)); }}
@media (max-width: 30rem) {{ ol {{ grid-template-columns: 1fr; }} }}
li {{ border: 1px solid var(--line); border-radius: .5rem; background: var(--card);
  padding: .8rem 1rem; overflow-x: auto; }}
li:target {{ outline: 2px solid var(--factual); }}
table {{ border-collapse: collapse; width: 100%; font-size: .85rem; }}
li table {{ table-layout: fixed; min-width: 24rem; }}
th {{ text-align: left; font-weight: normal; padding: .1rem .6rem .1rem 0;
  overflow-wrap: anywhere; }}
thead th {{ color: var(--faint); font-size: .7rem; line-height: 1.2; vertical-align: bottom;
  overflow-wrap: normal; }}
.chosen th {{ font-weight: 700; }}
td {{ padding: .1rem .6rem .1rem 0; font-variant-numeric: tabular-nums; }}
.bar {{ display: block; height: .3rem; width: var(--share); border-radius: .15rem; }}
{_BARS}
details {{ margin: 1rem 0 2rem; }}
details table {{ width: auto; }}
details th {{ padding-right: 2rem; }}
"""


def page(
    steps: Sequence[Step],
    *,
    prompt: str,
    pictures: Sequence[np.ndarray],
    model: str,
    settings: Mapping[str, Any],
) -> str:
    """The page. Pictures are uint8 [height, width, 3]; settings are listed as they are."""
    changed = sum(step.changed for step in steps)
    images = "".join(f'<img alt="picture {n}" src="{_data(p)}">' for n, p in enumerate(pictures, 1))
    answer = "".join(_chip(number, step) for number, step in enumerate(steps, 1))
    listed = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in settings.items()
    )
    cards = "".join(_card(number, step) for number, step in enumerate(steps, 1))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(model)}: an answer, token by token</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>An answer, token by token</h1>\n"
        f'<div class="question"><div style="flex: 0 0 12rem">{images}</div>\n<div>'
        f'<p class="faint">{escape(model)} was asked</p>'
        f'<p class="prompt">{escape(prompt)}</p>'
        f'<p class="faint">and answered; the adjustment changed {changed} of {len(steps)} tokens'
        f'</p><p class="answer">{answer}</p></div></div>\n'
        f"<details><summary>Settings</summary><table>{listed}</table></details>\n"
        '<p class="faint">Probabilities of the likeliest candidates at each token: as the model '
        "says without intervention (factual), with counterfactual attention, and after the "
        "contrast (adjusted). The chosen token is bold.</p>\n"
        f"<ol>{cards}</ol>\n</main>\n</body>\n</html>\n"
    )


def _data(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _chip(number: int, step: Step) -> str:
    kind = ' class="changed"' if step.changed else ""
    return f'<a href="#token{number}"{kind}>{_name(step)}</a> '


def _name(step: Step) -> str:
    """The token, and where the adjustment put it first, the one it took the place of."""
    chosen = escape(step.chosen.label)
    if step.replaced is None:
        return f"<span>{chosen}</span>"
    return f"<del>{escape(step.replaced.label)}</del> <ins>{chosen}</ins>"


def _card(number: int, step: Step) -> str:
    names = [name for name in BRANCHES if name in step.chosen.branches]
    head = "".join(f"<th>{name}<br>counterfactual</th>" for name in names)
    rows = "".join(_row(candidate, step, names) for candidate in step.candidates)
    kind = ' class="changed"' if step.changed else ""
    return (
        f'<li id="token{number}"{kind}>'
        f"<h2><small>{number}</small> {_name(step)}</h2>"
        f"<table><thead><tr><th>token</th><th>factual</th>{head}<th>adjusted</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></li>\n"
    )


def _row(candidate: Candidate, step: Step, names: Sequence[str]) -> str:
    shares = [("factual", candidate.factual)]
    shares += [(name, candidate.branches[name]) for name in names]
    cells = "".join(_cell(name, share) for name, share in shares)
    last = (
        '<td class="adjusted faint">dropped</td>'
        if candidate.dropped
        else _cell("adjusted", candidate.adjusted)
    )
    kind = ' class="chosen"' if candidate.id == step.chosen.id else ""
    return f"<tr{kind}><th>{escape(candidate.label)}</th>{cells}{last}</tr>"


def _cell(name: str, share: float) -> str:
    return (
        f'<td class="{name}">{share:.1%}'
        f'<span class="bar" style="--share: {100 * share:.1f}%"></span></td>'
    )
