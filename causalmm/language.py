"""The plan at work in one forward of the language model.

Rows: B samples a group. The vision (or joint) groups carry their own image features and so run from
the first decoder layer; a language group equals the factual one below its first edited layer, for
every token, and so joins only there, with a cache only from there on. The patched modeling files
call, in this order: `start`, `take` and `place` once an image or video tensor, `expand`, then
`enter_layer` and `attention` once a layer. Held by tests/test_equivalence.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from causalmm.attention import Visible, language_attention
from causalmm.plan import BranchPlan
from causalmm.rows import repeat_groups, split_groups


class DecoderInputs(NamedTuple):
    """What the decoder stack is called with, every row group included."""

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
    visible: Visible | None = None
    features: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(cls, plan: BranchPlan | None) -> "LanguagePass | None":
        return None if plan is None else cls(plan)

    def take(self, features: Tensor) -> Tensor:
        """Keep the counterfactual part of image features, return the factual one.

        Features [tokens, groups x D] carry every group side by side (see `VisionPass.fold`);
        the result is [tokens, D].
        """
        factual, *counterfactual = split_groups(features, 1 + self.plan.image_groups)
        self.features.append(torch.cat(counterfactual) if counterfactual else features[:0])
        return factual

    def place(self, placeholders: Tensor) -> None:
        """Remember where the features just taken go: bool [B, L, D] or [B, L, 1]."""
        self.masks.append(placeholders)

    def expand(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | dict | None,
        position_ids: Tensor | None,
        past_key_values: Any,
    ) -> DecoderInputs:
        """Lay the vision (or joint) groups behind the factual rows.

        `inputs_embeds` [B, L, D] already holds the factual image features; each group receives its
        own in their place. Raises ValueError where a cache was filled under another plan.
        """
        batch, length, _ = inputs_embeds.shape
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        groups = 1 + self.plan.image_groups
        if past:
            _check_cache(past_key_values, self.plan, batch)
        begun = replace(self, visible=_visible(attention_mask, past, length))
        counterfactual = inputs_embeds.repeat(groups - 1, 1, 1)
        for mask, features in zip(self.masks, self.features, strict=True):
            counterfactual = counterfactual.masked_scatter(
                mask.repeat(groups - 1, 1, 1), features.to(counterfactual)
            )
        batch_axis = 1 if position_ids is not None and position_ids.ndim == 3 else 0
        return DecoderInputs(
            torch.cat([inputs_embeds, counterfactual]),
            repeat_groups(attention_mask, batch, groups),
            repeat_groups(position_ids, batch, groups, axis=batch_axis),
            begun,
        )

    def enter_layer(
        self,
        layer: int,
        hidden_states: Tensor,
        attention_mask: Any,
        position_embeddings: tuple[Tensor, Tensor],
        position_ids: Tensor | None,
    ) -> LayerInputs:
        """Let the language groups join, copies of the factual rows, at their first edited layer."""
        inputs = LayerInputs(hidden_states, attention_mask, position_embeddings, position_ids)
        joining = self.plan.language_groups
        if not joining or layer != self.plan.language.first_layer:
            return inputs
        rows = hidden_states.shape[0]
        batch = rows // (1 + self.plan.image_groups)
        return LayerInputs(*(_join(part, rows, batch, joining) for part in inputs))

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
        edit = self.plan.language
        if edit is None or module.layer_idx not in edit.layers:
            return interface(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        # The edited groups are the last ones: the language groups, or all joint groups.
        rows = query.shape[0]
        first = rows - edit.draws * (rows // self.plan.groups)
        mask = _leading(attention_mask, rows, first)
        factual, weights = interface(
            module, query[:first], key[:first], value[:first], mask, scaling=scaling, **kwargs
        )
        edited = language_attention(
            edit.method,
            query[first:],
            key[first:],
            value[first:],
            scale=scaling,
            visible=self.visible,
            normalization=edit.normalization,
            seed=edit.seed,
            draws=tuple(range(edit.draws)),
            layer=module.layer_idx,
        )
        return torch.cat([factual, edited.transpose(1, 2)]), weights


def _visible(attention_mask: Tensor | dict | None, past: int, length: int) -> Visible:
    if isinstance(attention_mask, dict):
        attention_mask = attention_mask["full_attention"]
    if attention_mask is None:
        return Visible(keys=None, causal=True, query_start=past)
    if attention_mask.ndim == 2:
        keys = attention_mask[:, : past + length].bool()
        return Visible(keys=keys, causal=True, query_start=past)
    seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    # Every real key is seen by the last query, so its row says where the padding is.
    return Visible(keys=seen[:, 0, -1], causal=True, query_start=past, mask=seen)


def _leading(mask: Any, rows: int, first: int) -> Any:
    return mask[:first] if isinstance(mask, Tensor) and mask.shape[0] == rows else mask


def _join(part: Any, rows: int, batch: int, joining: int) -> Any:
    """Append `joining` copies of the first `batch` rows to whatever has `rows` rows."""
    if part is None:
        return None
    if isinstance(part, dict):
        return {name: _join(value, rows, batch, joining) for name, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_join(value, rows, batch, joining) for value in part)
    if part.shape[0] != rows:  # one row that broadcasts
        return part
    return torch.cat([part, *[part[:batch]] * joining])


def _check_cache(cache: Any, plan: BranchPlan, batch: int) -> None:
    last = cache.layers[-1]
    held = last.keys.shape[0]
    if held != plan.groups * batch:
        raise ValueError(
            f"past_key_values hold {held} rows in the last layer, this call needs "
            f"{plan.groups * batch} ({plan.groups} groups of {batch}): continue a cache only with "
            "the CausalMM configuration that filled it"
        )
