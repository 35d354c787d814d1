"""Tiny random models of the real classes: ours and upstream's with the same weights, and inputs.

Weights are drawn wider than at initialisation, so that attention is far from uniform and every
counterfactual visibly changes the output.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2VLConfig,
)
from transformers import LlavaForConditionalGeneration as UpstreamLlava
from transformers import Qwen2VLForConditionalGeneration as UpstreamQwen2VL

from llava_causalmm import LlavaForConditionalGeneration
from qwen2vl_causalmm import Qwen2VLForConditionalGeneration

PAD, EOS, BOS, IMAGE, VIDEO, VISION_START, VISION_END = range(7)
FIRST_WORD, VOCAB = 8, 64
FAMILIES = ("llava", "qwen2vl")


def llava_config(layers: int = 4, **changes: Any) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    settings = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"} | changes
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=16,
        **settings,
    )


def qwen2vl_config(layers: int = 4) -> Qwen2VLConfig:
    return Qwen2VLConfig(
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 1, 1],
                "rope_theta": 1e4,
            },
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        },
        vision_config={
            "depth": layers - 1,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 7,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )


def model_pair(family: str, attention: str = "eager", **changes: Any) -> tuple[Any, Any]:
    """Our model and upstream's, float32, same weights, generating without an end token."""
    if family == "llava":
        config, ours, upstream = (
            llava_config(**changes),
            LlavaForConditionalGeneration,
            UpstreamLlava,
        )
    else:
        config = qwen2vl_config(**changes)
        ours, upstream = Qwen2VLForConditionalGeneration, UpstreamQwen2VL
    config._attn_implementation = attention
    reference = upstream(copy.deepcopy(config)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in reference.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Vectors are norms and biases: keep norms near 1 and biases near 0.
            parameter.add_(noise * (0.25 if parameter.ndim > 1 else 0.05))
    model = ours(copy.deepcopy(config)).eval()
    model.load_state_dict(reference.state_dict())
    for each in (model, reference):
        each.generation_config.eos_token_id = None
        each.generation_config.pad_token_id = PAD
    return model, reference


def words(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, VOCAB, (count,), generator=generator).tolist()


def llava_sample(seed: int, before: int = 2, after: int = 3, images: int = 1) -> dict[str, Tensor]:
    """One prompt: words, `images` images of 16 tokens each, words."""
    ids = [BOS, *words(before, seed), *[IMAGE] * (16 * images), *words(after, seed + 100)]
    pixels = torch.randn(images, 3, 28, 28, generator=torch.Generator().manual_seed(seed))
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": pixels,
    }


def qwen2vl_sample(
    seed: int, before: int = 2, after: int = 3, grids: tuple[tuple[int, int], ...] = ((4, 4),)
) -> dict[str, Tensor]:
    """One prompt: words, one image a grid (height, width in patches), words."""
    ids, kinds = [BOS, *words(before, seed)], [0] * (1 + before)
    for height, width in grids:
        tokens = height * width // 4
        ids += [VISION_START, *[IMAGE] * tokens, VISION_END]
        kinds += [0, *[1] * tokens, 0]
    ids += words(after, seed + 100)
    kinds += [0] * after
    patches = sum(height * width for height, width in grids)
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(patches, 3 * 2 * 7 * 7, generator=generator),
        "image_grid_thw": torch.tensor([[1, height, width] for height, width in grids]),
        "mm_token_type_ids": torch.tensor([kinds], dtype=torch.int),
    }


def sample(family: str, seed: int, **shape: Any) -> dict[str, Tensor]:
    return llava_sample(seed, **shape) if family == "llava" else qwen2vl_sample(seed, **shape)


def pad_together(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One left-padded batch of single samples."""
    length = max(each["input_ids"].shape[1] for each in samples)
    batch: dict[str, list[Tensor]] = {name: [] for name in samples[0]}
    fill = {"input_ids": PAD, "attention_mask": 0, "mm_token_type_ids": 0}
    for each in samples:
        for name, value in each.items():
            if name in fill:
                missing = length - value.shape[1]
                value = torch.nn.functional.pad(value, (missing, 0), value=fill[name])
            batch[name].append(value)
    return {name: torch.cat(values) for name, values in batch.items()}
