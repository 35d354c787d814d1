"""Wrap a model that the authors' package has built.

Tests: tests/families/test_authors_format.py.
"""

from typing import Any

from accelerate import init_empty_weights

from llava_causalmm.authors.config import convert
from llava_causalmm.authors.weights import TOWER, renamed
from llava_causalmm.model import AuthorsLlava


def from_llava(llava: Any) -> AuthorsLlava:
    """A `LlavaLlamaForCausalLM` of the authors' package as ours, on the same weights.

    No tensor is copied: what changes a weight of one changes the other's. The result is in eval
    mode. Raises TypeError for any other object, ValueError where it is quantized, on several
    devices, without its vision tower, or not LLaVA-1.5.
    """
    if not (hasattr(llava, "get_vision_tower") and hasattr(llava, "lm_head")):
        raise TypeError(f"expected a LlavaLlamaForCausalLM, got {type(llava).__name__}")
    tower = llava.get_vision_tower()
    if not getattr(tower, "is_loaded", False):
        raise ValueError(
            "the model's vision tower is not loaded: call model.get_vision_tower().load_model()"
        )
    if getattr(llava, "is_quantized", False):
        raise ValueError("the model is quantized: load its checkpoint with from_pretrained instead")
    devices = {each.device for each in (*llava.parameters(), *tower.parameters())}
    if len(devices) > 1:
        raise ValueError("the model is on several devices: expected one")
    config = convert(llava.config.to_dict(), tower.vision_tower.config)
    with init_empty_weights():
        wrapped = AuthorsLlava._from_config(
            config, attn_implementation=llava.config._attn_implementation
        )
    state = {name: each for name, each in llava.state_dict().items() if "vision_tower." not in name}
    ours = renamed(state)
    # Asked for itself: a tower that the authors keep in a list is none of the model's modules.
    ours |= {TOWER + name: each for name, each in tower.vision_tower.state_dict().items()}
    wrapped.load_state_dict(ours, assign=True)
    wrapped.generation_config = llava.generation_config
    # The buffers, which are computed.
    return wrapped.to(devices.pop()).eval()
