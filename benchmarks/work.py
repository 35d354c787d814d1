"""What a prefill or a decoding step cannot do without: FLOPs of matrix products, bytes read.

Linear layers count by the rows that pass them in a plain forward and by a plan's branches,
attention by the pairs of a query and a key that it may see; heads that are chosen count as all.
Hashing, softmax, norms and copies of
caches are not counted.
Tests: tests/measuring/test_benchmarks.py.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from causalmm.counterfactual.intervention import PixelNoise
from causalmm.counterfactual.methods import Formula
from causalmm.decoding.plan import BranchPlan
from causalmm.figures.recording import attention_modules


class Work(NamedTuple):
    """Of one call."""

    flops: float
    read: float
    """Bytes of weights and cache."""


class Prompt(NamedTuple):
    """What of a prompt decides the work."""

    batch: int
    """Rows, each with one image of the same size."""
    length: int
    """Tokens, those of the image included."""
    rows: dict[nn.Module, int]
    """Rows that pass each linear layer and convolution in a plain prefill."""
    vision_pairs: dict[nn.Module, int]
    """Of all rows, pairs of patches that see each other in each attention of the vision tower."""
    image: int = 0
    """Image tokens of a row."""
    image_pairs: int = 0
    """Of a row, pairs of a text token and an image token before it."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, inputs: dict[str, Tensor]) -> "Prompt":
        """Found by one plain prefill."""
        rows: dict[nn.Module, int] = {}
        vision_pairs: dict[nn.Module, int] = {}

        def note(module: nn.Module, _: Any, output: Tensor) -> None:
            rows[module] = output.numel() // len(module.weight)

        def note_pairs(module: nn.Module, _: Any, kwargs: dict[str, Any], output: Any) -> None:
            if "cu_seqlens" in kwargs:  # patches are packed: images or windows of them
                pairs = kwargs["cu_seqlens"].diff().square().sum()
            else:
                count, patches = output[0].shape[:2]
                pairs = count * patches**2
            vision_pairs[module] = int(pairs)

        hooks = [module.register_forward_hook(note) for module in _products(model)]
        for module in attention_modules(model.get_encoder("image")):
            hooks.append(module.register_forward_hook(note_pairs, with_kwargs=True))
        try:
            model(**inputs, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        image = inputs["input_ids"][0] == model.config.image_token_id
        pairs = image.cumsum(dim=0)[~image].sum()
        shape = inputs["input_ids"].shape
        return cls(*shape, rows, vision_pairs, int(image.sum()), int(pairs))


def prefill(model: Any, plan: BranchPlan | None, prompt: Prompt) -> Work:
    """From pixels and tokens to the first logits."""
    flops = _vision_flops(model, plan, prompt)
    pairs = prompt.length * (prompt.length + 1) / 2
    for number, layer in enumerate(model.get_decoder().layers):
        for branches, formula in _language_branches(plan, number):
            flops += branches * _linear_flops(layer, prompt)
            each = _attention_flops(layer.self_attn, formula, pairs, prompt.image_pairs)
            flops += branches * prompt.batch * each
    flops += _head_branches(plan) * _linear_flops(model.lm_head, prompt)
    return Work(flops, sum(_bytes(part) for part in (model.model, model.lm_head)))


def decode(model: Any, plan: BranchPlan | None, prompt: Prompt, keys: int) -> Work:
    """One step whose queries see `keys` keys, their own included."""
    one = prompt._replace(rows=dict.fromkeys(prompt.rows, prompt.batch))
    flops = _head_branches(plan) * _linear_flops(model.lm_head, one)
    read = float(_bytes(model.lm_head))
    for number, layer in enumerate(model.get_decoder().layers):
        attention = layer.self_attn
        read += _bytes(layer)
        for branches, formula in _language_branches(plan, number):
            flops += branches * _linear_flops(layer, one)
            each = _attention_flops(attention, formula, keys, prompt.image)
            flops += branches * prompt.batch * each
            width = attention.v_proj.out_features
            if _looks_at_scores(formula):
                width += attention.k_proj.out_features
            blind = formula is not None and formula.part == "outside"
            looked_at = keys - prompt.image if blind else keys
            read += branches * prompt.batch * looked_at * width * model.dtype.itemsize
    return Work(flops, read)


def _vision_flops(model: Any, plan: BranchPlan | None, prompt: Prompt) -> float:
    tower = model.get_encoder("image")
    layers = next(part for part in tower.modules() if isinstance(part, nn.ModuleList))
    copies = 0 if plan is None else plan.image_branches
    within = {*_products(layers), *_products(model.get_decoder()), model.lm_head}
    noisy = isinstance(plan and plan.vision, PixelNoise)
    shared = _read_before(tower, plan.vision_entry) if copies and not noisy else set()
    flops = 0.0
    for module in prompt.rows:
        if module not in within:  # patches are embedded once, and projected for every copy
            every = noisy or (isinstance(module, nn.Linear) and module not in shared)
            branches = 1 + copies if every else 1
            flops += branches * _linear_flops(module, prompt)
    for number, (layer, attention) in enumerate(zip(layers, attention_modules(tower), strict=True)):
        # Site "features" weighs features and runs no further rows.
        inside = copies and plan.site == "attention" and number >= plan.vision_entry
        joined = copies if inside else 0
        edited = joined and plan.vision.edits(number)
        formula = plan.vision.formula if edited else None
        flops += (1 + joined) * _linear_flops(layer, prompt)
        for branches, edit in ((1, None), (joined, formula)):
            pairs = prompt.vision_pairs[attention]
            flops += branches * _attention_flops(attention, edit, pairs)
    return flops


def _read_before(tower: nn.Module, entry: int) -> set[nn.Module]:
    """What projects features of layers below `entry`, where DeepStack reads several layers."""
    taps = getattr(tower, "deepstack_visual_indexes", ())
    mergers = zip(taps, tower.deepstack_merger_list, strict=True) if taps else ()
    return {part for tap, merger in mergers if tap < entry for part in _products(merger)}


def _language_branches(plan: BranchPlan | None, layer: int) -> list[tuple[int, Formula | None]]:
    """How many branches a decoder layer computes with which formula (None: factual attention)."""
    if plan is None:
        return [(1, None)]
    edit = plan.language
    formula = edit.formula if edit is not None and edit.edits(layer) else None
    plain = 1 if plan.joint else 1 + plan.image_branches
    return [(plain, None), (plan.branches_in_layer(layer) - plain, formula)]


def _head_branches(plan: BranchPlan | None) -> int:
    return 1 if plan is None else plan.branches


def _looks_at_scores(formula: Formula | None) -> bool:
    """Whether attention needs the keys: other formulas need values alone."""
    return formula is None or formula.takes_stats or formula.whole_map


def _attention_flops(
    module: Any, formula: Formula | None, pairs: float, image_pairs: int = 0
) -> float:
    """Of so many pairs of a query and a key in each head: products with keys and with values.

    `image_pairs` of them are of a text token and an image token: those that scope "image" edits.
    """
    heads = getattr(module, "num_heads", None) or module.config.num_attention_heads
    scores = _looks_at_scores(formula)
    products = (scores + (scores or formula.random_weights)) * pairs  # sums take none
    if formula is not None and formula.part == "outside":
        products -= 2 * image_pairs
    elif formula is not None and formula.part == "inside":
        # Their scores say how much of the attention is theirs; even weights need no more.
        products -= (not (formula.softmax_stats or formula.random_weights)) * image_pairs
    return products * 2.0 * heads * module.head_dim


def _products(module: nn.Module) -> list[nn.Module]:
    """Linear layers and convolutions."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return [part for part in module.modules() if isinstance(part, kinds)]


def _linear_flops(module: nn.Module, prompt: Prompt) -> float:
    return sum(2.0 * part.weight.numel() * prompt.rows.get(part, 0) for part in _products(module))


def _bytes(module: nn.Module) -> int:
    """Of its parameters, leaving out tables of which only some rows are read."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return sum(part.nbytes for part in module.parameters() if id(part) not in tables)
