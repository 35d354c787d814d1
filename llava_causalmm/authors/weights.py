"""The tensors of the authors' checkpoints, under the names of transformers' LLaVA.

Files are mapped into memory, not read: a tensor costs memory when the model takes it, and in
pickled files nothing but tensors is ever opened. Held by tests/families/test_authors_format.py.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import load_state_dict

from causalmm.families.weight_files import weight_files
from llava_causalmm.authors.config import tower_options

TOWER = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector."

_RENAMED = (
    # First match wins. `vision_model.` is in files saved before transformers 5.
    (r"model\.vision_tower\.vision_tower\.(vision_model\.)?", TOWER),
    (r"model\.mm_projector\.(0\.)?(?=weight|bias)", f"{PROJECTOR}linear_1."),
    (r"model\.mm_projector\.2\.", f"{PROJECTOR}linear_2."),
    (r"model\.", "model.language_model."),
)
# Buffers that older releases saved and newer ones compute.
_COMPUTED = (".rotary_emb.inv_freq", ".position_ids")


def read_tensors(source: str, settings: Mapping[str, Any], **hub: Any) -> dict[str, Tensor]:
    """Every tensor of a LLaVA checkpoint, its tower from `mm_vision_tower` if not among them.

    Raises RequestError where there are no weights.
    """
    state = renamed(_stored(source, **hub))
    if not any(name.startswith(TOWER) for name in state):
        state |= _tower(settings["mm_vision_tower"], **tower_options(hub))
    return state


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors under our names; those of computed buffers left out.

    A linear projector becomes transformers' two layers, the second one the identity.
    """
    ours = {our_name(name): each for name, each in state.items() if not name.endswith(_COMPUTED)}
    weight = ours.get(f"{PROJECTOR}linear_1.weight")
    if weight is not None and "model.mm_projector.weight" in state:
        size = weight.shape[0]
        options = {"dtype": weight.dtype, "device": weight.device}
        ours[f"{PROJECTOR}linear_2.weight"] = torch.eye(size, **options)
        ours[f"{PROJECTOR}linear_2.bias"] = torch.zeros(size, **options)
    return ours


def our_name(name: str) -> str:
    """The name in transformers' LLaVA of a tensor of the authors'."""
    for pattern, replacement in _RENAMED:
        changed, times = re.subn(f"^{pattern}", replacement, name)
        if times:
            return changed
    return name


def _stored(source: str, **hub: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in weight_files(source, **hub):
        state |= load_state_dict(file)
    return state


def _tower(tower: str, **hub: Any) -> dict[str, Tensor]:
    state = _stored(tower, **hub)
    # The checkpoint of a whole CLIP holds its text tower too.
    prefix = "vision_model."
    if any(name.startswith(prefix) for name in state):
        state = {
            name.removeprefix(prefix): each
            for name, each in state.items()
            if name.startswith(prefix)
        }
    return {TOWER + name: each for name, each in state.items() if not name.endswith(_COMPUTED)}
