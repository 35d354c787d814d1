"""How probable either answer of a two-way question was, for each branch, where it was decided.

That is the generated step at which the first of the two words begins, or the first step where the
answer holds neither. A word's probability is the sum over all tokens that are this word, capitals
and blanks aside ("Yes", " yes", "YES"), under the raw logits: temperature, top-p and top-k come
after. Only those tokens' probabilities are kept of a step.
Tests: tests/evaluation/test_evaluation_probabilities.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from causalmm.decoding.trace import BranchTrace, StepLogits
from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.yes_no import find_word
from causalmm.evaluation.records import Question


class WordTrace(BranchTrace):
    """Keeps, of every step and branch, the probabilities of some words: float32 [batch, words]."""

    def __init__(self, tokens: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.tokens = {word: torch.tensor(ids, dtype=torch.long) for word, ids in tokens.items()}
        self.words: list[dict[str, Tensor]] = []

    def record(self, step: StepLogits) -> None:
        self.words.append(
            {
                branch: self._probabilities(logits)
                for branch, logits in step._asdict().items()
                if logits is not None
            }
        )

    def scores(
        self, row: int, step: int, choices: tuple[str, str]
    ) -> dict[str, tuple[float, float]]:
        """Of a row's two choices at a step, under "factual", "adjusted" and each branch's name."""
        columns = [list(self.tokens).index(word) for word in choices]
        return {
            branch: tuple(values[row, columns].tolist())
            for branch, values in self.words[step].items()
        }

    def _probabilities(self, logits: Tensor) -> Tensor:
        # Moved once, not at every step.
        self.tokens = {word: ids.to(logits.device) for word, ids in self.tokens.items()}
        probabilities = logits.float().softmax(dim=-1)
        sums = [probabilities[:, ids].sum(dim=-1) for ids in self.tokens.values()]
        return torch.stack(sums, dim=-1)


def word_tokens(tokenizer: Any, word: str) -> list[int]:
    """Ids of all tokens that are `word` (lower case), capitals and blanks around it aside."""
    # Tokens as the vocabulary spells them have marks for blanks; only decoding takes them off.
    return sorted(
        number
        for token, number in tokenizer.get_vocab().items()
        if word in token.lower() and tokenizer.decode([number]).strip().lower() == word
    )


def choice_tokens(tokenizer: Any, questions: Sequence[Question]) -> dict[str, list[int]]:
    """The same of every choice of some questions, by the word; empty where there is no token."""
    choices = dict.fromkeys(word for question in questions for word in question.choices or ())
    return {word: word_tokens(tokenizer, word) for word in choices}


def every_choice_token(tokenizer: Any, questions: Sequence[Question]) -> dict[str, list[int]]:
    """The same, where an answer cannot be read without. Raises RequestError for a word that is no
    token."""
    words = choice_tokens(tokenizer, questions)
    if missing := [word for word, tokens in words.items() if not tokens]:
        raise RequestError(
            f"the tokenizer has no token {missing[0]!r}, and an answer is read from its first one"
        )
    return words


def deciding_step(tokenizer: Any, tokens: Sequence[int], choices: Sequence[str]) -> int:
    """The step at which the first of the words begins that stands by itself; 0 where none does."""
    found = find_word(_decode(tokenizer, tokens), choices)
    if found is None:
        return 0
    for step in range(len(tokens)):
        # A character that is not whole yet decodes to several of these.
        if len(_decode(tokenizer, tokens[: step + 1]).rstrip("\ufffd")) > found.start():
            return step
    return 0


def _decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
