"""What a model in the format of LLaVA's authors has of its own: word tables, loading, saving.

Tests: tests/families/test_authors_format.py.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import GenerationConfig, LlavaConfig

from causalmm.decoding.model_type import HUB_OPTIONS
from llava_causalmm.authors.config import AuthorsConfig, read_settings
from llava_causalmm.authors.weights import read_tensors

UNREACHABLE = -3e4
"""Logit of the image token: probability 0 in float32 beside any other, finite in float16, and small
enough that a contrast of several branches stays finite."""

_EMBEDDING = "model.language_model.embed_tokens.weight"
_HEAD = "lm_head.weight"


class WordEmbedding(nn.Embedding):
    """Words [V, H], and zeros for id V, the image token, whose place the features take."""

    def forward(self, ids: Tensor) -> Tensor:
        """[...] int64 -> [..., H]."""
        image = ids == self.num_embeddings
        return super().forward(ids.masked_fill(image, 0)).masked_fill(image.unsqueeze(-1), 0)


class WordHead(nn.Linear):
    """Logits of V words, and `UNREACHABLE` for id V, the image token."""

    def forward(self, states: Tensor) -> Tensor:
        """[..., H] -> [..., V + 1]."""
        return pad(super().forward(states), (0, 1), value=UNREACHABLE)


class AuthorsFormat:
    """Before `LlavaForConditionalGeneration`: the authors' word tables, V rows for V + 1 ids."""

    config_class = AuthorsConfig

    def __init__(self, config: LlavaConfig):
        super().__init__(config)
        text = config.text_config
        words = text.vocab_size - 1
        self.model.language_model.embed_tokens = WordEmbedding(
            words, text.hidden_size, text.pad_token_id
        )
        self.lm_head = WordHead(text.hidden_size, words, bias=False)

    @classmethod
    def from_pretrained(
        cls, source: str, *args: Any, config: LlavaConfig | None = None, **kwargs: Any
    ) -> Any:
        """The model of a folder or hub id of the authors' format.

        Transformers' own loading does all but finding and naming the tensors, so its keywords mean
        what they mean there; pickled weights are always opened as tensors only. Raises RequestError
        for a checkpoint that is no LLaVA-1.5 or not whole.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        kwargs.pop("weights_only", None)
        config = config or AuthorsConfig.from_pretrained(source, **hub)
        kwargs.setdefault("generation_config", _generation_config(source, **hub))
        state = read_tensors(source, read_settings(source, **hub), **hub)
        loaded = super().from_pretrained(None, *args, config=config, state_dict=state, **kwargs)
        built = loaded[0] if isinstance(loaded, tuple) else loaded
        built.name_or_path = built.config.name_or_path = str(source)
        return loaded

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        """Save in the transformers format: the image token gets its rows in both word tables.

        Its rows are another word's, so it never changes which logit is greatest, and the generation
        configuration suppresses it.
        """
        if kwargs.get("state_dict") is None:
            state = self.state_dict()
            for table in (_EMBEDDING, _HEAD):
                state[table] = torch.cat([state[table], state[table][:1]])
            kwargs["state_dict"] = state
        own = self.generation_config
        self.generation_config = copy.deepcopy(own)
        self.generation_config.suppress_tokens = [
            *(own.suppress_tokens or ()),
            self.config.image_token_id,
        ]
        try:
            return super().save_pretrained(save_directory, **kwargs)
        finally:
            self.generation_config = own


def _generation_config(source: str, **hub: Any) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(source, **hub)
    except OSError:
        return None
