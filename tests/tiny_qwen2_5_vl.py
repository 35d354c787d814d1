"""A tiny Qwen2.5-VL: windows of 2 x 2 tokens in all vision layers but one, and its row."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tiny_qwen2_vl import ROW as QWEN2_VL
from tiny_qwen2_vl import qwen2vl_config, qwen2vl_sample, qwen2vl_video_sample
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from qwen2_5vl_causalmm.family import FAMILY

WINDOW = 4  # patches


def qwen2_5vl_config(layers: int = 4) -> Qwen2_5_VLConfig:
    settings = qwen2vl_config(layers).to_dict()
    text = {name: settings["text_config"][name] for name in TEXT}
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": layers - 1,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 7,
            "window_size": 7 * WINDOW,
            "fullatt_block_indexes": [1],
        },
        **{name: settings[name] for name in settings if name.endswith("token_id")},
    )


TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rope_parameters"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)


def qwen2_5vl_processor() -> Qwen2_5_VLProcessor:
    same = QWEN2_VL.processor()
    names = ("image_processor", "tokenizer", "video_processor", "chat_template")
    return Qwen2_5_VLProcessor(**{name: getattr(same, name) for name in names})


def video_sample(seed: int, before: int = 2, after: int = 3) -> dict[str, Tensor]:
    """As Qwen2-VL's, of a video whose steps are half a second long, or longer by the seed."""
    sample = qwen2vl_video_sample(seed, before, after)
    return sample | {"second_per_grid_ts": torch.tensor([0.5 + 0.25 * (seed % 4)])}


def window_starts(config: Any, sample: dict[str, Tensor], layer: int) -> list[int]:
    """Where each frame begins, or in most layers each window of it: rows of windows from top to
    bottom, those at the right and lower edge as small as what is left."""
    whole = layer in config.vision_config.fullatt_block_indexes
    starts = []
    for name in ("image_grid_thw", "video_grid_thw"):
        for steps, height, width in sample.get(name, torch.zeros(0, 3).int()).tolist():
            for _ in range(steps):
                start = 0
                for top in range(0, height, height if whole else WINDOW):
                    for left in range(0, width, width if whole else WINDOW):
                        starts.append(start)
                        rows = height if whole else min(WINDOW, height - top)
                        start += rows * (width if whole else min(WINDOW, width - left))
    return starts


ROW = replace(
    QWEN2_VL,
    family=FAMILY,
    upstream=Qwen2_5_VLForConditionalGeneration,
    config=qwen2_5vl_config,
    sample=partial(qwen2vl_sample, grids=((6, 8),)),
    two_images={"grids": ((6, 8), (2, 6))},
    video=video_sample,
    vision_starts=window_starts,
    processor=qwen2_5vl_processor,
)
