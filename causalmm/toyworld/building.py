"""The demonstration models before training: tokenizer, processor and random weights.

Real architectures in the ordinary transformers folder format, 3 to 6 million parameters. Needs
torchvision, made importable by `causalmm.families.compat`.
"""

import random
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from causalmm.toyworld.questions import CAPTION_PROMPTS, training_questions
from causalmm.toyworld.scenes import scene

WIDTH, LANGUAGE_LAYERS = 160, 5
IMAGE_SIZE, CONTEXT = 112, 512
_VOCABULARY = 640

_LLAVA_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_LLAVA_CHAT = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}USER: "
    "{% if message.content is string %}{{ message.content }} {% else %}"
    "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %} "
    "{% endif %}"
    "{% else %}ASSISTANT: "
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{% endif %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(family: str) -> tuple[Any, Any]:
    """An untrained model and its processor. Raises ValueError for an unknown family."""
    if family not in _BUILDERS:
        raise ValueError(f"family={family!r}: expected one of {', '.join(_BUILDERS)}")
    return _BUILDERS[family]()


def _byte_pair_tokenizer(special: tuple[str, ...]) -> Tokenizer:
    """Byte-level, so that any text can be encoded; merges are learnt from the toy world's texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


@cache
def _corpus() -> tuple[str, ...]:
    """What merges are learnt from; its scenes take seconds to draw."""
    random_stream = random.Random(0)
    texts = ["USER: ASSISTANT:", "user\nassistant\nsystem\n", *CAPTION_PROMPTS] * 50
    for number in range(600):
        for question in training_questions(scene(number, split="train").items, random_stream):
            texts += [question.text, question.answer, f" {question.answer}"]
    return tuple(texts)


def _build_llava() -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        GenerationConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    tokenizer = _byte_pair_tokenizer(_LLAVA_SPECIAL)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=CONTEXT,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        ),
        tokenizer=fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_CHAT,
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=14,
        projection_dim=WIDTH,
    )
    tokens = {
        "bos_token_id": fast.bos_token_id,
        "eos_token_id": fast.eos_token_id,
        "pad_token_id": fast.pad_token_id,
    }
    text = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=WIDTH,
        intermediate_size=432,
        num_hidden_layers=LANGUAGE_LAYERS,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        **tokens,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=fast.convert_tokens_to_ids("<image>"),
        image_seq_length=(IMAGE_SIZE // 14) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**tokens)
    return model, processor


def _build_qwen2vl() -> tuple[Any, Any]:
    from transformers import (
        GenerationConfig,
        PreTrainedTokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _byte_pair_tokenizer(_QWEN_SPECIAL)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "im_start_token": "<|im_start|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
        padding_side="left",
        model_max_length=CONTEXT,
    )
    # Patches of 7 px, 2 x 2 merged: a token sees 14 px, a picture of 112 x 112 px is 64 tokens.
    sizes = {"patch_size": 7, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, **sizes),
        video_processor=Qwen2VLVideoProcessor(size=pixels, **sizes),
        tokenizer=fast,
        chat_template=_QWEN_CHAT,
    )
    tokens = {
        "bos_token_id": None,
        "eos_token_id": fast.eos_token_id,
        "pad_token_id": fast.pad_token_id,
    }
    ids = {
        name: fast.convert_tokens_to_ids(token)
        for name, token in (
            ("image_token_id", "<|image_pad|>"),
            ("video_token_id", "<|video_pad|>"),
            ("vision_start_token_id", "<|vision_start|>"),
            ("vision_end_token_id", "<|vision_end|>"),
        )
    }
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(fast),
            "hidden_size": WIDTH,
            "intermediate_size": 432,
            "num_hidden_layers": LANGUAGE_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [8, 6, 6],
                "rope_theta": 1e4,
            },
            "tie_word_embeddings": False,
            **tokens,
        },
        vision_config={
            "depth": 5,
            # Narrower: there are four patches a token.
            "embed_dim": 128,
            "hidden_size": WIDTH,
            "num_heads": 4,
            "mlp_ratio": 4,
            "patch_size": 7,
        },
        tie_word_embeddings=False,
        **ids,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**tokens)
    return model, processor


_BUILDERS = {"llava": _build_llava, "qwen2_vl": _build_qwen2vl}
