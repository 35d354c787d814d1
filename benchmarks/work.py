"""What a prefill or a decoding step cannot do without: FLOPs of matrix products, bytes read.

Linear layers count by the rows that pass them in a plain forward and by a plan's row groups,
attention by the pairs of a query and a key that it may see. A *bound* is that work at the measured
speed of this machine. Hashing, softmax, norms and copies of caches are not counted: they are in the
gap between bound and measurement. Text before the image counts for every branch, though large
batches compute it once for all image branches (causalmm/decoding/shared_prefix.py).
Tests: tests/measuring/test_benchmarks.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from measure import timed
from torch import Tensor, nn
from torch.nn.functional import linear

from causalmm.counterfactual.intervention import Intervention
from causalmm.counterfactual.methods import Formula, find
from causalmm.decoding.plan import BranchPlan

_REPEATS = 3
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


class Prompt(NamedTuple):
    """What of a prompt decides the work."""

    batch: int
    """Rows, each with one image of the same size."""
    length: int
    """Tokens, those of the image included."""
    rows: dict[nn.Module, int]
    """Rows that pass each linear layer and convolution in a plain prefill."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, inputs: dict[str, Tensor]) -> "Prompt":
        """Found by one plain prefill."""
        rows: dict[nn.Module, int] = {}

        def note(module: nn.Module, _: Any, output: Tensor) -> None:
            rows[module] = output.numel() // len(module.weight)

        hooks = [module.register_forward_hook(note) for module in _products(model)]
        try:
            model(**inputs, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        return cls(*inputs["input_ids"].shape, rows)


def prefill(model: Any, plan: BranchPlan | None, prompt: Prompt) -> Work:
    """From pixels and tokens to the first logits."""
    flops = _vision_flops(model, plan, prompt)
    pairs = prompt.length * (prompt.length + 1) / 2
    for number, layer in enumerate(model.get_decoder().layers):
        for groups, formula in _language_groups(plan, number):
            flops += groups * _linear_flops(layer, prompt)
            flops += groups * prompt.batch * _attention_flops(layer.self_attn, formula, pairs)
    flops += _head_groups(plan) * _linear_flops(model.lm_head, prompt)
    return Work(flops, sum(_bytes(part) for part in (model.model, model.lm_head)))


def decode(model: Any, plan: BranchPlan | None, prompt: Prompt, keys: int) -> Work:
    """One step whose queries see `keys` keys, their own included."""
    one = prompt._replace(rows=dict.fromkeys(prompt.rows, prompt.batch))
    flops = _head_groups(plan) * _linear_flops(model.lm_head, one)
    read = float(_bytes(model.lm_head))
    for number, layer in enumerate(model.get_decoder().layers):
        attention = layer.self_attn
        read += _bytes(layer)
        for groups, formula in _language_groups(plan, number):
            flops += groups * _linear_flops(layer, one)
            flops += groups * prompt.batch * _attention_flops(attention, formula, keys)
            parts = [attention.v_proj]
            parts += [attention.k_proj] if formula is None or formula.scores else []
            width = sum(part.out_features for part in parts)
            read += groups * prompt.batch * keys * width * model.dtype.itemsize
    return Work(flops, read)


def measure_speed(model: Any, tokens: int) -> Speed:
    """What this machine does with this model's weights. Takes a few prefills' time."""
    device, dtype = model.device, model.dtype
    weights = [each.weight for each in _products(model.get_decoder())]
    # Far beyond any cache, and on a GPU far beyond what starting a kernel takes.
    size = 2**30 if device.type == "cuda" else 2**28
    large = torch.ones(size // dtype.itemsize, dtype=dtype, device=device)

    def best(call: Callable[[], Any]) -> float:
        call()
        return min(timed(call, device) for _ in range(_REPEATS))

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


def attention_modules(tower: nn.Module) -> list[nn.Module]:
    """The attention of each layer of a tower."""
    return [module for module in tower.modules() if hasattr(module, "is_causal")]


def _vision_flops(model: Any, plan: BranchPlan | None, prompt: Prompt) -> float:
    tower = model.get_encoder("image")
    layers = next(part for part in tower.modules() if isinstance(part, nn.ModuleList))
    copies = 0 if plan is None else plan.image_groups
    within = {*_products(layers), *_products(model.get_decoder()), model.lm_head}
    flops = 0.0
    for module in prompt.rows:
        if module not in within:  # patches are embedded once, and projected for every copy
            groups = 1 + copies if isinstance(module, nn.Linear) else 1
            flops += groups * _linear_flops(module, prompt)
    for number, (layer, attention) in enumerate(zip(layers, attention_modules(tower), strict=True)):
        joined = copies if copies and number >= plan.vision_entry else 0
        edited = joined and plan.site == "attention" and plan.vision.edits(number)
        formula = _formula("vision", plan.vision) if edited else None
        patches = prompt.rows[next(iter(_products(layer)))] // prompt.batch
        flops += (1 + joined) * _linear_flops(layer, prompt)
        for groups, edit in ((1, None), (joined, formula)):
            flops += groups * prompt.batch * _attention_flops(attention, edit, patches**2)
    return flops


def _language_groups(plan: BranchPlan | None, layer: int) -> list[tuple[int, Formula | None]]:
    """Row groups of a decoder layer, and the formula that edits them."""
    if plan is None:
        return [(1, None)]
    edit = plan.language
    formula = _formula("language", edit) if edit is not None and edit.edits(layer) else None
    plain = 1 if plan.joint else 1 + plan.image_groups
    return [(plain, None), (plan.groups_in_layer(layer) - plain, formula)]


def _head_groups(plan: BranchPlan | None) -> int:
    return 1 if plan is None else plan.groups


def _formula(tower: str, edit: Intervention) -> Formula:
    return find(tower, edit.method).formula(edit.normalization)


def _attention_flops(module: Any, formula: Formula | None, pairs: float) -> float:
    """Of so many pairs of a query and a key in each head: products with keys and with values."""
    heads = getattr(module, "num_heads", None) or module.config.num_attention_heads
    products = 2 if formula is None else formula.products
    return products * 2.0 * heads * module.head_dim * pairs


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
