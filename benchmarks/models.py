"""Models of the true shapes with random weights, ours and upstream's on the same weights.

Weights are copies of one block of noise, scaled as at initialisation: what a product takes does
not depend on them, and drawing billions of numbers would take minutes.
Held by tests/measuring/test_benchmarks.py.
"""

import copy
from dataclasses import dataclass
from math import isqrt
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from causalmm.errors import RequestError
from causalmm.families.family import load_reference
from causalmm.families.registry import find

NOISE = 2**20 - 3
"""Numbers that are drawn; odd, so that rows of a matrix do not repeat one another."""
WORDS = (8, 120)
"""Tokens that text is drawn from: in every vocabulary, and special in none."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The shape of a model."""

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    image_token: int
    tied: bool = False
    before: int = 5
    """Tokens of the usual prompt before its image."""


def _clip(width: int, layers: int, heads: int, patch: int = 14) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
        "projection_dim": 768,
    }


def _decoder(
    width: int, inner: int, layers: int, heads: int, shared: int, vocab: int
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "vocab_size": vocab,
    }


_MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
PRESETS = {
    "tiny": Preset(
        family="llava",
        text=_decoder(32, 64, 6, 4, 2, 128),
        vision=_clip(32, 4, 2),
        image_token=127,
    ),
    "tiny-qwen2-vl": Preset(
        family="qwen2_vl",
        text=_decoder(32, 64, 6, 4, 2, 128)
        | {"rope_parameters": _MROPE | {"mrope_section": [2, 1, 1]}},
        vision={"depth": 3, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token=127,
        before=15,
    ),
    # LLaVA-1.5 in small: as deep as it pays to be, the vision tower a tenth of the decoder.
    "cpu-small": Preset(
        family="llava",
        text=_decoder(1024, 2816, 24, 16, 16, 32064) | {"rms_norm_eps": 1e-5},
        vision=_clip(512, 12, 8),
        image_token=32000,
    ),
    "llava-1.5-7b": Preset(
        family="llava",
        text=_decoder(4096, 11008, 32, 32, 32, 32064) | {"rms_norm_eps": 1e-5},
        vision=_clip(1024, 24, 16),
        image_token=32000,
    ),
    "qwen2-vl-2b": Preset(
        family="qwen2_vl",
        text=_decoder(1536, 8960, 28, 12, 2, 151936)
        | {"rms_norm_eps": 1e-6, "rope_parameters": _MROPE},
        vision={"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16},
        image_token=151655,
        tied=True,
        before=15,
    ),
    "qwen2-vl-7b": Preset(
        family="qwen2_vl",
        text=_decoder(3584, 18944, 28, 28, 4, 152064)
        | {"rms_norm_eps": 1e-6, "rope_parameters": _MROPE},
        vision={"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16},
        image_token=151655,
        before=15,
    ),
}


class Pair(NamedTuple):
    """Our model and upstream's; both hold the same tensors."""

    ours: Any
    upstream: Any


def build_pair(
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attn: str = "sdpa",
    image_tokens: int = 576,
) -> Pair:
    """Both models of a preset, ready to generate without an end token.

    Raises RequestError where the family cannot have that many image tokens.
    """
    config = configuration(name, image_tokens)
    ours = build(class_of(PRESETS[name].family, ours=True), config, dtype, device, attn)
    fill(ours)
    return Pair(ours, twin(ours, attn))


def configuration(name: str, image_tokens: int = 576) -> Any:
    """The configuration of a preset, for images of so many tokens."""
    preset = PRESETS[name]
    if preset.family == "qwen2_vl":
        return transformers.Qwen2VLConfig(
            text_config=preset.text | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            vision_config=preset.vision,
            image_token_id=preset.image_token,
            video_token_id=preset.image_token - 1,
            vision_start_token_id=preset.image_token - 3,
            vision_end_token_id=preset.image_token - 2,
            tie_word_embeddings=preset.tied,
        )
    side = isqrt(image_tokens)
    if side * side != image_tokens or not side:
        raise RequestError(f"{image_tokens} image tokens: {name} has square images (576 = 24 x 24)")
    size = side * preset.vision["patch_size"]
    return transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**preset.vision, image_size=size),
        text_config=transformers.LlamaConfig(
            **preset.text, max_position_embeddings=4096, pad_token_id=0
        ),
        image_token_index=preset.image_token,
        image_seq_length=image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def class_of(family: str, *, ours: bool) -> type:
    """The model class of a family: the patched one or upstream's."""
    patched = load_reference(find(family).model_class)
    return patched if ours else getattr(transformers, patched.__name__)


def build(
    model_class: type, config: Any, dtype: torch.dtype, device: torch.device, attn: str
) -> Any:
    """A model whose parameters are not set yet."""
    # Its buffers are: on the meta device they would be lost.
    with no_init_weights(), device:
        model = model_class._from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation=attn
        )
    model.tie_weights()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def twin(model: Any, attn: str = "sdpa") -> Any:
    """Upstream's model of the same configuration that holds the same tensors."""
    upstream = class_of(model.config.model_type, ours=False)
    other = build(upstream, model.config, model.dtype, model.device, attn)
    other.load_state_dict(model.state_dict(), assign=True)
    return other


@torch.no_grad()
def fill(model: nn.Module, seed: int = 0) -> None:
    """Set every parameter: matrices to noise, norms to 1, biases to 0."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(NOISE, generator=generator)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        scaled = (noise * parameter[0].numel() ** -0.5).to(parameter)
        for part in parameter.view(-1).split(NOISE):
            part.copy_(scaled[: len(part)])


def prompt(
    name: str,
    model: Any,
    *,
    batch: int = 1,
    image_tokens: int = 576,
    text_tokens: int = 64,
    seed: int = 0,
    question: int = 0,
) -> dict[str, Tensor]:
    """Inputs of `batch` rows, one image each: text, image, text, nothing padded.

    `seed` gives the images and what comes before them, `question` the text after. Raises
    RequestError for a text that is too short.
    """
    preset = PRESETS[name]
    marked = preset.family == "qwen2_vl"
    after = text_tokens - preset.before - 2 * marked
    if after < 1:
        raise RequestError(f"{text_tokens} tokens of text: {name} needs {text_tokens + 1 - after}")
    generator = torch.Generator().manual_seed(seed)
    asking = torch.Generator().manual_seed(question)

    def words(count: int, source: torch.Generator) -> Tensor:
        return torch.randint(*WORDS, (batch, count), generator=source)

    config = model.config
    image = torch.full((batch, image_tokens), config.image_token_id)
    if marked:
        marks = (config.vision_start_token_id, config.vision_end_token_id)
        opened, closed = (torch.full((batch, 1), mark) for mark in marks)
        image = torch.cat([opened, image, closed], dim=1)
    ids = torch.cat([words(preset.before, generator), image, words(after, asking)], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= _pictures(model, batch, image_tokens, generator)
    if marked:
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()
    return {
        key: part.to(model.device, model.dtype if part.is_floating_point() else None)
        for key, part in inputs.items()
    }


def _pictures(
    model: Any, batch: int, image_tokens: int, generator: torch.Generator
) -> dict[str, Tensor]:
    vision = model.config.vision_config
    if model.config.model_type == "llava":
        size = vision.image_size
        return {"pixel_values": torch.randn(batch, 3, size, size, generator=generator)}
    height = next(n for n in range(isqrt(image_tokens), 0, -1) if image_tokens % n == 0)
    merge = vision.spatial_merge_size
    grid = [1, height * merge, image_tokens // height * merge]
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": torch.randn(batch * grid[1] * grid[2], values, generator=generator),
        "image_grid_thw": torch.tensor([grid] * batch),
    }
