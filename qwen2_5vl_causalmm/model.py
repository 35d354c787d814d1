"""Qwen2.5-VL with counterfactual branches: the patched upstream class plus `causalmm=`."""

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from causalmm.decoding.generation import CounterfactualGeneration
from causalmm.decoding.plan import Towers
from qwen2_5vl_causalmm import modeling_qwen2_5_vl


class Qwen2_5_VLForConditionalGeneration(
    CounterfactualGeneration, modeling_qwen2_5_vl.Qwen2_5_VLForConditionalGeneration
):
    """Upstream's class of this name; `generate` and `forward` also take `causalmm`."""

    def causalmm_towers(self) -> Towers:
        if "sliding_attention" in self.config.text_config.layer_types:
            raise ValueError("causalmm does not support sliding-window attention layers")
        vision, text = self.config.vision_config, self.config.text_config
        return Towers(
            vision_layers=vision.depth,
            full_vision_layers=tuple(sorted(vision.fullatt_block_indexes)),
            language_layers=text.num_hidden_layers,
            language_heads=text.num_attention_heads,
        )

    def causalmm_patch_order(self, grid_thw: Tensor) -> Tensor:
        """As in `CounterfactualGeneration`: window by window, token by token."""
        vision = self.config.vision_config
        tokens, _ = get_vision_window_index(
            grid_thw, vision.spatial_merge_size, vision.window_size, vision.patch_size
        )
        patches = vision.spatial_merge_size**2
        return (tokens.unsqueeze(1) * patches + torch.arange(patches)).flatten()
