"""The authors' prompt, tokens and image padding as a `LlavaProcessor`.

Held by tests/families/test_authors_format.py, against the authors' conversation templates,
tokenization around images and image preparation.
"""

import re
from typing import Any

import transformers
from transformers import AddedToken, AutoTokenizer, LlamaConfig, LlavaImageProcessor

from causalmm.decoding.model_type import HUB_OPTIONS
from causalmm.errors import RequestError
from causalmm.families.weight_files import find_file
from llava_causalmm.authors.config import (
    PADDED,
    AuthorsConfig,
    read_settings,
    tower_options,
)

IMAGE = "<image>"

VICUNA_V1 = (
    "{%- macro words(content) -%}"
    "{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}"
    "{%- endif -%}{%- endmacro -%}"
    "{%- if messages[0].role != 'system' -%}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' and loop.first -%}{{ words(message.content) + ' ' }}"
    "{%- elif message.role == 'user' -%}{{ 'USER: ' }}"
    "{%- if message.content is not string -%}"
    "{%- for part in message.content if part.type == 'image' -%}{{ '<image>\n' }}{%- endfor -%}"
    "{%- endif -%}"
    "{{ words(message.content) + ' ' }}"
    "{%- elif message.role == 'assistant' -%}"
    "{{ 'ASSISTANT: ' + words(message.content) + '</s>' }}"
    "{%- else -%}{{ raise_exception('no place for the role ' + message.role) }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)
"""Chat template of the prompt that LLaVA-1.5 was trained on; a turn's images come before its
words."""


class LlavaProcessor(transformers.LlavaProcessor):
    """Transformers' processor, tokenizing the text after an image as the authors do: by itself.

    To their tokenizer that text begins anew, with the space that begins every text; after a special
    token it would not.
    """

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Model inputs, as transformers' processor makes them."""
        if text is not None and self._anew():
            text = _spaced(text) if isinstance(text, str) else [_spaced(each) for each in text]
        return super().__call__(images=images, text=text, **kwargs)

    def _anew(self) -> bool:
        """Whether the tokenizer drops a text's first space after an image."""

        def tokens(text: str) -> list[int]:
            return self.tokenizer.encode(text, add_special_tokens=False)

        alone = [self.image_token_id, *tokens("\na")]
        return tokens(f"{IMAGE}\na") != alone and tokens(f"{IMAGE} \na") == alone

    @classmethod
    def from_pretrained(cls, source: str, **kwargs: Any) -> "LlavaProcessor":
        """The processor of a folder or hub id of the authors' format.

        Raises RequestError where the checkpoint has no tokenizer, or one that does not fit.
        """
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        config = AuthorsConfig.from_pretrained(source, **hub)
        settings = read_settings(source, **hub)
        images = LlavaImageProcessor.from_pretrained(
            settings["mm_vision_tower"],
            do_pad=PADDED[settings.get("image_aspect_ratio")],
            **tower_options(hub),
        )
        return cls(
            image_processor=images,
            tokenizer=_tokenizer(source, config.image_token_id, **hub),
            patch_size=config.vision_config.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            num_additional_image_tokens=1,  # CLIP's class token
            chat_template=VICUNA_V1,
        )


def _tokenizer(source: str, image_id: int, **hub: Any) -> Any:
    """The checkpoint's tokenizer with the image token after the model's last word."""
    names = ("tokenizer.model", "tokenizer.json")
    if all(find_file(source, name, **hub) is None for name in names):
        raise RequestError(f"{source} has no tokenizer: expected tokenizer.model or tokenizer.json")
    # Told that it is Llama's: by the name `llava`, transformers 5.23 builds one from
    # tokenizer.model that does not begin a text with a space.
    tokenizer = AutoTokenizer.from_pretrained(
        source, config=LlamaConfig(), trust_remote_code=False, **hub
    )
    # A table of words may have more rows than there are words.
    tokenizer.add_tokens([f"<unused_{number}>" for number in range(len(tokenizer), image_id)])
    tokenizer.add_tokens(AddedToken(IMAGE, special=True, normalized=False), special_tokens=True)
    if tokenizer.convert_tokens_to_ids(IMAGE) != image_id:
        raise RequestError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens with {IMAGE}, and the model "
            f"{image_id + 1}"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def _spaced(text: str) -> str:
    return re.sub(f"{IMAGE}(?! |{IMAGE}|$)", f"{IMAGE} ", text)
