"""Attention by random weights in a decoding step, drawn for several layers at a time.

One layer draws little in a step, but that takes some forty small operations however little it is.
And only values are read: a kernel of attention would read the keys, for scores that nothing needs.
Letters as in causalmm/counterfactual/attention.py. Held by
tests/counterfactual/test_random_step.py.
"""

import torch
from torch import Tensor

from causalmm.counterfactual import random_weights
from causalmm.counterfactual.attention_call import (
    BLOCK_ENTRIES,
    CONVERTED_A_WEIGHT,
    block_entries,
    grouped,
    precision,
)
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.backends import amx
from causalmm.counterfactual.intervention import Intervention

TINY = torch.finfo(torch.float32).tiny


class StepRandomWeights:
    """The random weights of one forward with one query a row. Lives for that forward only."""

    def __init__(self, edit: Intervention, visible: AttentionMask) -> None:
        self.edit, self.visible = edit, visible
        self._drawn: dict[int, Tensor] = {}

    def serves(self, query: Tensor, value: Tensor) -> bool:
        """Whether `attention` should be used: else blocks of heads do better."""
        return (
            query.shape[2] == 1
            and not (torch.is_grad_enabled() and value.requires_grad)
            and (
                torch.compiler.is_compiling()
                or value.device.type != "cpu"
                or value.numel() <= CONVERTED_A_WEIGHT * BLOCK_ENTRIES
            )
        )

    def attention(self, layer: int, query: Tensor, value: Tensor) -> Tensor:
        """What `language_attention` gives in this layer: [B, H, 1, D] in the query's dtype.

        Query [B, H, 1, D], of which only the shape matters, and value [B, G, K, D].
        """
        rows, heads = query.shape[:2]
        if layer not in self._drawn:
            self._draw(layer, rows, heads, value)
        weights = self._drawn.pop(layer).to(value.device)
        weights = weights.expand(-1, rows // self.edit.draws, -1, -1, -1).flatten(0, 1)
        # Autocast would quietly run the matrix product in half precision.
        with torch.autocast(value.device.type, enabled=False):
            return grouped(weights, value.to(weights.dtype)).to(query.dtype)

    def _draw(self, layer: int, rows: int, heads: int, value: Tensor) -> None:
        """Draw for this edited layer and as many later ones as fit a block."""
        device, keys = value.device, value.shape[2]
        edit, visible = self.edit, self.visible.to(device)
        layers = edit.layers[edit.layers.index(layer) :]
        if not torch.compiler.is_compiling():  # which decides itself what exists at a time
            layers = layers[: max(1, block_entries(device) // (rows * heads * keys))]
        streams = [
            random_weights.streams(edit.seed, range(edit.draws), of, device) for of in layers
        ]
        numbers = random_weights.of_streams(
            torch.cat(streams),
            random_weights.numbered(heads, device),
            visible.query_positions(1, keys, device),
            visible.key_positions(keys, device),
        )
        if numbers.ndim == 4:  # no padding: all samples count positions alike
            numbers = numbers.unsqueeze(1)
        numbers = numbers.unflatten(0, (len(layers), edit.draws)).to(precision(value.dtype))
        weights = numbers  # [..., S, n or 1, H, 1, K]
        if not visible.is_full(keys):
            weights = numbers * visible.to_dense(1, keys, device)
        summed = numbers if edit.normalization == "released" else weights
        weights = weights / summed.sum(dim=-1, keepdim=True).clamp_min(TINY)
        if device.type != "cpu" or amx.supports(value):
            # Rounded like those of PyTorch's kernels, so that values need not be converted.
            weights = weights.to(value.dtype)
        self._drawn = dict(zip(layers, weights, strict=True))
