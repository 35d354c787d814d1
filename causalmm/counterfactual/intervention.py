"""What an intervention is: a method on some layers of one tower, or noised pixels; in S draws."""

from dataclasses import dataclass, field

from causalmm.counterfactual.methods import Formula, find


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """One counterfactual attention: a method on some layers of one tower, in S draws."""

    tower: str
    method: str
    scope: str = "all"
    """Of the decoder: of which keys the weights are edited."""
    edited: tuple[bool, ...]
    """Whether each layer is edited. Truth values, because a compiler may turn any integer it is
    handed into a symbol, and Dynamo answers `symbol in (1, 2)` with False."""
    normalization: str
    heads: str = "all"
    """Of the decoder: which query heads are edited, as the setting names them."""
    edited_heads: tuple[tuple[bool, ...], ...] | None = field(default=None, repr=False)
    """The same for each layer and head; None: all, or those that are found in the prompt."""
    image_heads: int = 0
    """How many heads of each edited layer are found in the prompt, by their attention on image
    tokens."""
    seed: int
    draws: int

    @property
    def formula(self) -> Formula:
        """How its outputs are computed."""
        return find(self.tower, self.method).formula(self.normalization, self.scope)

    def edits(self, layer: int) -> bool:
        """Whether attention in `layer` is edited; not so above the layers that were counted."""
        return layer < len(self.edited) and self.edited[layer]

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers, ascending."""
        return tuple(layer for layer, edited in enumerate(self.edited) if edited)

    @property
    def first_layer(self) -> int:
        """The layer from which an edited row differs from a factual one."""
        return self.layers[0]


@dataclass(frozen=True, kw_only=True)
class PixelNoise:
    """Noise on the pixels that the vision encoder is given, in S draws. It edits no attention."""

    method: str
    noise_step: int
    seed: int
    draws: int
    first_layer: int = 0
    """The layer from which a noised row differs from a factual one."""

    def edits(self, layer: int) -> bool:
        """Whether attention in `layer` is edited."""
        return False
