"""Attention by random weights in a decoding step, drawn for several layers at a time.

One layer draws little in a step, but that takes some forty small operations however little it is.
And only values are read: a kernel of attention would read the keys, for scores that nothing needs.
Letters as in causalmm/attention.py. Held by tests/test_step_luck.py.
"""

import torch
from torch import Tensor

from causalmm import hashing
from causalmm.attention import weighted
from causalmm.attention_call import (
    BLOCK_ENTRIES,
    CONVERTED_A_WEIGHT,
    block_entries,
    grouped,
    precision,
)
from causalmm.plan import Intervention
from causalmm.visible import Visible


class StepLuck:
    """The random weights of one forward with one query a row. Lives for that forward only."""

    def __init__(self, edit: Intervention, visible: Visible) -> None:
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
        keys = value.shape[2]
        if layer not in self._drawn:
            self._draw(layer, rows, heads, keys, value.device)
        weights = self._drawn.pop(layer).expand(-1, rows // self.edit.draws, -1, -1, -1)
        weights = weights.flatten(0, 1).to(value.device, precision(value.dtype))
        visible, total = self.visible.to(value.device).rows(rows), None
        if self.edit.normalization == "released":
            total = weights.sum(dim=-1, keepdim=True)
        if not visible.everything(keys):
            weights = weights.masked_fill(~visible.map(1, keys, value.device), 0)
        if total is None:
            total = weights.sum(dim=-1, keepdim=True)
        # Autocast would quietly run the matrix product in half precision.
        with torch.autocast(value.device.type, enabled=False):
            if value.device.type == "cpu":
                output = weighted(weights, total, value)
            else:
                # Rounded like those of PyTorch's kernels, so that values need not be converted.
                weights = weights / total.clamp_min(torch.finfo(total.dtype).tiny)
                output = grouped(weights.to(value.dtype), value)
        # Sums beyond float32 would be NaN, as in language_attention.
        return output.to(query.dtype).nan_to_num_(0.0)

    def _draw(self, layer: int, rows: int, heads: int, keys: int, device: torch.device) -> None:
        """Draw for this edited layer and as many later ones as fit a block."""
        edit, visible = self.edit, self.visible.to(device)
        layers = edit.layers[edit.layers.index(layer) :]
        if not torch.compiler.is_compiling():  # which decides itself what exists at a time
            layers = layers[: max(1, block_entries(device) // (rows * heads * keys))]
        streams = [hashing.streams(edit.seed, range(edit.draws), of, device) for of in layers]
        numbers = hashing.of_streams(
            torch.cat(streams),
            hashing.numbered(heads, device),
            visible.query_positions(1, keys, device),
            visible.key_positions(keys, device),
        )
        if numbers.ndim == 4:  # no padding: all samples count positions alike
            numbers = numbers.unsqueeze(1)
        of_layers = numbers.unflatten(0, (len(layers), edit.draws))  # [..., S, n or 1, H, 1, K]
        self._drawn = dict(zip(layers, of_layers, strict=True))
