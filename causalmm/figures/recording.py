"""The queries and keys of one layer, recorded where its attention is called.

The recorder stands where a branch plan stands in a forward (`VisionPass`, `LanguagePass`): the
patched layers ask it for their attention function. It gives the model's own, noting what that was
called with. A hook hands it to one tower for one forward; nothing stays behind.
Held by tests/figures/test_figures_maps.py.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from causalmm.decoding.language_pass import LayerInputs
from causalmm.decoding.vision_pass import PackedInputs


class Call(NamedTuple):
    """One attention call on one row: position embeddings applied, float32, on the CPU."""

    query: Tensor  # [1, H, N, D]
    key: Tensor  # [1, G, N, D]
    scale: float
    layer: int

    @property
    def heads(self) -> int:
        return self.query.shape[1]


class Recorder:
    """Notes the attention calls of one layer in one forward."""

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.calls: list[Call] = []

    def read_mask(self, *decided: Any) -> "Recorder":
        """What queries see is the same in every layer, and not looked at here."""
        return self

    def join_rows(self, layer: int, hidden_states: Tensor, *others: Any) -> Any:
        """No row joins anywhere: a layer gets what it was called with."""
        return LayerInputs(hidden_states, *others) if others else hidden_states

    def join_packed_rows(self, layer: int, inputs: PackedInputs) -> PackedInputs:
        """The same for Qwen2-VL's packed patches."""
        return inputs

    def edits(self, layer: int) -> bool:
        """Whether a Qwen2-VL vision block should call `packed_attention`."""
        return layer == self.layer

    def attention(self, interface: Callable) -> Callable:
        """The attention function that a layer calls instead of `interface`."""
        return partial(self._attend, interface)

    def packed_attention(
        self,
        interface: Callable,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens: Tensor,
    ) -> Tensor:
        """Attention of a Qwen2-VL vision block, each image or frame by itself: [P, H x D]."""
        lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
        segments = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
        scaling = module.scaling
        settings = {"scaling": scaling, "dropout": 0.0, "is_causal": False}
        outputs = [self._attend(interface, module, *each, None, **settings)[0] for each in segments]
        return torch.cat(outputs, dim=1).flatten(2).squeeze(0)

    def _attend(
        self,
        interface: Callable,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *,
        scaling: float,
        **kwargs: Any,
    ) -> Any:
        if module.layer_idx == self.layer:
            # A fused kernel would not give maps.
            parts = (part.float().cpu().split(1) for part in (query, key))
            self.calls += [Call(*row, scaling, self.layer) for row in zip(*parts, strict=True)]
        return interface(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def record_vision(model: Any, inputs: Mapping[str, Tensor], layer: int) -> list[Call]:
    """A call for each image, then one for each frame (frame pair) of the videos."""
    base = model.model
    tower = base.visual if hasattr(base, "visual") else base.vision_tower
    return _record(model, tower, inputs, layer)


def record_language(model: Any, inputs: Mapping[str, Tensor], layer: int) -> Call:
    """The call over the prompt, one row without padding."""
    (call,) = _record(model, model.model.language_model, inputs, layer)
    return call


@torch.no_grad()
def _record(model: Any, tower: nn.Module, inputs: Mapping[str, Tensor], layer: int) -> list[Call]:
    recorder = Recorder(layer)

    def hand_over(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        return args, kwargs | {"causalmm": recorder}

    handle = tower.register_forward_pre_hook(hand_over, with_kwargs=True)
    try:
        model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return recorder.calls
