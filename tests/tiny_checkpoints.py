"""Tiny random checkpoints on disk, complete with tokenizer, image processor and chat template."""

from pathlib import Path

import torch
from tiny_models import BOS, EOS, FIRST_WORD, PAD, VOCAB, model_pair
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

# In the order of the ids that tests/tiny_models.py gives its special tokens.
SPECIAL = {
    "llava": ["<pad>", "</s>", "<s>", "<image>", "<v4>", "<v5>", "<v6>", "<unk>"],
    "qwen2vl": [
        *("<pad>", "<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|video_pad|>"),
        *("<|vision_start|>", "<|vision_end|>", "<unk>"),
    ],
}
KNOWN = ["USER", "ASSISTANT", ":", "?", "is", "there", "a", "banana", "what", "this", "user"]
LLAVA_CHAT = (
    "{% for m in messages %}{{ 'ASSISTANT: ' if m.role == 'assistant' else 'USER: ' }}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>\n"
    "{% else %}{{ c.text }}{% endif %}{% endfor %} {% endfor %}ASSISTANT:"
)
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ 'ASSISTANT' if m.role == 'assistant' else 'user' }}\n"
    "{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif c.type == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>ASSISTANT\n"
)


def save_checkpoint(family: str, folder: Path) -> Path:
    """A model of tests/tiny_models.py with its processor, in the transformers format."""
    torch.manual_seed(0)
    model, _ = model_pair(family, "sdpa")
    # Words only: a special token would not show in an answer.
    model.generation_config.suppress_tokens = list(range(FIRST_WORD))
    model.save_pretrained(folder)
    (llava_processor() if family == "llava" else qwen2vl_processor()).save_pretrained(folder)
    return folder


def llava_processor() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=tokenizer("llava", {"image_token": "<image>"}),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )


def qwen2vl_processor(**limits: int) -> Qwen2VLProcessor:
    limits = {"min_pixels": 28 * 28, "max_pixels": 56 * 56, "patch_size": 7} | limits
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**limits),
        tokenizer=tokenizer("qwen2vl", {}),
        video_processor=Qwen2VLVideoProcessor(**limits),
        chat_template=QWEN_CHAT,
    )


def tokenizer(family: str, extra: dict[str, str]) -> PreTrainedTokenizerFast:
    """One token a word; LLaVA's puts a start token in front, as Llama's does."""
    special = SPECIAL[family]
    words = [*special, *KNOWN]
    words += [f"word{number}" for number in range(VOCAB - len(words))]
    vocabulary = {word: number for number, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(special)
    if family == "llava":
        core.post_processor = processors.TemplateProcessing(
            single=f"{special[BOS]} $A", special_tokens=[(special[BOS], BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token=special[BOS],
        eos_token=special[EOS],
        pad_token=special[PAD],
        extra_special_tokens=extra,
        padding_side="left",
    )
