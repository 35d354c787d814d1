"""What the demonstration model of each family is shown and taught: one row a family."""

from typing import Any, NamedTuple


class Recipe(NamedTuple):
    """Of a family's demonstration model."""

    stream: str
    """In the seeds of training batches. It stays as the packaged checkpoints were trained."""
    sizes: tuple[tuple[int, int], ...]
    """Of pictures, in pixels (width, height)."""
    marker: str
    """In the chat template's text: what an image ends with."""
    placeholder: str
    """The token that stands for an image."""
    space: str
    """Before an answer."""
    vision_layers: str
    """The vision tower's layers among the modules of `model.model`."""
    projector: str
    """The module after the tower, there too."""
    cells_before_projector: bool
    """Whether the auxiliary head reads what goes into the projector, not what comes out."""
    multi_axis: bool
    """Whether positions have three axes (M-RoPE) and pictures any size."""
    training: dict[str, Any]
    """`TrainingSettings` that differ from the defaults, meant for 45 minutes on 2 cores; what a run
    took is in its training.json."""


RECIPES = {
    "llava": Recipe(
        stream="llava",
        sizes=((112, 112),),
        marker="<image>\n",
        placeholder="<image>",
        space=" ",
        vision_layers="vision_tower.encoder.layers",
        projector="multi_modal_projector",
        cells_before_projector=True,
        multi_axis=False,
        training={
            "steps": 1500,
            "cell_steps": 1500,
            "late_steps": 100,
            "rephrased": 0.2,
            "canonical": 0.8,
        },
    ),
    "qwen2_vl": Recipe(
        stream="qwen2vl",
        # Many shapes of about 64 tokens, so that dynamic resolution is learnt.
        sizes=((112, 112), (140, 84), (84, 140), (126, 98), (98, 126), (112, 84), (84, 112)),
        marker="<|vision_end|>",
        placeholder="<|image_pad|>",
        space="",
        vision_layers="visual.blocks",
        projector="visual.merger",
        cells_before_projector=False,
        multi_axis=True,
        # Images cost more here, so each is asked more about.
        training={
            "steps": 1400,
            "cell_steps": 480,
            "rephrased": 0.2,
            "existence_pairs": 3,
            "text_rows": 24,
            "statement_weight": 3.0,
            "own_group": 0.2,
            "canonical": 0.8,
        },
    ),
}
