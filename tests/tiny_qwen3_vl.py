"""A tiny Qwen3-VL: two DeepStack taps, learned positions that are resampled, and its row."""

from dataclasses import replace
from typing import Any

import torch
from tiny_qwen2_vl import CHAT, SPECIAL, qwen2vl_config, qwen2vl_sample
from tiny_qwen2_vl import ROW as QWEN2_VL
from tiny_words import VIDEO, VISION_END, VISION_START, tokenizer, words
from torch import Tensor
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from qwen3vl_causalmm.family import FAMILY

TAPS = [0, 2]
TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)


def qwen3vl_config(layers: int = 4, taps: list[int] | None = None) -> Qwen3VLConfig:
    settings = qwen2vl_config(layers).to_dict()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_interleaved": True}
    return Qwen3VLConfig(
        text_config={name: settings["text_config"][name] for name in TEXT}
        | {"head_dim": 16, "rope_parameters": rope | {"mrope_section": [4, 2, 2]}},
        vision_config={
            "depth": layers - 1,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 7,
            "num_position_embeddings": 9,
            "deepstack_visual_indexes": TAPS if taps is None else taps,
        },
        **{name: settings[name] for name in settings if name.endswith("token_id")},
    )


def qwen3vl_sample(seed: int, *args: Any, **shape: Any) -> dict[str, Tensor]:
    return qwen2vl_sample(seed, *args, **{"grids": ((2, 6),)} | shape)


def qwen3vl_video_sample(seed: int, before: int = 2, after: int = 3) -> dict[str, Tensor]:
    """One prompt: words, an image of 4 tokens, a video of two steps of 4 tokens each, and before
    each of them, where the processor writes its time, words, words."""
    sample = qwen2vl_sample(seed, before, after, grids=((4, 4),))
    cut = sample["input_ids"].shape[1] - after
    step = [*words(2, seed + 200), VISION_START, *[VIDEO] * 4, VISION_END]
    video = torch.tensor([[*step, *step]])
    kinds = torch.where(video == VIDEO, 2, 0).int()
    for name, part in {"input_ids": video, "mm_token_type_ids": kinds}.items():
        whole = sample[name]
        sample[name] = torch.cat([whole[:, :cut], part, whole[:, cut:]], dim=1)
    generator = torch.Generator().manual_seed(seed + 50)
    return sample | {
        "attention_mask": torch.ones_like(sample["input_ids"]),
        "pixel_values_videos": torch.randn(2 * 4 * 4, 3 * 2 * 7 * 7, generator=generator),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
    }


def qwen3vl_processor(
    patch_size: int = 7,
    images: tuple[int, int] = (28 * 28, 56 * 56),
    videos: tuple[int, int] = (28 * 28, 8 * 56 * 56),
) -> Qwen3VLProcessor:
    """Limits of the pixels of an image, and of all frames of a video together."""
    edges = ("shortest_edge", "longest_edge")
    images, videos = (dict(zip(edges, each, strict=True)) for each in (images, videos))
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size=images, patch_size=patch_size, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer(SPECIAL, {}),
        video_processor=Qwen3VLVideoProcessor(size=videos, patch_size=patch_size),
        chat_template=CHAT,
    )


ROW = replace(
    QWEN2_VL,
    family=FAMILY,
    upstream=Qwen3VLForConditionalGeneration,
    config=qwen3vl_config,
    sample=qwen3vl_sample,
    two_images={"grids": ((4, 4), (2, 6))},
    video=qwen3vl_video_sample,
    processor=qwen3vl_processor,
    hub_names={},
)
