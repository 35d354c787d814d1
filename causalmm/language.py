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
from torch.nn.functional import pad

from causalmm import shared_text, tiles
from causalmm.attention import language_attention
from causalmm.factual import one_query_attention
from causalmm.plan import BranchPlan
from causalmm.rows import append_groups, leading_rows, repeat_groups, split_groups
from causalmm.step_luck import StepLuck
from causalmm.visible import Visible


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
    beginning: shared_text.Beginning | None = None
    luck: StepLuck | None = None

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
        decoder: Callable[..., Any],
        **options: Any,
    ) -> DecoderInputs:
        """Lay the vision (or joint) groups behind the factual rows.

        `inputs_embeds` [B, L, D] already holds the factual image features; each group receives its
        own in their place. A text long enough before the pictures is run by itself and left out of
        the result: `decoder` and `options` are what the rest will be run with. Raises ValueError
        where a cache was filled under another plan.
        """
        batch = inputs_embeds.shape[0]
        if past_key_values is not None:
            _check_cache(past_key_values, self.plan, batch)
        masks, beginning = self.masks, None
        if columns := shared_text.shared_columns(self.plan, masks, past_key_values, attention_mask):
            beginning = shared_text.prefill(
                self.plan,
                columns,
                decoder,
                inputs_embeds,
                attention_mask,
                position_ids,
                past_key_values,
                options,
                lambda plan, mask: LanguagePass(plan, visible=_visible(mask, 0, columns)),
            )
        if beginning is not None:
            inputs_embeds = inputs_embeds[:, columns:]
            position_ids = None if position_ids is None else position_ids[..., columns:]
            masks = [mask[:, columns:] for mask in masks]
        length = inputs_embeds.shape[1]
        past, keys = 0, length
        if past_key_values is not None:
            # A static cache hands out its counter itself, and counts on while the layers run.
            past = past_key_values.get_seq_length() + 0
            keys, _ = past_key_values.get_mask_sizes(length, 0)
        groups = 1 + self.plan.image_groups
        begun = self._begun(_visible(attention_mask, past, keys), beginning)
        counterfactual = inputs_embeds.repeat(groups - 1, 1, 1)
        for mask, features in zip(masks, self.features, strict=True):
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

    def _begun(self, visible: Visible, beginning: shared_text.Beginning | None) -> "LanguagePass":
        edit, luck = self.plan.language, None
        if edit is not None and edit.method == "random":
            luck = StepLuck(edit, visible)
        return replace(self, visible=visible, beginning=beginning, luck=luck)

    def whole(self, outputs: Any) -> Any:
        """The decoder's outputs for all columns, those that were run by themselves included."""
        if self.beginning is not None:
            outputs.last_hidden_state = torch.cat(
                [self.beginning.hidden_states, outputs.last_hidden_state], dim=1
            )
        return outputs

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
        return LayerInputs(*(append_groups(part, rows, batch, joining) for part in inputs))

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
        if self._is_quick_step(module, query):
            interface = self._one_query
        edit = self.plan.language
        if edit is None or module.layer_idx not in edit.layers:
            return interface(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        # The edited groups are the last ones: the language groups, or all joint groups.
        rows = query.shape[0]
        first = rows - edit.draws * (rows // self.plan.groups)
        mask = leading_rows(attention_mask, rows, first)
        # Flash attention looks there for several sequences packed into one row.
        if "position_ids" in kwargs:
            kwargs["position_ids"] = leading_rows(kwargs["position_ids"], rows, first)
        factual, weights = interface(
            module, query[:first], key[:first], value[:first], mask, scaling=scaling, **kwargs
        )
        edited = self._edited(module, query[first:], key[first:], value[first:], scaling)
        return torch.cat([factual, edited.transpose(1, 2)]), weights

    def _edited(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Counterfactual attention output of the edited groups' rows."""
        if self.luck is not None and self.luck.serves(query, value):
            return self.luck.attention(module.layer_idx, query, value)
        edit = self.plan.language
        return language_attention(
            edit.method,
            query,
            key,
            value,
            scale=scaling,
            visible=self.visible.to(query.device),
            normalization=edit.normalization,
            seed=edit.seed,
            draws=tuple(range(edit.draws)),
            layer=module.layer_idx,
        )

    def _is_quick_step(self, module: torch.nn.Module, query: Tensor) -> bool:
        """Whether `_one_query` may stand in for the layer's own attention function.

        Without branches nothing may differ from upstream by a bit, so that is not touched.
        """
        return not (
            self.plan.groups == 1
            or query.shape[2] > 1
            or query.device.type != "cpu"
            or tiles.suit(query)
            or module.config._attn_implementation != "sdpa"
            or module.training
            or query.requires_grad
            or torch.compiler.is_compiling()
        )

    def _one_query(
        self, _module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any,
        *, scaling: float, **_kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """An attention function for a decoding step on a CPU."""
        rows = self.visible.rows(query.shape[0])
        output = one_query_attention(query, key, value, scale=scaling, visible=rows)
        return output.transpose(1, 2), None


def _visible(attention_mask: Tensor | dict | None, past: int | Tensor, keys: int) -> Visible:
    """What the queries see of `keys` cached and new keys, `past` of them before the first query."""
    if isinstance(attention_mask, dict):
        attention_mask = attention_mask["full_attention"]
    if attention_mask is None:
        return Visible(keys=None, causal=True, query_start=past)
    if not isinstance(attention_mask, Tensor):
        raise ValueError(
            f"causalmm cannot read an attention_mask of type {type(attention_mask).__name__}: "
            "expected a 2-D or 4-D tensor (flex_attention with a static cache makes others)"
        )
    if attention_mask.ndim == 2:
        # A static cache has keys to come; causality hides them whatever the mask says.
        real = attention_mask[:, :keys].bool()
        real = pad(real, (0, keys - real.shape[1]))
        if not torch.compiler.is_compiling() and bool(real.all()):
            real = None  # without padding there is less to do
        return Visible(keys=real, causal=True, query_start=past)
    seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    # Every real key is seen by the last query, so its row says where the padding is.
    return Visible(keys=seen[:, 0, -1], causal=True, query_start=past, mask=seen)


def _check_cache(cache: Any, plan: BranchPlan, batch: int) -> None:
    if not cache.layers or not cache.layers[-1].is_initialized:
        return
    held = cache.layers[-1].keys.shape[0]
    if held != plan.groups * batch:
        raise ValueError(
            f"past_key_values hold {held} rows in the last layer, this call needs "
            f"{plan.groups * batch} ({plan.groups} groups of {batch}): continue a cache only with "
            "the CausalMM configuration that filled it"
        )
