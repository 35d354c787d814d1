"""End each answer of a batch at the first of some strings. Tests: tests/lmms/test_lmms_eval.py."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from causalmm.lmms_eval.decoding import is_ended


class StopStrings(StoppingCriteria):
    """For one call of `generate`: a row is done once what follows would be cut off.

    Transformers' own stop strings look at the prompt too, whose end may be the beginning of one,
    and go through the whole vocabulary at every call.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.until = until
        self.prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Of tokens [B, prompt + answer], bool [B]."""
        if self.prompt is None:
            self.prompt = input_ids.shape[1] - 1
        answers = input_ids[:, self.prompt :]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        done = [is_ended(text, self.until) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)
