"""Visual contrastive decoding by the package `mitigv`, where that is installed.

Read and tried in 0.1.7: it runs LLaVA under this transformers, batches too, by a decoding loop of
its own with two forwards a token, one of them on an image with noise. So its cost stands beside
that of mode "vision". It has no Qwen2-VL. Installed for tests and benchmarks only.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

FAMILIES = ("llava",)
"""Those that it can run."""
SETTINGS = {"alpha": 1.0, "beta": 0.1, "seed": 0}


def available(family: str) -> bool:
    """Whether the package is here and can run models of this family."""
    return find_spec("mitigv") is not None and family in FAMILIES


def generate(
    model: Any,
    inputs: dict[str, Tensor],
    new_tokens: int,
    streamer: Any = None,
    end_token: int | None = None,
) -> Tensor:
    """New tokens int64 [B, T] of upstream's model, greedy, up to where all rows have said
    `end_token`.

    `streamer.put` gets each step's, as in transformers.
    """
    vcd = import_module("mitigv.algorithms.vcd").VCD
    adapt = import_module("mitigv.backends.factory").adapt_vision_language

    class Watched(vcd):
        def _sample_next(self, logits: Tensor, config: Any) -> Tensor:
            tokens = super()._sample_next(logits, config)
            if streamer is not None:
                streamer.put(tokens.cpu())
            return tokens

    adapted, processor = adapt("llava", model, _Prepared(inputs, end_token))
    Watched(model=adapted, processor=processor, **SETTINGS, max_new_tokens=new_tokens)(None, "")
    return torch.as_tensor(processor.new_tokens)


class _Prepared:
    """In the place of a processor: inputs that are made already."""

    pad_token_id = 0

    def __init__(self, inputs: dict[str, Tensor], end_token: int | None) -> None:
        self.inputs = inputs
        self.eos_token_id = end_token
        self.new_tokens: Tensor | None = None

    def __call__(self, **_: Any) -> dict[str, Tensor]:
        return dict(self.inputs)

    def batch_decode(self, tokens: Tensor, **_: Any) -> list[str]:
        self.new_tokens = tokens
        return [""] * len(tokens)
