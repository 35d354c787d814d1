"""The same branches one after another, as one would write them first on a plain model.

Each branch is its own forward over upstream's model, with its own image encoding and its own cache,
and an attention function that edits every row where the branch edits. The formulas and the contrast
are ours, so that all that differs is how the branches are run: three forwards a token where ours is
one. Greedy, prompts without padding, vision site "attention".
Same tokens as ours: tests/measuring/test_benchmarks.py.
"""

from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from causalmm.counterfactual.attention import language_attention, vision_attention
from causalmm.counterfactual.attention_mask import AttentionMask, ImageTokens
from causalmm.counterfactual.intervention import Intervention, PixelNoise
from causalmm.decoding.contrast import Contrast, adjust, expected_logits
from causalmm.decoding.plan import BranchPlan
from causalmm.decoding.strength import TokenStrength
from causalmm.figures.recording import attention_modules

NAME = "causalmm_one_branch"


class Branch(NamedTuple):
    """What one forward edits: a draw of a method in either tower."""

    vision: Intervention | None = None
    language: Intervention | None = None
    draw: int = 0


class SequentialBranches:
    """Upstream's model, run once a branch. The model's attention is this one's from then on."""

    def __init__(self, model: Any) -> None:
        transformers.AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
        self.model = model
        self.running = Branch()
        self.image: Tensor | None = None
        """Which tokens of the prompt are image tokens, bool [B, L]."""
        self.tiles: Tensor | None = None
        """Of pictures in tiles, the number of each within its picture, int64 [tiles]."""
        towers = {"vision": model.get_encoder("image"), "language": model.get_decoder()}
        for tower, modules in towers.items():
            for layer, module in enumerate(attention_modules(modules)):
                module.one_branch = (self, tower, layer)

    @torch.no_grad()
    def generate(
        self, inputs: dict[str, Tensor], plan: BranchPlan, new_tokens: int, streamer: Any = None
    ) -> Tensor:
        """New tokens int64 [B, T]. `streamer.put` gets each step's, as in transformers.

        Raises ValueError for what it does not know: padding, site "features", noised pixels, a
        strength by token, a center and chosen heads.
        """
        language = plan.language
        if (
            not bool(inputs["attention_mask"].all())
            or plan.site != "attention"
            or isinstance(plan.vision, PixelNoise)
            or plan.strength != TokenStrength()
            or plan.center
            or (language is not None and language.heads != "all")
        ):
            raise ValueError(
                "sequential branches know neither padding nor site='features', noised pixels, a "
                "strength by token, a center or chosen heads"
            )
        self.image = inputs["input_ids"] == self.model.config.image_token_id
        self.tiles = _number_tiles(self.model.config, inputs)
        # (strength, branches whose logits are averaged); the factual one first.
        edits = [] if plan.vision is None else [(plan.gamma_vision, plan.vision, None)]
        edits += [] if plan.language is None else [(plan.gamma_language, None, plan.language)]
        if plan.joint:
            edits = [(plan.gamma_joint, plan.vision, plan.language)]
        groups = [(0.0, [Branch()])]
        for gamma, vision, language in edits:
            draws = (vision or language).draws
            groups.append((gamma, [Branch(vision, language, draw) for draw in range(draws)]))
        text = self.model.config.get_text_config()
        caches = {each: DynamicCache(config=text) for _, branches in groups for each in branches}
        batch, length = inputs["input_ids"].shape
        tokens: list[Tensor] = []
        step = dict(inputs)
        for number in range(new_tokens):
            (_, factual), *branches = [
                (gamma, torch.stack([self._logits(step, each, caches[each]) for each in members]))
                for gamma, members in groups
            ]
            contrasts = [Contrast(gamma, expected_logits(logits)) for gamma, logits in branches]
            tokens.append(adjust(factual[0].float(), contrasts, plan.epsilon).argmax(dim=-1))
            if streamer is not None:
                streamer.put(tokens[-1].cpu())
            step = {"input_ids": tokens[-1][:, None]}
            if (offset := getattr(self.model.model, "rope_deltas", None)) is not None:
                step["position_ids"] = (offset + length + number).expand(3, batch, 1)
        return torch.stack(tokens, dim=1)

    def _logits(self, step: dict[str, Tensor], branch: Branch, cache: DynamicCache) -> Tensor:
        self.running = branch
        output = self.model(**step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1]


def _number_tiles(config: Any, inputs: dict[str, Tensor]) -> Tensor | None:
    """Of each tile the number within its picture, int64 [tiles]; None without tiles."""
    if not hasattr(config, "image_grid_pinpoints"):
        return None
    grids = (config.image_grid_pinpoints, config.vision_config.image_size)
    counts = [image_size_to_num_patches(size, *grids) for size in inputs["image_sizes"]]
    return torch.cat([torch.arange(count) for count in counts])


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
        if host.tiles is not None:
            inside = torch.arange(query.shape[2], device=query.device)
            settings["positions"] = inside + len(inside) * host.tiles.to(inside).unsqueeze(1)
        output = vision_attention(edit.method, query, key, value, **settings)
    else:
        start, keys = key.shape[2] - query.shape[2], key.shape[2]  # no padding
        image = pad(host.image, (0, keys - host.image.shape[1]))
        tokens = ImageTokens(keys=image, queries=image[:, start:])
        visible = AttentionMask(query_start=start, image=tokens)
        settings["scope"] = edit.scope
        output = language_attention(edit.method, query, key, value, visible=visible, **settings)
    return output.transpose(1, 2).contiguous(), None
