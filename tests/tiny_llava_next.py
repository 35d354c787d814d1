"""A tiny LLaVA-NeXT: pictures of two or four tiles and their base tile, a Mistral, and its row."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tiny_llava import ROW as LLAVA
from tiny_llava import llava_config
from tiny_words import BOS, IMAGE, words
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    MistralConfig,
    PreTrainedConfig,
)

from llavanext_causalmm.family import FAMILY

TILE, PATCH = 14, 7  # pixels
PINPOINTS = [[14, 28], [28, 14], [28, 28]]
MOST_TILES = 5
LENGTH = (TILE // PATCH) ** 2 + 1
"""Tokens of a tile in the vision tower, the class token included."""


def llava_next_config(
    layers: int = 4,
    text: type[PreTrainedConfig] = MistralConfig,
    sliding_window: int | None = None,
    **changes: Any,
) -> LlavaNextConfig:
    same = llava_config(layers)
    same.vision_config.image_size = TILE
    shape = {name: getattr(same.text_config, name) for name in TEXT}
    only = {"sliding_window": sliding_window} if text is MistralConfig else {}
    settings = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"} | changes
    return LlavaNextConfig(
        vision_config=same.vision_config,
        text_config=text(**shape, **only),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        **settings,
    )


TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)


def tiles(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tiles of a picture of so many pixels: those of the resolution that keeps
    most of them, and of several such the smallest."""

    def merit(resolution: list[int]) -> tuple[int, int]:
        down, across = resolution
        wide = across * height <= down * width  # as wide as the resolution
        shown = (across * height // width, across) if wide else (down, down * width // height)
        return min(shown[0] * shown[1], height * width), -down * across

    down, across = max(PINPOINTS, key=merit)
    return down // TILE, across // TILE


def tokens(height: int, width: int) -> int:
    """Image tokens of a picture: its base tile's, then rows of patches without those that are
    padding on both sides, each with a token that ends it."""
    side = TILE // PATCH
    rows, columns = (count * side for count in tiles(height, width))
    if width * rows > height * columns:
        rows -= (rows - height * columns // width) // 2 * 2
    else:
        columns -= (columns - width * rows // height) // 2 * 2
    return side * side + rows * (columns + 1)


def llava_next_sample(
    seed: int, before: int = 2, after: int = 3, sizes: tuple[tuple[int, int], ...] = ((24, 40),)
) -> dict[str, Tensor]:
    """One prompt: words, a picture a size (height, width), words."""
    count = sum(tokens(*size) for size in sizes)
    ids = [BOS, *words(before, seed), *[IMAGE] * count, *words(after, seed + 100)]
    # Tiles that a picture does not have are there too, and must not be read.
    shape = (len(sizes), MOST_TILES, 3, TILE, TILE)
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(seed)),
        "image_sizes": torch.tensor(sizes),
    }


def count_tiles(sample: dict[str, Tensor]) -> list[int]:
    """Tiles of each picture, the base tile included."""
    grids = [tiles(*size) for size in sample["image_sizes"].tolist()]
    return [1 + rows * columns for rows, columns in grids]


def tile_starts(config: Any, sample: dict[str, Tensor], layer: int) -> list[int]:
    """Where each tile begins in its picture, the base tile being the first."""
    return [tile * LENGTH for count in count_tiles(sample) for tile in range(count)]


def llava_next_processor() -> LlavaNextProcessor:
    same = LLAVA.processor()
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": TILE},
            crop_size={"height": TILE, "width": TILE},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=same.tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=same.chat_template,
    )


ROW = replace(
    LLAVA,
    family=FAMILY,
    upstream=LlavaNextForConditionalGeneration,
    config=llava_next_config,
    sample=llava_next_sample,
    two_images={"sizes": ((24, 40), (40, 12))},
    vision_starts=tile_starts,
    processor=llava_next_processor,
    shown="<s> USER : " + "<image> " * tokens(9, 9) + "what ? ASSISTANT :",
    hub_names=LLAVA.hub_names | {"model.image_newline": "image_newline"},
)
LLAMA = replace(ROW, config=partial(llava_next_config, text=LlamaConfig))
"""The same with the decoder of LLaVA-1.6-Vicuna."""
