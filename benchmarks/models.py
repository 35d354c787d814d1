"""Models of the true shapes with random weights, ours and upstream's on the same weights.

A preset is a `config.json` of transformers in benchmarks/presets. Weights are copies of one block
of noise, scaled as at initialisation: the time of a product does not depend on them, and drawing
billions of numbers would take minutes.
Tests: tests/measuring/test_benchmarks.py.
"""

import copy
import json
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from causalmm.errors import RequestError
from causalmm.families.family import load_reference
from causalmm.families.registry import find

PUBLISHED = (
    *("llava-1.5-7b", "llava-1.6-mistral-7b"),
    *("qwen2-vl-2b", "qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"),
)
"""Shapes of published checkpoints."""
# cpu-small is LLaVA-1.5 in small: as deep as a CPU allows, the vision tower a tenth of the decoder;
# the others of this name the same with their families' towers.
TINY = ("tiny", "tiny-llava-1.6", "tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")
SMALL = ("cpu-small", "cpu-small-llava-1.6", "cpu-small-qwen2.5-vl", "cpu-small-qwen3-vl")
PRESETS = (*TINY, *SMALL, *PUBLISHED)
NOISE = 2**20 - 3
"""Numbers that are drawn; odd, so that rows of a matrix do not repeat one another."""
WORDS = (8, 120)
"""Tokens that text is drawn from: in every vocabulary, and special in none."""
BEFORE = 5
"""Tokens before the image, as in LLaVA-1.5's prompt."""


class ModelPair(NamedTuple):
    """Our model and upstream's; both hold the same tensors."""

    ours: Any
    upstream: Any


def build_pair(
    name: str, dtype: torch.dtype, device: torch.device, image_tokens: int = 576
) -> ModelPair:
    """Both models of a preset, ready to generate without an end token.

    Raises RequestError where the family cannot have that many image tokens.
    """
    config = configuration(name, image_tokens)
    ours = build(class_of(config.model_type, ours=True), config, dtype, device)
    fill(ours)
    return ModelPair(ours, twin(ours))


def configuration(name: str, image_tokens: int = 576) -> Any:
    """The configuration of a preset, for images of so many tokens, or for tiles of as many.

    Raises RequestError where the family cannot have that many.
    """
    file = Path(__file__).resolve().parent / "presets" / f"{name}.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    vision = settings["vision_config"]
    if "patch_size" in vision:  # all images have one size, and are square
        side = isqrt(image_tokens)
        if side * side != image_tokens or not side:
            raise RequestError(
                f"{image_tokens} image tokens: {name} has square images (576 = 24 x 24)"
            )
        size = side * vision["patch_size"]
        if (resolutions := settings.get("image_grid_pinpoints")) is not None:
            scaled = [
                [edge * size // vision["image_size"] for edge in each] for each in resolutions
            ]
            settings["image_grid_pinpoints"] = scaled
        vision["image_size"] = size
        settings["image_seq_length"] = image_tokens
    return transformers.AutoConfig.for_model(**settings)


def class_of(family: str, *, ours: bool) -> type:
    """The model class of a family: the patched one, or upstream's of the same name."""
    patched = load_reference(find(family).model_class)
    return patched if ours else getattr(transformers, patched.__name__)


def build(model_class: type, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model whose parameters are not set yet."""
    # Its buffers are: on the meta device they would be lost.
    with no_init_weights(), device:
        model = model_class._from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation="sdpa"
        )
    model.tie_weights()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def twin(model: Any) -> Any:
    """Upstream's model of the same configuration that holds the same tensors."""
    upstream = class_of(model.config.model_type, ours=False)
    other = build(upstream, model.config, model.dtype, model.device)
    other.load_state_dict(model.state_dict(), assign=True)
    return other


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Set every parameter: matrices to noise, norms to 1, biases to 0."""
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        scaled = (noise * parameter[0].numel() ** -0.5).to(parameter)
        for part in parameter.view(-1).split(NOISE):
            part.copy_(scaled[: len(part)])


def prompt(
    model: Any, *, batch: int = 1, image_tokens: int = 576, text_tokens: int = 64, question: int = 0
) -> dict[str, Tensor]:
    """Inputs of `batch` rows, one image each: text, image, text, nothing padded.

    Where pictures are cut into tiles, `image_tokens` are those of a tile, and an image has four and
    the tile that shows it whole. `question` is the seed of the text after the image; all else is
    always the same. Raises RequestError for a text that is too short.
    """
    config = model.config
    marked = hasattr(config, "vision_start_token_id")
    after = text_tokens - BEFORE - 2 * marked
    if after < 1:
        raise RequestError(
            f"{text_tokens} tokens of text: expected at least {text_tokens + 1 - after}"
        )
    generator = torch.Generator().manual_seed(0)
    asking = torch.Generator().manual_seed(question)
    count = image_tokens
    if hasattr(config, "image_grid_pinpoints"):  # a token ends each line of patches of two tiles
        side = 2 * isqrt(image_tokens)
        count += side * (side + 1)
    image = torch.full((batch, count), config.image_token_id)
    if marked:
        marks = (config.vision_start_token_id, config.vision_end_token_id)
        opened, closed = (torch.full((batch, 1), mark) for mark in marks)
        image = torch.cat([opened, image, closed], dim=1)
    before = torch.randint(*WORDS, (batch, BEFORE), generator=generator)
    ids = torch.cat([before, image, torch.randint(*WORDS, (batch, after), generator=asking)], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= _pictures(config, batch, image_tokens, generator)
    if marked:
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()
    return {
        key: part.to(model.device, model.dtype if part.is_floating_point() else None)
        for key, part in inputs.items()
    }


def _pictures(
    config: Any, batch: int, image_tokens: int, generator: torch.Generator
) -> dict[str, Tensor]:
    vision = config.vision_config
    if hasattr(vision, "image_size"):
        size = vision.image_size
        if hasattr(config, "image_grid_pinpoints"):
            return {
                "pixel_values": torch.randn(batch, 5, 3, size, size, generator=generator),
                "image_sizes": torch.tensor([[2 * size, 2 * size]] * batch),
            }
        return {"pixel_values": torch.randn(batch, 3, size, size, generator=generator)}
    height = next(n for n in range(isqrt(image_tokens), 0, -1) if image_tokens % n == 0)
    merge = vision.spatial_merge_size
    grid = [1, height * merge, image_tokens // height * merge]
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": torch.randn(batch * grid[1] * grid[2], values, generator=generator),
        "image_grid_thw": torch.tensor([grid] * batch),
    }
