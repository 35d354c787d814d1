"""Which keys each query may see, without a map of it.

n samples, Q queries, K keys; the Q queries follow one another among the K keys.
Held by tests/test_attention.py.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Visible:
    """Which keys each query of each sample may see."""

    keys: Tensor | None = None
    """Real keys, bool [n or 1, K]: False is padding. None: all are real."""
    causal: bool = True
    """Whether query i sees key j only if j <= query_start + i."""
    query_start: int | Tensor = 0
    """Index among the K keys of the first query. A tensor, of no dimensions, where a static cache
    counts on the device."""
    mask: Tensor | None = None
    """Bool [n or 1, 1, Q, K], True = sees: decides instead of the above; `keys` still says which
    are real."""

    def everything(self, key_count: int) -> bool:
        """Whether every query is known to see every key."""
        if self.keys is not None or self.mask is not None:
            return False
        if not self.causal:
            return True
        return isinstance(self.query_start, int) and self.query_start >= key_count - 1

    def map(self, query_count: int, key_count: int, device: torch.device | None = None) -> Tensor:
        """What the queries see, written out: bool [n or 1, 1, Q, K]."""
        if self.mask is not None:
            return self.mask
        if self.causal:
            seen = self.index(query_count, device).unsqueeze(-1) >= torch.arange(
                key_count, device=device
            )
        else:
            seen = torch.ones(query_count, key_count, dtype=torch.bool, device=device)
        return seen[None, None] if self.keys is None else seen & self.keys[:, None, None, :]

    def key_positions(self, key_count: int, device: torch.device | None = None) -> Tensor:
        """How many real keys come before each, so padding anywhere changes nothing: [K] or [n, K].

        Padding itself has some position or other: nothing sees it.
        """
        if self.keys is None:
            return torch.arange(key_count, device=device)
        return self.keys.cumsum(dim=-1) - 1

    def query_positions(
        self, query_count: int, key_count: int, device: torch.device | None = None
    ) -> Tensor:
        """The same for the queries: [Q] or [n, Q]."""
        return self.key_positions(key_count, device)[..., self.index(query_count, device)]

    def index(self, query_count: int, device: torch.device | None = None) -> Tensor:
        """Where the queries stand among the keys: [Q]."""
        return self.query_start + torch.arange(query_count, device=device)

    def count(self, query_count: int, key_count: int, device: torch.device | None = None) -> Tensor:
        """How many keys each query sees where `keys` and `mask` hide none: [Q], or [1] for all."""
        if not self.causal:
            return torch.full((1,), key_count, device=device)
        return self.index(query_count, device) + 1

    def reach(self, queries: range, key_count: int) -> int:
        """How many leading keys hold all that these queries see."""
        if self.causal and self.mask is None and isinstance(self.query_start, int):
            return max(0, min(self.query_start + queries.stop, key_count))
        return key_count

    def block(self, queries: range, keys: int) -> "Visible":
        """The same for some of the queries and the leading `keys` keys."""
        mask = self.mask
        return replace(
            self,
            keys=None if self.keys is None else self.keys[:, :keys],
            query_start=self.query_start + queries.start,
            mask=None if mask is None else mask[:, :, queries.start : queries.stop, :keys],
        )

    def among(self, keys: range) -> "Visible":
        """The same where these are all the keys there are."""
        mask = self.mask
        return replace(
            self,
            keys=None if self.keys is None else self.keys[:, keys.start : keys.stop],
            query_start=self.query_start - keys.start,
            mask=None if mask is None else mask[..., keys.start : keys.stop],
        )

    def repeat(self, draws: int) -> "Visible":
        """The same for the rows of `draws` draws."""
        if draws == 1:
            return self
        keys, mask = (
            part if part is None or len(part) == 1 else part.repeat(draws, *[1] * (part.ndim - 1))
            for part in (self.keys, self.mask)
        )
        return replace(self, keys=keys, mask=mask)

    def rows(self, count: int) -> "Visible":
        """The same for `count` rows, which hold the samples one or more times."""
        lengths = [len(part) for part in (self.keys, self.mask) if part is not None]
        return self.repeat(count // max(lengths, default=count))

    def to(self, device: torch.device) -> "Visible":
        """The same on another device, for a layer that lives there."""
        keys, start, mask = (
            part.to(device) if isinstance(part, Tensor) else part
            for part in (self.keys, self.query_start, self.mask)
        )
        return replace(self, keys=keys, query_start=start, mask=mask)
