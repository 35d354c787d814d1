"""What each branch said at each step, for whoever wants to look: evaluation, `--json`, figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:  # commands import this package before they need torch
    from torch import Tensor


class StepLogits(NamedTuple):
    """Logits of one decoding step at the last position, [batch, vocab], float32.

    For a trace of `every_position`, at all that the forward keeps: [batch, positions, vocab]. A
    branch the plan does not have is None; so is `unmasked`, the adjusted logits before the
    plausibility mask, where there is no mask or no branch.
    """

    factual: Tensor
    adjusted: Tensor
    vision: Tensor | None = None
    language: Tensor | None = None
    joint: Tensor | None = None
    unmasked: Tensor | None = None


@dataclass
class BranchTrace:
    """Give one to `generate(..., causalmm=config, causalmm_trace=trace)`; read `steps` after it.

    Without a configuration it shows the plain model. A subclass may keep less than whole logits.
    """

    every_position: ClassVar[bool] = False
    """Whether it records more than the last position of a forward."""
    watches_images: ClassVar[bool] = False
    """Whether `record_image_mass` is called; it costs one attention more a layer."""
    steps: list[StepLogits] = field(default_factory=list)

    def record(self, step: StepLogits) -> None:
        """Called once a step."""
        self.steps.append(step)

    def record_image_mass(self, layer: int, factual: Tensor, branch: Tensor) -> None:
        """Called in every edited decoder layer of a forward with image tokens, if wanted.

        The share of its attention that each query gives to image keys, [batch, heads, queries] of
        the factual rows and [draws x batch, heads, queries] of the edited ones; factual 0 for
        image tokens and where no image key is seen.
        """
