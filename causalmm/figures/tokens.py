"""Numbers of the figure `tokens`: how likely each candidate was at each token of an answer.

Probabilities are the softmax of a branch's raw logits (causalmm/decoding/trace.py): temperature,
top-p, top-k and any repetition penalty come after. Tests: tests/figures/test_figures_tokens.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from causalmm.config import CausalMMConfig
from causalmm.decoding.contrast import ruled_out
from causalmm.decoding.trace import BranchTrace, StepLogits
from causalmm.figures import colours
from causalmm.figures.language import token_label

BRANCHES = tuple(colours.BRANCHES)
NEGLIGIBLE = 0.005


class TokenCandidate(NamedTuple):
    """A token that might have come next."""

    id: int
    label: str
    factual: float
    branches: dict[str, float]
    """By the names of BRANCHES that the plan has."""
    adjusted: float
    """0 where the plausibility mask dropped it."""
    dropped: bool


class Step(NamedTuple):
    """One token of an answer; candidates from the most to the least likely by the factual pass."""

    candidates: list[TokenCandidate]
    chosen: TokenCandidate
    factual_best: TokenCandidate
    adjusted_best: TokenCandidate

    @property
    def changed(self) -> bool:
        """Whether the adjustment put another token in first place."""
        return self.factual_best.id != self.adjusted_best.id

    @property
    def replaced(self) -> TokenCandidate | None:
        """The token whose place the chosen one took by the adjustment, if it did."""
        changed = self.changed and self.chosen.id == self.adjusted_best.id
        return self.factual_best if changed else None


class StepRecorder(BaseStreamer):
    """Makes a `Step` of every token as it comes, and empties the trace: memory stays small."""

    def __init__(self, trace: BranchTrace, make: Callable[[StepLogits, int], Step]) -> None:
        self.trace = trace
        self.make = make
        self.steps: list[Step] = []
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self.prompt_seen:
            self.steps.append(self.make(self.trace.steps[-1], value.item()))
            self.trace.steps.clear()
        self.prompt_seen = True

    def end(self) -> None:
        pass


def answer_steps(
    model: Any,
    tokenizer: Any,
    inputs: Any,
    config: CausalMMConfig,
    *,
    count: int,
    max_new_tokens: int,
    sampling: Mapping[str, Any],
    seed: int,
) -> list[Step]:
    """Answer one row of inputs under `config`; `count` candidates a token."""
    trace = BranchTrace()
    recorder = StepRecorder(trace, lambda logits, token: step(logits, token, count, tokenizer))
    torch.manual_seed(seed % 2**63)
    model.generate(
        **inputs,
        **sampling,
        causalmm=config,
        causalmm_trace=trace,
        max_new_tokens=max_new_tokens,
        streamer=recorder,
        num_beams=1,
    )
    return recorder.steps


def step(logits: StepLogits, chosen: int, count: int, tokenizer: Any) -> Step:
    """The `count` candidates that are likeliest in any of the passes, of the first row.

    Those at the top before and after the adjustment and the chosen one are always among them,
    others only where some pass finds them likelier than NEGLIGIBLE.
    """
    factual, adjusted = (
        each[0].float().softmax(dim=-1).cpu() for each in (logits.factual, logits.adjusted)
    )
    branches = {
        name: branch[0].float().softmax(dim=-1).cpu()
        for name in BRANCHES
        if (branch := getattr(logits, name)) is not None
    }
    best = factual.argmax().item(), adjusted.argmax().item()
    dropped = ruled_out(logits.adjusted[0])
    highest = torch.stack([factual, adjusted, *branches.values()]).amax(dim=0)
    likely = highest.topk(min(count, len(highest))).indices.tolist()
    likely = [token for token in likely if highest[token] > NEGLIGIBLE]
    needed = {*best, chosen}
    ids = list(dict.fromkeys([*needed, *likely]))[: max(count, len(needed))]
    candidates = {
        token: TokenCandidate(
            token,
            token_label(tokenizer, token),
            factual[token].item(),
            {name: branch[token].item() for name, branch in branches.items()},
            adjusted[token].item(),
            dropped[token].item(),
        )
        for token in sorted(ids, key=lambda token: -factual[token].item())
    }
    return Step(
        list(candidates.values()), candidates[chosen], candidates[best[0]], candidates[best[1]]
    )
