"""What a prefill or a decoding step cannot do without: FLOPs of matrix products, bytes read.

Counted from a model's own modules and a branch plan: linear layers by the rows that pass them,
attention by the pairs of a query and a key that it may see. A *bound* is that work at the speed
this machine was measured to have. Hashing, softmax, norms and caches being copied are no work in
this sense: they are in the gap between bound and measurement. Held by
tests/measuring/test_benchmarks.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from measure import timed
from torch import Tensor, nn
from torch.nn.functional import linear

from causalmm.counterfactual.intervention import Intervention
from causalmm.counterfactual.methods import Formula, find
from causalmm.decoding.plan import BranchPlan

_ENOUGH = 3
"""Times that a speed is measured: the best counts."""


class Work(NamedTuple):
    """Of one call."""

    flops: float
    read: float
    """Bytes of weights and cache."""


class Speed(NamedTuple):
    """What a machine was measured to do in a second."""

    flops: float
    """In the model's own linear layers, as many rows as the prompt has tokens."""
    read: float
    """Bytes, summing up a large tensor."""
    gemv: float
    """Bytes, in the model's own linear layers with one row."""

    def bound(self, work: Work) -> float:
        """Seconds that the work takes at least."""
        return max(work.flops / self.flops, work.read / max(self.read, self.gemv))


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What of a prompt decides the work."""

    batch: int
    length: int
    """Tokens, those of the image included."""
    images: tuple[int, ...]
    """Patches that see each other, of every image."""

    @classmethod
    def of(cls, model: Any, inputs: dict[str, Tensor]) -> "Prompt":
        """Of rows that all have as many image tokens."""
        ids = inputs["input_ids"]
        if "image_grid_thw" in inputs:
            images = tuple(inputs["image_grid_thw"].prod(dim=1).tolist())
        else:
            vision = model.config.vision_config
            patches = (vision.image_size // vision.patch_size) ** 2 + 1  # CLIP's class token
            images = (patches,) * len(inputs["pixel_values"])
        return cls(batch=len(ids), length=ids.shape[1], images=images)


def prefill(model: Any, plan: BranchPlan | None, prompt: Prompt) -> Work:
    """From pixels and tokens to the first logits."""
    return Work(
        flops=_vision_flops(model, plan, prompt) + _prompt_flops(model, plan, prompt),
        read=sum(_bytes(part) for part in (model.model, model.lm_head)),
    )


def decode(model: Any, plan: BranchPlan | None, prompt: Prompt, keys: int) -> Work:
    """One step whose queries see `keys` keys, their own included."""
    flops, read = 0.0, float(_bytes(model.lm_head))
    text = model.config.text_config
    size, shared = _head_size(text), text.num_key_value_heads
    for number, layer in enumerate(_layers(model)):
        read += _bytes(layer)
        for branches, formula in _branches(plan, number):
            rows = branches * prompt.batch
            flops += rows * _linear_flops(layer)
            flops += rows * _attention_flops(formula, text.num_attention_heads, size, keys)
            parts = 2 if _looks_at_scores(formula) else 1
            read += parts * rows * shared * size * keys * model.dtype.itemsize
    branches = 1 if plan is None else plan.branches
    flops += branches * prompt.batch * _linear_flops(model.lm_head)
    return Work(flops, read)


def measure_speed(model: Any, tokens: int) -> Speed:
    """What this machine does with this model's weights. Takes a few prefills' time."""
    device, dtype = model.device, model.dtype
    weights = [each.weight for each in _linears(model.model.language_model)]
    # Far beyond any cache, and on a GPU far beyond what starting a kernel takes.
    size = 2**30 if device.type == "cuda" else 2**28
    large = torch.ones(size // dtype.itemsize, dtype=dtype, device=device)

    def best(call: Callable[[], Any]) -> float:
        call()
        return min(timed(call, device) for _ in range(_ENOUGH))

    def products(rows: int) -> Callable[[], None]:
        widths = {weight.shape[1] for weight in weights}
        inputs = {width: torch.ones(rows, width, dtype=dtype, device=device) for width in widths}

        def call() -> None:
            for weight in weights:
                linear(inputs[weight.shape[1]], weight)

        return call

    with torch.no_grad():
        count = sum(weight.numel() for weight in weights)
        return Speed(
            flops=2.0 * count * tokens / best(products(tokens)),
            read=large.nbytes / best(large.sum),
            gemv=count * dtype.itemsize / best(products(1)),
        )


def _vision_flops(model: Any, plan: BranchPlan | None, prompt: Prompt) -> float:
    config = model.config.vision_config
    patches = sum(prompt.images)
    heads = config.num_attention_heads
    if model.config.model_type == "llava":
        tower = model.model.vision_tower
        layers, embedding = tower.encoder.layers, tower.embeddings.patch_embedding
        after = model.model.multi_modal_projector
        size = config.hidden_size // heads
        embedded = after_rows = patches - len(prompt.images)
    else:
        tower = model.model.visual
        layers, embedding, after = tower.blocks, tower.patch_embed.proj, tower.merger
        size = config.embed_dim // heads
        embedded, after_rows = patches, patches // config.spatial_merge_size**2
    copies = 0 if plan is None or plan.vision is None else plan.image_branches
    flops = 2.0 * embedding.weight.numel() * embedded
    flops += (1 + copies) * after_rows * _linear_flops(after)
    for number, layer in enumerate(layers):
        joined = copies if copies and number >= plan.vision_entry else 0
        edited = copies and plan.site == "attention" and plan.vision.edits(number)
        flops += (1 + joined) * patches * _linear_flops(layer)
        formula = _formula("vision", plan.vision) if edited else None
        for branches, edit in ((1, None), (joined, formula)):
            pairs = sum(count * count for count in prompt.images)
            flops += branches * _attention_flops(edit, heads, size, pairs)
    return flops


def _prompt_flops(model: Any, plan: BranchPlan | None, prompt: Prompt) -> float:
    """Of the decoder and the head, which looks at the last token only."""
    text = model.config.text_config
    heads, size = text.num_attention_heads, _head_size(text)
    pairs = prompt.length * (prompt.length + 1) / 2
    flops = 0.0
    for number, layer in enumerate(_layers(model)):
        for branches, formula in _branches(plan, number):
            rows = branches * prompt.batch
            flops += rows * prompt.length * _linear_flops(layer)
            flops += rows * _attention_flops(formula, heads, size, pairs)
    branches = 1 if plan is None else plan.branches
    return flops + branches * prompt.batch * _linear_flops(model.lm_head)


def _branches(plan: BranchPlan | None, layer: int) -> Iterator[tuple[int, Formula | None]]:
    """How many branches a decoder layer computes with which formula (None: factual attention)."""
    if plan is None:
        yield 1, None
        return
    edit = plan.language
    formula = _formula("language", edit) if edit is not None and edit.edits(layer) else None
    edited = (
        plan.image_branches
        if plan.joint
        else plan.branches_in_layer(layer) - 1 - plan.image_branches
    )
    yield plan.branches_in_layer(layer) - edited, None
    yield edited, formula


def _formula(tower: str, edit: Intervention) -> Formula:
    return find(tower, edit.method).formula(edit.normalization)


def _looks_at_scores(formula: Formula | None) -> bool:
    """Whether attention needs the keys: other formulas need values alone."""
    return formula is None or formula.softmax_stats or formula.whole_map


def _attention_flops(formula: Formula | None, heads: int, size: int, pairs: float) -> float:
    """Of so many pairs of a query and a key: products with keys, products with values."""
    scores = _looks_at_scores(formula)
    return (scores + (scores or formula.random_weights)) * 2.0 * heads * size * pairs


def _layers(model: Any) -> nn.ModuleList:
    return model.model.language_model.layers


def _head_size(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def _linear_flops(module: nn.Module) -> int:
    """Of one row."""
    return sum(2 * part.weight.numel() for part in _linears(module))


def _bytes(module: nn.Module) -> int:
    """Of its parameters, leaving out tables of which only some rows are read."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return sum(part.nbytes for part in module.parameters() if id(part) not in tables)
