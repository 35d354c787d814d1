"""The ways to compute an attention call, in order of preference.

A backend is a module with the two functions of `Backend`. Tests: tests/counterfactual.
"""

from typing import Protocol

from torch import Tensor

from causalmm.counterfactual.attention_call import AttentionCall
from causalmm.counterfactual.backends import flex, portable


class Backend(Protocol):
    """One way to compute a call."""

    def supports(self, call: AttentionCall) -> bool:
        """Whether it computes this call, on this device, faster than those after it."""

    def run(self, call: AttentionCall) -> Tensor:
        """Outputs [B, H, Q, D] in the dtype of the query; anything where a query sees no key."""


BACKENDS: tuple[Backend, ...] = (flex, portable)
"""The first that supports a call runs it; the last supports every call."""
