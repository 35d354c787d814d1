"""The same branches one after another: how one writes them on a plain model.

Each branch is its own forward over upstream's model, with its own image encoding and its own cache,
and an attention function that edits every row where the branch edits. The formulas and the contrast
are ours, so that all that differs is how the branches are run: three forwards a token where ours is
one. Greedy, prompts without padding, vision site "attention".
Gives our tokens: held by tests/measuring/test_benchmarks.py.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from causalmm.counterfactual.attention import language_attention, vision_attention
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.decoding.contrast import Contrast, adjust, expected_logits
from causalmm.decoding.plan import BranchPlan, Intervention
from causalmm.families.registry import find

NAME = "causalmm_one_branch"


@dataclass(frozen=True)
class Branch:
    """What one forward edits: a draw of a method in either tower."""

    vision: Intervention | None = None
    language: Intervention | None = None
    draw: int = 0


FACTUAL = Branch()


class SequentialBranches:
    """Upstream's model, run once a branch. The model's attention is this one's from then on."""

    def __init__(self, model: Any) -> None:
        transformers.AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
        self.model = model
        self.running = FACTUAL
        for tower, modules in find(model.config.model_type).attention_modules(model).items():
            for layer, module in enumerate(modules):
                module.one_branch = (self, tower, layer)

    @torch.no_grad()
    def generate(
        self, inputs: dict[str, Tensor], plan: BranchPlan, new_tokens: int, streamer: Any = None
    ) -> Tensor:
        """New tokens int64 [B, T]. `streamer.put` gets each step's, as in transformers."""
        if plan.site != "attention" or not bool(inputs["attention_mask"].all()):
            raise ValueError("sequential branches know neither site='features' nor padding")
        branches = {
            branch: DynamicCache(config=self.model.config.get_text_config())
            for branch in (FACTUAL, *_vision_branches(plan), *_language_branches(plan))
        }
        batch, length = inputs["input_ids"].shape
        tokens: list[Tensor] = []
        step = dict(inputs)
        for number in range(new_tokens):
            logits = {
                branch: self._logits(step, branch, cache) for branch, cache in branches.items()
            }
            tokens.append(_contrast(plan, logits).argmax(dim=-1))
            if streamer is not None:
                streamer.put(tokens[-1].cpu())
            step = {"input_ids": tokens[-1][:, None]}
            if (offset := getattr(self.model.model, "rope_deltas", None)) is not None:
                step["position_ids"] = (offset + length + number).expand(3, batch, 1)
        return torch.stack(tokens, dim=1)

    def _logits(self, step: dict[str, Tensor], branch: Branch, cache: DynamicCache) -> Tensor:
        self.running = branch
        try:
            output = self.model(**step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        finally:
            self.running = FACTUAL
        return output.logits[:, -1]


def _vision_branches(plan: BranchPlan) -> list[Branch]:
    """Those with images of their own: the vision draws, or the joint ones."""
    if plan.vision is None:
        return []
    language = plan.language if plan.joint else None
    return [Branch(plan.vision, language, draw) for draw in range(plan.vision.draws)]


def _language_branches(plan: BranchPlan) -> list[Branch]:
    if plan.language is None or plan.joint:
        return []
    return [Branch(None, plan.language, draw) for draw in range(plan.language.draws)]


def _contrast(plan: BranchPlan, logits: dict[Branch, Tensor]) -> Tensor:
    strength = plan.gamma_joint if plan.joint else plan.gamma_vision
    contrasts = [
        Contrast(gamma, expected_logits(torch.stack([logits[branch] for branch in branches])))
        for gamma, branches in (
            (strength, _vision_branches(plan)),
            (plan.gamma_language, _language_branches(plan)),
        )
        if branches
    ]
    return adjust(logits[FACTUAL].float(), contrasts, plan.epsilon)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    host, tower, layer = module.one_branch
    edit: Intervention | None = getattr(host.running, tower)
    if edit is None or not edit.edits(layer):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    settings = {
        "scale": kwargs["scaling"],
        "normalization": edit.normalization,
        "seed": edit.seed,
        "draws": (host.running.draw,),
        "layer": layer,
    }
    if tower == "vision":
        output = vision_attention(edit.method, query, key, value, **settings)
    else:
        past = key.shape[2] - query.shape[2]
        visible = AttentionMask(query_start=past)  # no padding
        output = language_attention(edit.method, query, key, value, visible=visible, **settings)
    return output.transpose(1, 2).contiguous(), None
