"""A tiny Qwen2-VL: configuration, inputs, processor, and its row for the tests."""

import torch
from family_rows import FamilyRow
from tiny_words import (
    BOS,
    EOS,
    IMAGE,
    PAD,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCAB,
    tokenizer,
    words,
)
from torch import Tensor
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from qwen2vl_causalmm.family import FAMILY

SPECIAL = [
    *("<pad>", "<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|vision_start|>", "<|vision_end|>", "<unk>"),
]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ 'ASSISTANT' if m.role == 'assistant' else 'user' }}\n"
    "{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif c.type == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>ASSISTANT\n"
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


def qwen2vl_video_sample(seed: int, before: int = 2, after: int = 3) -> dict[str, Tensor]:
    """One prompt: words, an image of 4 tokens, a video of two steps of 4 tokens each, words."""
    sample = qwen2vl_sample(seed, before, after, grids=((4, 4),))
    cut = sample["input_ids"].shape[1] - after
    video = torch.tensor([[VISION_START, *[VIDEO] * 8, VISION_END]])
    kinds = torch.tensor([[0, *[2] * 8, 0]], dtype=torch.int)
    for name, part in {"input_ids": video, "mm_token_type_ids": kinds}.items():
        whole = sample[name]
        sample[name] = torch.cat([whole[:, :cut], part, whole[:, cut:]], dim=1)
    generator = torch.Generator().manual_seed(seed + 50)
    return sample | {
        "attention_mask": torch.ones_like(sample["input_ids"]),
        "pixel_values_videos": torch.randn(2 * 4 * 4, 3 * 2 * 7 * 7, generator=generator),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
    }


def qwen2vl_processor(**limits: int) -> Qwen2VLProcessor:
    limits = {"min_pixels": 28 * 28, "max_pixels": 56 * 56, "patch_size": 7} | limits
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**limits),
        tokenizer=tokenizer(SPECIAL, {}),
        video_processor=Qwen2VLVideoProcessor(**limits),
        chat_template=CHAT,
    )


ROW = FamilyRow(
    family=FAMILY,
    upstream=Qwen2VLForConditionalGeneration,
    config=qwen2vl_config,
    sample=qwen2vl_sample,
    two_images={"grids": ((4, 4), (2, 6))},
    video=qwen2vl_video_sample,
    processor=qwen2vl_processor,
    shown="<|im_start|> user <|vision_start|> "
    + "<|image_pad|> " * 4
    + "<|vision_end|> what ? <|im_end|> <|im_start|> ASSISTANT",
    answered="what is this ? <|im_end|> <|im_start|> ASSISTANT a banana <|im_end|> "
    "<|im_start|> user is <unk> there ? <|im_end|> <|im_start|> ASSISTANT",
    hub_names={"model.language_model.": "model.", "model.visual.": "visual."},
    unsaid=("patch_size", "merge_size", "temporal_patch_size"),
    processor_parts=("image_processor", "video_processor"),
)
