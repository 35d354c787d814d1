"""A tiny LLaVA: configuration, inputs, processor, and its row for the tests."""

from typing import Any

import torch
from family_rows import FamilyRow
from tiny_words import BOS, EOS, IMAGE, PAD, VOCAB, tokenizer, words
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from llava_causalmm.family import FAMILY

SPECIAL = ["<pad>", "</s>", "<s>", "<image>", "<v4>", "<v5>", "<v6>", "<unk>"]
CHAT = (
    "{% for m in messages %}{{ 'ASSISTANT: ' if m.role == 'assistant' else 'USER: ' }}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>\n"
    "{% else %}{{ c.text }}{% endif %}{% endfor %} {% endfor %}ASSISTANT:"
)


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


def llava_sample(seed: int, before: int = 2, after: int = 3, images: int = 1) -> dict[str, Tensor]:
    """One prompt: words, `images` images of 16 tokens each, words."""
    ids = [BOS, *words(before, seed), *[IMAGE] * (16 * images), *words(after, seed + 100)]
    pixels = torch.randn(images, 3, 28, 28, generator=torch.Generator().manual_seed(seed))
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": pixels,
    }


def llava_processor() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=tokenizer(SPECIAL, {"image_token": "<image>"}, starts=True),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


ROW = FamilyRow(
    family=FAMILY,
    upstream=LlavaForConditionalGeneration,
    config=llava_config,
    sample=llava_sample,
    two_images={"images": 2},
    processor=llava_processor,
    class_token=True,
    shown="<s> USER : " + "<image> " * 16 + "what ? ASSISTANT :",
    answered="what is this ? ASSISTANT : a banana USER : is <unk> there ? ASSISTANT :",
    hub_names={
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "lm_head.": "language_model.lm_head.",
    },
    unsaid=(
        *("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"),
        "image_token",
    ),
)
