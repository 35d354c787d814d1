"""A control that leans toward "yes" at the output layer (arXiv 2504.10020).

That paper shows that part of what contrastive decoding gains on POPE is gained by a yes where the
model hesitates between yes and no: in the paper's code, where p(yes) + p(no) > 0.2 and
|p(yes) - p(no)| < 0.5. Its other control asks for a yes in the prompt (variants.py).
Tests: tests/evaluation/test_spurious.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from causalmm.errors import RequestError
from causalmm.evaluation.probabilities import word_tokens

BOTH, APART = 0.2, 0.5
"""At least so much of the probability is on the two words, and they are no more apart."""


class YesInDoubt(LogitsProcessor):
    """Makes "yes" the best token at each step where the model hesitates.

    `yes` and `no` are the tokens that spell the words. The best of the former is chosen.
    """

    def __init__(self, yes: Sequence[int], no: Sequence[int]) -> None:
        self.yes, self.no = list(yes), list(no)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, vocab] with the best token of "yes" above all others where in doubt."""
        probabilities = scores.float().softmax(dim=-1)
        yes, no = (probabilities[:, words].sum(dim=-1) for words in (self.yes, self.no))
        doubt = (yes + no > BOTH) & ((yes - no).abs() < APART)
        best = torch.tensor(self.yes, device=scores.device)[scores[:, self.yes].argmax(dim=-1)]
        chosen = scores.scatter(1, best[:, None], scores.amax(dim=-1, keepdim=True) + 1)
        return torch.where(doubt[:, None], chosen, scores)


def yes_in_doubt(tokenizer: Any) -> LogitsProcessorList:
    """The control for the words of a tokenizer. Raises RequestError where a word is no token."""
    yes, no = (word_tokens(tokenizer, word) for word in ("yes", "no"))
    if not yes or not no:
        raise RequestError("--spurious: the tokenizer has no token for yes, or none for no")
    return LogitsProcessorList([YesInDoubt(yes, no)])
