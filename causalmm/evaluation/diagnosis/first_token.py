"""What every view says of a two-way question at the first token of the answer.

A view is the factual model, a counterfactual branch by itself, or the adjusted logits. It says the
choice of which its most probable token is a spelling; a token that spells neither says nothing that
can be read. Entropy and divergence are over the whole vocabulary, in nats.
Tests: tests/evaluation/test_diagnose.py.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from causalmm.decoding.contrast import ruled_out
from causalmm.decoding.trace import BranchTrace, StepLogits
from causalmm.evaluation.records import ViewChoice


class FirstTokens(BranchTrace):
    """Keeps of one step what each view says in every row; logits are not kept."""

    def __init__(self, tokens: Mapping[str, Sequence[int]]) -> None:
        """Takes the ids of the tokens that spell each word, see `probabilities.word_tokens`."""
        super().__init__()
        self.tokens = tokens
        self.views: dict[str, _View] = {}

    def record(self, step: StepLogits) -> None:
        if self.views:  # of the first token only
            return
        factual = step.factual.float().log_softmax(dim=-1)
        weights = factual.exp()
        for name, logits in step._asdict().items():
            if logits is None or name == "unmasked":
                continue
            own = logits.float().log_softmax(dim=-1).masked_fill(ruled_out(logits), -torch.inf)
            probabilities = own.exp()
            # 0 x (log 0 - log 0) is 0: what neither thinks possible tells them apart in nothing.
            gaps = torch.where(weights > 0, weights * (factual - own), 0.0)
            self.views[name] = _View(
                best=own.argmax(dim=-1).tolist(),
                words={
                    word: probabilities[:, list(ids)].sum(dim=-1).tolist()
                    for word, ids in self.tokens.items()
                },
                entropy=torch.special.entr(probabilities).sum(dim=-1).tolist(),
                divergence=gaps.sum(dim=-1).clamp_min(0).tolist(),
            )

    def said(self, row: int, choices: Sequence[str]) -> dict[str, ViewChoice]:
        """Of a row's question, under "factual", "adjusted" and the name of each branch."""
        found = {}
        for name, view in self.views.items():
            best, divergence = view.best[row], view.divergence[row]
            spelled = [place for place, word in enumerate(choices) if best in self.tokens[word]]
            found[name] = ViewChoice(
                spelled[0] if spelled else None,
                *(view.words[word][row] for word in choices),
                view.entropy[row],
                None if divergence == float("inf") else divergence,
            )
        return found


class _View(NamedTuple):
    """Of all rows of a batch."""

    best: list[int]
    words: dict[str, list[float]]
    entropy: list[float]
    divergence: list[float]
