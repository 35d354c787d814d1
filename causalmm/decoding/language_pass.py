"""The plan at work in one forward of the language model.

Rows: B samples a branch. The vision (or joint) branches carry their own image features and so run
from the first decoder layer; a language branch equals the factual one below its first edited layer,
for every token, and so joins only there, with keys in the KV cache only from there on. The patched
modeling files call, in this order: `start`, `split_features` and `set_image_positions` once an
image or video tensor, `expand`, `read_mask` once the decoder has made its attention mask, then
`join_rows` and `attention` once a layer.
Tests: tests/decoding/test_equivalence.py and tests/decoding/test_contracts.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import find_packed_sequence_indices
from transformers.utils import logging

from causalmm.counterfactual.attention import edited_image_mass, image_mass, language_attention
from causalmm.counterfactual.attention_mask import AttentionMask, require, visible_keys
from causalmm.counterfactual.random_weights import RandomHashes, random_hashes
from causalmm.decoding import one_query
from causalmm.decoding.branch_state import BranchState, state_of
from causalmm.decoding.call_checks import check_cache, check_encoded
from causalmm.decoding.kv_cache import branch_layers
from causalmm.decoding.plan import BranchPlan
from causalmm.decoding.rows import append_branches, leading_rows

logger = logging.get_logger(__name__)
_NO_IMAGE = (
    "the prompt has no image token, and language_scope='image' or language_heads='image:K' edit by "
    "them: the language branch is factual"
)

_PACKED = (
    "language_heads='image:K' are found in one prompt: expected one prompt a row, not several "
    "packed into it"
)
_NO_TEXT = (
    "language_heads='image:K' are found by how much of its attention the prompt's text gives to "
    "the images before it: expected images and the text after them in one call"
)


class DecoderInputs(NamedTuple):
    """What the decoder stack is called with, the rows of every branch included."""

    inputs_embeds: Tensor
    attention_mask: Tensor | dict | None
    position_ids: Tensor | None
    causalmm: "LanguagePass"


class LayerInputs(NamedTuple):
    """What one decoder layer is called with."""

    hidden_states: Tensor
    attention_mask: Any
    position_embeddings: tuple[Tensor, Tensor]
    position_ids: Tensor | None


@dataclass(frozen=True)
class LanguagePass:
    """One forward of the decoder under a plan. Lives for that forward only."""

    plan: BranchPlan
    visible: AttentionMask | None = None
    features: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    hashes: Mapping[int, RandomHashes] = field(default_factory=dict)
    """Of each edited layer, where the language method takes random weights."""
    edits: bool = True
    """Whether there is anything for the language method to edit: not so without image tokens, where
    image tokens are all that it edits."""
    heads: Tensor | None = None
    """Bool [B or 1, L, H]: which heads each layer edits. None: all."""
    finds_heads_by: Tensor | None = None
    """Where they are found in this pass, in the prompt: its tokens, bool [B or 1, Q]."""

    @classmethod
    def start(
        cls,
        plan: BranchPlan | None,
        inputs_embeds: Tensor,
        past_key_values: Any,
        mm_encoder_outputs: Mapping[str, Any] | None,
    ) -> "LanguagePass | None":
        """The pass of a plan; None for the plain model.

        Given the tokens' embeddings [B, L, D], a cache and pictures encoded before. Raises
        ValueError where these were made with another plan, or without one.
        """
        check_cache(past_key_values, plan, inputs_embeds.shape[0])
        check_encoded(mm_encoder_outputs, plan, inputs_embeds.shape[-1])
        return None if plan is None else cls(plan)

    def split_features(self, features: Tensor) -> Tensor:
        """Keep the counterfactual part of image features, return the factual one.

        Features [tokens, branches x D] carry every branch side by side (see `VisionPass.fold`);
        the result is [tokens, D].
        """
        factual, *counterfactual = features.chunk(1 + self.plan.image_branches, dim=-1)
        self.features.append(torch.cat(counterfactual) if counterfactual else features[:0])
        return factual

    def set_image_positions(self, placeholders: Tensor) -> None:
        """Remember where the features just taken go: bool [B, L, D] or [B, L, 1]."""
        self.masks.append(placeholders)

    def expand(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | dict | None,
        position_ids: Tensor | None,
    ) -> DecoderInputs:
        """Lay the vision (or joint) branches behind the factual rows.

        `inputs_embeds` [B, L, D] already holds the factual image features; each branch receives its
        own in their place.
        """
        batch = inputs_embeds.shape[0]
        branches = self.plan.image_branches
        counterfactual = inputs_embeds.repeat(branches, 1, 1)
        for mask, features in zip(self.masks, self.features, strict=True):
            counterfactual = counterfactual.masked_scatter(
                mask.repeat(branches, 1, 1), features.to(counterfactual)
            )
        batch_axis = 1 if position_ids is not None and position_ids.ndim == 3 else 0
        return DecoderInputs(
            torch.cat([inputs_embeds, counterfactual]),
            append_branches(attention_mask, batch, batch, branches),
            append_branches(position_ids, batch, batch, branches, axis=batch_axis),
            self,
        )

    def expand_deepstack(
        self, placeholders: Tensor | None, features: list[Tensor] | None
    ) -> tuple[Tensor | None, list[Tensor] | None]:
        """The features that are added to image tokens after the first decoder layers, a tensor a
        layer, in the rows of `expand`.

        Bool [B, L] and [tokens, branches x D] each -> [rows, L] and [branches x tokens, D]; None
        where there are no pictures.
        """
        if placeholders is None:
            return None, None
        branches = 1 + self.plan.image_branches
        features = [torch.cat(each.chunk(branches, dim=-1)) for each in features]
        return placeholders.repeat(branches, 1), features

    def join_deepstack(
        self, layer: int, placeholders: Tensor | None, features: list[Tensor] | None
    ) -> tuple[Tensor | None, list[Tensor] | None]:
        """The same in the rows of `join_rows`: language branches get the factual features."""
        joining = self.plan.language_branches
        if placeholders is None or not joining or layer != self.plan.language.first_layer:
            return placeholders, features
        branches = 1 + self.plan.image_branches
        tokens = [len(each) // branches for each in features]
        return append_branches(
            placeholders, len(placeholders), len(placeholders) // branches, joining
        ), [
            append_branches(each, len(each), count, joining)
            for each, count in zip(features, tokens, strict=True)
        ]

    def read_mask(
        self,
        config: PreTrainedConfig,
        inputs_embeds: Tensor,
        attention_mask: Tensor | dict | None,
        causal_mask: Any,
        position_ids: Tensor | None,
        past_key_values: Any,
    ) -> "LanguagePass":
        """The pass that knows what each query sees, read where the decoder has decided it.

        `attention_mask` is what the decoder was given and `causal_mask` what it made of it for
        attention; `position_ids` [rows or 1, L] are those it looked at. The KV cache keeps what is
        true of the new keys. Raises ValueError for a mask that cannot be read, or that contradicts
        what is true of the cached keys.
        """
        length, past = inputs_embeds.shape[1], 0
        keys, first = length, None
        if past_key_values is not None:
            if self.plan.branches > 1:
                first = branch_layers(past_key_values, self.plan, config.num_hidden_layers)
            # A static cache hands out its counter itself, and counts on while the layers run.
            past = past_key_values.get_seq_length() + 0
            keys, _ = past_key_values.get_mask_sizes(length, 0)
        if isinstance(attention_mask, dict):
            attention_mask = attention_mask["full_attention"]
        if attention_mask is None and _is_packed(config, position_ids, past_key_values):
            attention_mask = causal_mask
            if not isinstance(causal_mask, Tensor) or causal_mask.ndim != 4:
                raise ValueError(
                    "position_ids start anew within a row, which packs several sequences into it: "
                    "causalmm follows that with attn_implementation 'sdpa' or 'eager', got "
                    f"{config._attn_implementation!r}; or give an attention_mask"
                )
        batch = inputs_embeds.shape[0] // (1 + self.plan.image_branches)
        visible = visible_keys(leading_rows(attention_mask, len(inputs_embeds), batch), past, keys)
        if self.plan.branches == 1:
            return replace(self, visible=visible)
        masks = [mask.any(dim=-1) for mask in self.masks]
        image = torch.stack(masks).any(dim=0) if masks else None
        state = state_of(past_key_values)
        prefill = self.plan.prefill or state is None
        state = state or BranchState(filled_by=self.plan.key_settings())
        state = state.extended(visible, image, past, length, keys, prefill)
        found = replace(self, visible=visible)
        if self.plan.language is not None:
            found, state = found._read_language_edit(config, state, inputs_embeds, past, keys)
        if first is not None:
            first.state = state
        return found

    def _read_language_edit(
        self,
        config: PreTrainedConfig,
        state: BranchState,
        inputs_embeds: Tensor,
        past: int | Tensor,
        keys: int,
    ) -> "tuple[LanguagePass, BranchState]":
        """The pass that knows the image tokens, heads and random weights that the language edit
        asks for, and the state with the heads that are to be found in this prompt."""
        edit, length, device = self.plan.language, inputs_embeds.shape[1], inputs_embeds.device
        batch = inputs_embeds.shape[0] // (1 + self.plan.image_branches)
        by_image = bool(edit.scope == "image" or edit.image_heads)
        tokens = heads = finds_heads_by = None
        if by_image or self._watches_images:
            tokens = state.image_tokens(past, length, keys)
        if by_image and tokens is None:
            if not torch.compiler.is_compiling():
                logger.warning_once(_NO_IMAGE)
            return replace(self, edits=False), state
        if edit.edited_heads is not None:
            heads = torch.tensor([edit.edited_heads], device=device)
        elif edit.image_heads:
            heads = state.heads
            if heads is None:
                finds_heads_by = state.real_queries(past, length, keys, device)
                if state.packed is not None:
                    require(~state.packed.any(), _PACKED)
                size = (batch, config.num_hidden_layers, config.num_attention_heads)
                heads = torch.zeros(size, dtype=torch.bool, device=device)
                state = replace(state, heads=heads)
        visible, hashes = replace(self.visible, image=tokens), {}
        if edit.formula.random_weights:
            visible = visible.to(device).numbered()
            # Once for all layers: in each they would take some 80 small operations.
            shape = (edit.draws * batch, config.num_attention_heads, length, keys)
            each = random_hashes(visible, shape, device, edit.seed, range(edit.draws), edit.layers)
            hashes = dict(zip(edit.layers, each, strict=True))
        read = replace(
            self, visible=visible, hashes=hashes, heads=heads, finds_heads_by=finds_heads_by
        )
        return read, state

    def join_rows(
        self,
        layer: int,
        hidden_states: Tensor,
        attention_mask: Any,
        position_embeddings: tuple[Tensor, Tensor],
        position_ids: Tensor | None,
    ) -> LayerInputs:
        """Let the language branches join at their first edited layer, as copies of the factual."""
        inputs = LayerInputs(hidden_states, attention_mask, position_embeddings, position_ids)
        joining = self.plan.language_branches
        if not joining or layer != self.plan.language.first_layer:
            return inputs
        rows = hidden_states.shape[0]
        batch = rows // (1 + self.plan.image_branches)
        return LayerInputs(*(append_branches(part, rows, batch, joining) for part in inputs))

    def attention(self, interface: Callable) -> Callable:
        """The attention function that a decoder layer calls instead of `interface`."""
        return partial(self._attend, interface)

    def _attend(
        self,
        interface: Callable,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if self.plan.branches > 1 and one_query.supports(module, query):
            interface = self._one_query  # without branches nothing may differ from upstream
        edit = self.plan.language
        if edit is None or not self.edits or not edit.edits(module.layer_idx):
            return interface(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        # Edited branches are the last ones: those of the language, or all joint ones.
        rows = query.shape[0]
        first = rows - edit.draws * (rows // self.plan.branches)
        parts = [part[first:] for part in (query, key, value)]
        edited = self._edited(module, *parts, scaling).transpose(1, 2)
        heads = self._edited_heads(module.layer_idx, query, key, scaling)
        if self._watches_images and self.visible.image is not None:
            self._show_image_mass(module, query, key, heads, scaling)
        if heads is not None:
            output, weights = interface(
                module, query, key, value, attention_mask, scaling=scaling, **kwargs
            )
            edited = torch.where(heads, edited, output[first:])
            return torch.cat([output[:first], edited]), weights
        mask = leading_rows(attention_mask, rows, first)
        # Flash attention looks there for several sequences packed into one row.
        if "position_ids" in kwargs:
            kwargs["position_ids"] = leading_rows(kwargs["position_ids"], rows, first)
        factual, weights = interface(
            module, query[:first], key[:first], value[:first], mask, scaling=scaling, **kwargs
        )
        return torch.cat([factual, edited]), weights

    def _one_query(
        self, _module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any,
        *, scaling: float, **_kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        output = one_query.attention(query, key, value, scale=scaling, visible=self.visible)
        return output.transpose(1, 2), None

    def _edited(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Counterfactual attention output of the edited branches' rows."""
        settings = self._settings(module.layer_idx, query.device, scaling)
        return language_attention(self.plan.language.method, query, key, value, **settings)

    def _settings(self, layer: int, device: torch.device, scaling: float) -> dict[str, Any]:
        """What a layer's counterfactual attention is computed with."""
        edit, hashes = self.plan.language, self.hashes.get(layer)
        return {
            "scale": scaling,
            "visible": self.visible.to(device),
            "normalization": edit.normalization,
            "scope": edit.scope,
            "seed": edit.seed,
            "draws": tuple(range(edit.draws)),
            "layer": layer,
            "hashes": None if hashes is None else hashes.to(device),
        }

    @property
    def _watches_images(self) -> bool:
        return self.plan.trace is not None and self.plan.trace.watches_images

    def _show_image_mass(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        heads: Tensor | None,
        scaling: float,
    ) -> None:
        """Tell the trace how much of their attention queries give to image keys."""
        edit, layer, rows = self.plan.language, module.layer_idx, query.shape[0]
        batch = rows // self.plan.branches
        settings = self._settings(layer, query.device, scaling)

        def factual(first: int, end: int) -> Tensor:
            visible = settings["visible"].repeat((end - first) // batch)
            return image_mass(query[first:end], key[first:end], scale=scaling, visible=visible)

        first = rows - edit.draws * batch
        edited = edited_image_mass(edit.method, query[first:], key[first:], **settings)
        if heads is not None:  # [rows or 1, 1, H, 1]; the other heads are factual
            edited = torch.where(heads[:, 0], edited, factual(first, rows))
        self.plan.trace.record_image_mass(layer, factual(0, batch), edited)

    def _edited_heads(
        self, layer: int, query: Tensor, key: Tensor, scaling: float
    ) -> Tensor | None:
        """Which heads of the edited rows are edited: bool, broadcasts to [rows, Q, H, D].

        None: all.
        Where they are found in the prompt, by how much of their attention the factual rows' text
        gives to image tokens; a sample without image tokens has none.
        """
        if self.heads is None:
            return None
        edit = self.plan.language
        if self.finds_heads_by is not None:
            batch, visible = self.heads.shape[0], self.visible.to(query.device)
            mass = image_mass(query[:batch], key[:batch], scale=scaling, visible=visible)
            mass = (mass * self.finds_heads_by.to(query.device).unsqueeze(1)).sum(-1)
            if layer == edit.first_layer:
                seen = (mass > 0).any(dim=-1) | ~visible.image.keys.any(dim=-1)
                require(seen.all(), _NO_TEXT)
            found = mass.topk(edit.image_heads, dim=-1).indices
            # Compared, not scattered: torch 2.13's inductor loses what scatter_ wrote.
            numbers = torch.arange(mass.shape[-1], device=mass.device)
            chosen = (found.unsqueeze(-1) == numbers).any(dim=-2)
            self.heads[:, layer] = (chosen & (mass > 0)).to(self.heads.device)
        heads = self.heads[:, layer].to(query.device)
        heads = heads if len(heads) == 1 else heads.repeat(edit.draws, 1)
        return heads[:, None, :, None]


def _is_packed(config: PreTrainedConfig, position_ids: Tensor | None, cache: Any) -> bool:
    """Whether a decoder without attention mask takes its rows for several sequences each.

    transformers asks the positions where there is no cache; flash attention asks them always.
    """
    flash = "flash" in config._attn_implementation
    if position_ids is None or (cache is not None and not flash):
        return False
    return find_packed_sequence_indices(position_ids) is not None
