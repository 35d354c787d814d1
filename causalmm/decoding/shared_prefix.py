"""The text before the first picture, prefilled once for all branches.

There a counterfactual image has not been seen yet: vision rows equal the factual ones, joint rows
those of a language branch. So these columns run without the vision rows, and what they left in the
cache is copied for those. Held by tests/decoding/test_shared_prefix.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from causalmm.decoding.kv_cache import PreallocatedLayer
from causalmm.decoding.plan import BranchPlan

LEAST_SAVED = 128
"""Tokens that must be saved: running the beginning by itself reads all weights once more."""

_WHOLE = ("output_hidden_states", "output_attentions")


class Beginning(NamedTuple):
    """The prefilled columns' last hidden states, of all row groups: [groups x B, P, D]."""

    hidden_states: Tensor

    @property
    def length(self) -> int:
        return self.hidden_states.shape[1]


def shared_columns(
    plan: BranchPlan, placeholders: Sequence[Tensor], cache: Any, attention_mask: Any
) -> int:
    """How many leading columns to run by themselves; 0 where that cannot be or does not pay.

    `placeholders` bool [B, L, D or 1]: where the features of pictures go.
    """
    if not plan.image_groups or not placeholders or torch.compiler.is_compiling():
        return 0
    if not (attention_mask is None or isinstance(attention_mask, Tensor)):
        return 0
    if attention_mask is not None and attention_mask.ndim != 2:
        return 0
    if not _is_empty_and_dynamic(cache):
        return 0
    pictures = torch.stack([part[..., 0].any(dim=0) for part in placeholders]).any(dim=0)
    first = int(pictures.int().argmax()) if bool(pictures.any()) else 0
    saved = first * len(placeholders[0]) * plan.image_groups
    return first if saved >= LEAST_SAVED else 0


def prefill(
    plan: BranchPlan,
    columns: int,
    decoder: Callable[..., Any],
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Any,
    options: Mapping[str, Any],
    start: Callable[[BranchPlan], Any],
) -> Beginning | None:
    """Run the first `columns` columns of B rows; the cache then holds them for every group.

    `start` makes the pass of a plan for the decoder. None where the caller wants to see every
    layer's states: those of a part would not do.
    """
    config = decoder.config
    if any(options.get(name) or getattr(config, name, False) for name in _WHOLE):
        return None
    batch = len(inputs_embeds)
    mask = None if attention_mask is None else attention_mask[:, :columns]
    # Joint rows are a language branch's here.
    text = replace(plan, vision=None, joint=False)
    output = decoder(
        inputs_embeds=inputs_embeds[:, :columns],
        attention_mask=mask,
        position_ids=None if position_ids is None else position_ids[..., :columns],
        past_key_values=cache,
        use_cache=True,
        causalmm=start(text),
    )
    for number, layer in enumerate(cache.layers):
        layer.batch_select_indices(_rows(plan, text, batch, number).to(layer.keys.device))
    last = _rows(plan, text, batch, len(cache.layers)).to(output.last_hidden_state.device)
    return Beginning(output.last_hidden_state[last])


def _rows(plan: BranchPlan, text: BranchPlan, batch: int, layer: int) -> Tensor:
    """Which of the beginning's rows each row of the whole pass continues, in a layer."""
    joined = text.groups_in_layer(layer) - 1  # behind the factual one
    factual, language = [0], list(range(1, 1 + joined))
    if plan.joint:
        groups = factual + (language or factual * plan.image_groups)
    else:
        groups = factual + factual * plan.image_groups + language
    return (torch.tensor(groups)[:, None] * batch + torch.arange(batch)).flatten()


def _is_empty_and_dynamic(cache: Any) -> bool:
    if cache is None or getattr(cache, "offloading", False) or cache.get_seq_length():
        return False
    kinds = {type(layer) for layer in cache.layers} or {cache.layer_class_to_replicate}
    return kinds <= {DynamicLayer, PreallocatedLayer}
