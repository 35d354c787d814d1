"""Tiny LLaVA checkpoints written by the authors' own package, and what it makes of inputs.

`llava-torch==1.2.2.post1`, installed without its dependencies, which pin other releases of torch
and transformers. Its weights are drawn wide, so that every part of the model shows in the logits.
"""

import io
import json
import random
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaTokenizer,
)

SIDE, PATCH = 28, 7
PATCHES = (SIDE // PATCH) ** 2
WORDS = 384
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
CORPUS = (
    "a chat between a curious user and an artificial intelligence assistant . the assistant gives "
    "helpful , detailed , and polite answers to the user 's questions . USER ASSISTANT : what is "
    "this red blue house ? describe two pictures why"
)


def save_tower(folder: Path, whole: bool = False) -> Path:
    """A tiny CLIP on disk with its image processor: the vision tower, or the whole model."""
    torch.manual_seed(1)
    if whole:
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        text |= {"num_attention_heads": 2, "vocab_size": 50}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))
    else:
        model = CLIPVisionModel(CLIPVisionConfig(**VISION))
    _widen(model)
    model.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    return folder


def build(tower: Path, **settings: Any) -> LlavaLlamaForCausalLM:
    """The authors' model, tiny, float32, in eval mode, its tower loaded."""
    config = LlavaConfig(
        **{
            "vocab_size": WORDS,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "pad_token_id": 0,
            "mm_vision_tower": str(tower),
            "mm_hidden_size": VISION["hidden_size"],
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "image_aspect_ratio": "pad",
        }
        | settings
    )
    torch.manual_seed(0)
    model = LlavaLlamaForCausalLM(config)
    _widen(model)
    model.get_vision_tower().load_model()
    return model.eval()


def save(
    model: LlavaLlamaForCausalLM,
    folder: Path,
    *,
    tower: bool = False,
    pickled: bool = False,
    shards: int = 1,
    legacy: bool = False,
) -> Path:
    """A checkpoint as the authors' training leaves it: config.json, tokenizer.model, shards.

    `tower`: with the vision tower's weights, as when it was trained too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_tokenizer(folder, legacy)
    state = {
        name: each.contiguous()
        for name, each in model.state_dict().items()
        if tower or "vision_tower." not in name
    }
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    write_shards(state, folder, pickled, shards)
    return folder


def write_shards(state: dict[str, Tensor], folder: Path, pickled: bool, shards: int) -> None:
    stem, ending = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    write = torch.save if pickled else _save_safe
    if shards == 1:
        write(state, folder / f"{stem}.{ending}")
        return
    names = sorted(state)
    index = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05}-of-{shards:05}.{ending}"
        part = {name: state[name] for name in names[shard::shards]}
        write(part, folder / file)
        index |= dict.fromkeys(part, file)
    _write_json(folder / f"{stem}.{ending}.index.json", {"metadata": {}, "weight_map": index})


def save_tokenizer(folder: Path, legacy: bool = False) -> None:
    """A sentencepiece model like Llama's: byte pairs with bytes to fall back on."""
    generator = random.Random(0)
    lines = [" ".join(generator.choices(CORPUS.split(), k=12)) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=WORDS,
        byte_fallback=True,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "pad_token": "<unk>"}
    _write_json(folder / "tokenizer_config.json", settings)


def authors_prompt(turns: list[tuple[str, str | None]]) -> str:
    """A conversation in the authors' template; None is the answer to come."""
    conversation = conv_templates["vicuna_v1"].copy()
    for question, answer in turns:
        conversation.append_message(conversation.roles[0], question)
        conversation.append_message(conversation.roles[1], answer)
    return conversation.get_prompt()


def authors_ids(folder: Path, prompt: str) -> Tensor:
    """[1, T], with -200 where an image goes."""
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    return tokenizer_image_token(prompt, tokenizer, return_tensors="pt").unsqueeze(0)


def authors_pixels(model: LlavaLlamaForCausalLM, images: list[Any]) -> Tensor:
    """[N, 3, SIDE, SIDE]."""
    return process_images(images, model.get_vision_tower().image_processor, model.config)


def expanded(ids: Tensor, image_id: int, patches: int = PATCHES) -> Tensor:
    """The authors' ids, [1, T], with each -200 as `patches` image tokens."""
    rows = [
        [image_id] * patches if each == IMAGE_TOKEN_INDEX else [each] for each in ids[0].tolist()
    ]
    return torch.tensor([sum(rows, [])])


def _widen(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.25 if parameter.ndim > 1 else 0.05))


def _save_safe(state: dict[str, Tensor], file: Path) -> None:
    save_file(state, file, metadata={"format": "pt"})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
