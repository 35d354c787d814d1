"""Several prompts about the same pictures, decoded as one batch.

The pictures are encoded, and the tokens that all prompts begin with prefilled, once for every
branch; the cache is then copied for each prompt. (Not so where each prompt finds the heads that are
edited, `language_heads="image:K"`.) Padding lies between the shared beginning and each
prompt's own tokens: positions count real tokens, so an answer is the one its prompt gets alone.
Tests: tests/decoding/test_shared_image.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from causalmm.config import CausalMMConfig
from causalmm.decoding.kv_cache import PreallocatedLayer
from causalmm.decoding.plan import BranchPlan
from causalmm.decoding.trace import BranchTrace

_PICTURES = ("pixel_values", "pixel_values_videos")


@torch.no_grad()
def generate_together(
    model: Any,
    rows: Sequence[Any],
    *,
    causalmm: CausalMMConfig | BranchPlan | None = None,
    causalmm_trace: BranchTrace | None = None,
    **settings: Any,
) -> Tensor:
    """New tokens int64 [prompts, T] of unpadded inputs that begin with the same pictures.

    A row holds what a processor makes of one prompt; `causalmm_trace` is that of `generate`. Raises
    ValueError where `settings` ask for several sequences a prompt, or the rows' pictures do not end
    before their texts part.
    """
    settings = {"num_beams": 1} | settings
    if settings["num_beams"] != 1 or settings.get("num_return_sequences", 1) != 1:
        raise ValueError("several prompts share a cache only with one sequence a prompt")
    plan = model.causalmm_plan(causalmm, causalmm_trace)
    extra = {} if plan is None else {"causalmm": plan}
    # Filling the cache is no step of anybody's answer.
    untraced = {} if plan is None else {"causalmm": replace(plan, trace=None)}
    shared = shared_tokens([row["input_ids"][0] for row in rows])
    _check_pictures(model, rows, shared)
    first = {
        name: part[:, :shared] if _is_sequence(name) else part for name, part in rows[0].items()
    }
    if plan is not None and plan.language is not None and plan.language.image_heads:
        # Each prompt finds its own heads, from its pictures on.
        batch = _padded_after(rows, shared, _pad_token(model))
    else:
        cache = Cache(layer_class_to_replicate=PreallocatedLayer)
        model(**first, **untraced, past_key_values=cache, use_cache=True, logits_to_keep=1)
        # A branch has one row here: its copies lie side by side, as the rows of a branch do.
        cache.batch_repeat_interleave(len(rows))
        batch = _padded_after(rows, shared, _pad_token(model), without=_PICTURES)
        extra["past_key_values"] = cache
    output = model.generate(**batch, **extra, **settings)
    tokens = output if isinstance(output, Tensor) else output.sequences
    return tokens[:, batch["input_ids"].shape[1] :]


def shared_tokens(rows: Sequence[Tensor]) -> int:
    """How many tokens all rows, int64 [L] each, begin with; each keeps at least one of its own."""
    limit = min(len(row) for row in rows) - 1
    first = rows[0][:limit]
    same = torch.stack([row[:limit] == first for row in rows]).all(dim=0)
    return int(same.cumprod(dim=0).sum())


def _check_pictures(model: Any, rows: Sequence[Any], shared: int) -> None:
    config = model.config
    tokens = [config.image_token_id, getattr(config, "video_token_id", None)]
    for row in rows:
        own = row["input_ids"][0, shared:]
        if any(token is not None and bool((own == token).any()) for token in tokens):
            raise ValueError(
                "the prompts differ before their last picture: expected the same pictures first"
            )


def _is_sequence(name: str) -> bool:
    """Whether an input has a column for each token."""
    return name in ("input_ids", "attention_mask", "mm_token_type_ids")


def _padded_after(
    rows: Sequence[Any], shared: int, pad_token: int, without: Sequence[str] = ()
) -> dict[str, Tensor]:
    """One batch of the rows, all as long as the longest by padding after the shared tokens.

    `without` names inputs that are left out.
    """
    length = max(row["input_ids"].shape[1] for row in rows)
    batch: dict[str, list[Tensor]] = {}
    for row in rows:
        missing = length - row["input_ids"].shape[1]
        for name, part in row.items():
            if name in without:
                continue
            if _is_sequence(name):
                hole = part.new_full((1, missing), pad_token if name == "input_ids" else 0)
                part = torch.cat([part[:, :shared], hole, part[:, shared:]], dim=1)
            batch.setdefault(name, []).append(part)
    return {name: torch.cat(parts) for name, parts in batch.items()}


def _pad_token(model: Any) -> int:
    config = model.generation_config
    tokens = (config.pad_token_id, config.eos_token_id, 0)
    token = next(token for token in tokens if token is not None)
    return token[0] if isinstance(token, (list, tuple)) else int(token)
