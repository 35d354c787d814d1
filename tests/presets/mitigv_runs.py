"""Answers of the package mitigv from inputs that are made already, with what it drew them from."""

from typing import Any, NamedTuple

import torch
from mitigv.backends.factory import adapt_vision_language
from mitigv.perturbations import Perturbation, register_perturbation
from torch import Tensor

from causalmm.counterfactual.pixel_noise import gaussian, noised

NOISE = "causalmm_noise"


@register_perturbation(name=NOISE)
class OurNoise(Perturbation):
    """What the preset vcd adds to a batch of LLaVA's pictures, in place of fresh random numbers."""

    def __init__(self, seed: int, noise_step: int) -> None:
        self.seed, self.noise_step = seed, noise_step

    def __call__(self, image: Tensor) -> Tensor:
        rows = torch.arange(image.shape[1] * image.shape[2])
        noise = gaussian(self.seed, 0, rows, image.shape[3]).view(image.shape[1:])
        return noised(image, noise, self.noise_step)


class Answer(NamedTuple):
    tokens: Tensor
    """int64 [B, T]."""
    probabilities: Tensor
    """That each token was chosen by, [B, T, vocab]."""


class Prepared:
    """In the place of a processor: inputs of the prompt, and those without its picture."""

    pad_token_id = 0
    eos_token_id = None

    def __init__(self, inputs: dict[str, Tensor], without_picture: dict[str, Tensor]) -> None:
        self.inputs, self.without_picture = inputs, without_picture

    def __call__(self, *, images: Any, **_: Any) -> dict[str, Tensor]:
        return dict(self.without_picture if images is None else self.inputs)

    def batch_decode(self, tokens: Tensor, **_: Any) -> list[str]:
        return [""] * len(tokens)


def answer(
    algorithm: type, model: Any, inputs: dict[str, Tensor], tokens: int, **settings: Any
) -> Answer:
    """What an algorithm of mitigv says with upstream's LLaVA.

    Without the picture the prompt keeps its places: the tokens of the image are there, and hidden.
    """
    hidden = inputs["input_ids"] == model.config.image_token_id
    without = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"].masked_fill(hidden, 0),
    }
    chosen, probabilities = [], []

    class Watched(algorithm):
        # Inputs are padded on the left. By itself, it moves all that is hidden there, the tokens of
        # the image included, and so the text before them behind them.
        _left_pad_token_inputs = staticmethod(dict)

        def _sample_next(self, logits: Tensor, config: Any) -> Tensor:
            probabilities.append(logits.softmax(dim=-1))
            chosen.append(super()._sample_next(logits, config))
            return chosen[-1]

    adapted, processor = adapt_vision_language("llava", model, Prepared(inputs, without))
    Watched(model=adapted, processor=processor, max_new_tokens=tokens, **settings)(["picture"], "")
    return Answer(torch.cat(chosen, dim=1), torch.stack(probabilities, dim=1))
