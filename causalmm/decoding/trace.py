"""What each branch said at each step, for whoever wants to look: evaluation, `--json`, figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # commands import this package before they need torch
    from torch import Tensor


class StepLogits(NamedTuple):
    """Logits of one decoding step at the last position, [batch, vocab], float32.

    A branch the plan does not have is None; so is `unmasked`, the adjusted logits before the
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

    steps: list[StepLogits] = field(default_factory=list)

    def record(self, step: StepLogits) -> None:
        """Called once a step."""
        self.steps.append(step)
