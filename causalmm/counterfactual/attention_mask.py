"""Which keys each query may see, without a map of it.

n samples, Q queries, K keys; the Q queries follow one another among the K keys.
Tests: tests/counterfactual/test_attention.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

HIDDEN = -1e4
"""The least negative number that masks in use add to the scores of hidden keys."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTokens:
    """Which tokens of each sample belong to pictures, among the keys and among the queries."""

    keys: Tensor
    """Bool [n or 1, K]."""
    queries: Tensor
    """Bool [n or 1, Q]."""

    @property
    def readable(self) -> bool:
        """Whether decisions may depend on which they are: not where reading them would wait for a
        device, or where a compiler would keep the decision."""
        return self.keys.device.type == "cpu" and not torch.compiler.is_compiling()

    def pairs(self) -> Tensor:
        """Image keys of text queries, what scope "image" edits: bool [n or 1, 1, Q, K]."""
        return self.keys[:, None, None, :] & ~self.queries[:, None, :, None]

    def changed(
        self, keys: Callable[[Tensor], Tensor], queries: Callable[[Tensor], Tensor]
    ) -> "ImageTokens":
        """The same after changes of either tensor."""
        return ImageTokens(keys=keys(self.keys), queries=queries(self.queries))


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionMask:
    """Which keys each query of each sample may see."""

    keys: Tensor | None = None
    """Real keys, bool [n or 1, K]: False is padding. None: all are real."""
    causal: bool = True
    """Whether query i sees key j only if j <= query_start + i."""
    query_start: int | Tensor = 0
    """Index among the K keys of the first query. A tensor, of no dimensions, where a static cache
    counts on the device."""
    mask: Tensor | None = None
    """Bool [n or 1, 1, Q, K], True = sees: decides instead of `keys` and `causal`."""
    positions: Tensor | None = None
    """Positions of the keys, int [n or 1, K], where they are not what `keys` says: with `mask`,
    filled by `numbered`; in a vision encoder, of patches that are a part of their picture."""
    image: ImageTokens | None = None
    """Where scope "image" asks for them."""
    part: str | None = None
    """Of what is seen, only "inside" the image keys of text queries, or only what is "outside"."""

    def numbered(self) -> "AttentionMask":
        """The same with `positions`, where a mask has to say them.

        A key's position is how many keys come before it among those that a query sees: padding,
        and other sequences packed into the row, do not count. Raises ValueError where queries
        would give one key different positions (a sliding window does): random weights, which
        are functions of positions, have no meaning there.
        """
        if self.mask is None or self.positions is not None:
            return self
        seen = self.mask[:, 0]
        queries, keys = seen.shape[1:]
        places = seen.cumsum(dim=-1, dtype=torch.int32) - 1  # [n, Q, K]
        # By the first query that sees a key; padding, which none sees, by its own.
        own = torch.arange(keys, device=seen.device) - self.query_start
        first = seen.int().argmax(dim=1).where(seen.any(dim=1), own.clamp(0, queries - 1))
        positions = places.gather(1, first.unsqueeze(1))
        if queries > 1:  # else there is one position for each
            require(
                ((places == positions) | ~seen).all(),
                "random attention weights need one position for each key, and this 4-D "
                "attention_mask gives some keys several, as a sliding window does: expected a mask "
                "in which a query sees what the keys that it sees may see, such as a causal, "
                "padded or block-diagonal one; or a language_method that is not random",
            )
        return replace(self, positions=positions.squeeze(1).long())

    def __post_init__(self) -> None:
        if self.mask is not None and self.keys is not None:
            raise ValueError("AttentionMask: a mask says which keys are real; expected keys=None")

    def is_full(self, key_count: int) -> bool:
        """Whether every query is known to see every key."""
        return self.full_keys(key_count) == key_count

    def full_keys(self, key_count: int) -> int:
        """How many leading keys every query is known to see."""
        if self.keys is not None or self.mask is not None or self.part is not None:
            return 0
        if not self.causal:
            return key_count
        seen = self.query_start + 1 if isinstance(self.query_start, int) else 0
        return max(0, min(seen, key_count))

    def only_part(self, queries: range, keys: range) -> str | None:
        """The part that all pairs of these queries and keys are of; None: of both, or unknown."""
        if self.part is None or not self.image.readable:
            return None
        image = self.image.keys[:, keys.start : keys.stop]
        own = self.image.queries[:, queries.start : queries.stop]
        if bool(own.all()) or not bool(image.any()):
            return "outside"
        return "inside" if bool(image.all()) and not bool(own.any()) else None

    def image_span(self, key_count: int) -> range:
        """Keys among which are all image tokens, as few as are known."""
        if not self.image.readable:
            return range(key_count)
        places = self.image.keys.any(dim=0).nonzero()
        return range(int(places[0]), int(places[-1]) + 1) if len(places) else range(1)

    def to_dense(
        self, query_count: int, key_count: int, device: torch.device | None = None
    ) -> Tensor:
        """What the queries see, written out: bool [n or 1, 1, Q, K]."""
        if self.mask is not None:
            seen = self.mask
        elif self.causal:
            keys = torch.arange(key_count, device=device)
            seen = (self.index(query_count, device).unsqueeze(-1) >= keys)[None, None]
        else:
            seen = torch.ones(1, 1, query_count, key_count, dtype=torch.bool, device=device)
        if self.keys is not None:
            seen = seen & self.keys[:, None, None, :]
        if self.part is None:
            return seen
        pairs = self.image.pairs()
        return seen & (pairs if self.part == "inside" else ~pairs)

    def counted_keys(self) -> Tensor | None:
        """Keys that are no padding and that the part has for some queries: bool [n or 1, K]."""
        if self.part != "inside":
            return self.keys
        return self.image.keys if self.keys is None else self.image.keys & self.keys

    def key_positions(self, key_count: int, device: torch.device | None = None) -> Tensor:
        """How many real keys come before each, so padding anywhere changes nothing: [K] or [n, K].

        Padding itself has some position or other: nothing sees it.
        """
        if self.mask is not None or self.positions is not None:
            return self.numbered().positions
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

    def key_limit(self, queries: range, key_count: int) -> int:
        """How many leading keys hold all that these queries see."""
        if self.causal and self.mask is None and isinstance(self.query_start, int):
            return max(0, min(self.query_start + queries.stop, key_count))
        return key_count

    def block(self, queries: range, keys: range) -> "AttentionMask":
        """The same for some of the queries, where these are all the keys there are."""
        mask, some = self.mask, slice(keys.start, keys.stop)
        return replace(
            self,
            keys=None if self.keys is None else self.keys[:, some],
            query_start=self.query_start + (queries.start - keys.start),
            mask=None if mask is None else mask[:, :, queries.start : queries.stop, some],
            positions=None if self.positions is None else self.positions[:, some],
            image=self.image
            and self.image.changed(
                lambda part: part[:, some],
                lambda part: part[:, queries.start : queries.stop],
            ),
        )

    def repeat(self, draws: int) -> "AttentionMask":
        """The same for the rows of `draws` draws."""
        if draws == 1:
            return self

        def again(part: Tensor | None) -> Tensor | None:
            if part is None or len(part) == 1:
                return part
            return part.repeat(draws, *[1] * (part.ndim - 1))

        return self._each(again)

    def to(self, device: torch.device) -> "AttentionMask":
        """The same on another device, for a layer that lives there."""

        def moved(part: Any) -> Any:
            return part.to(device) if isinstance(part, Tensor) else part

        return replace(self._each(moved), query_start=moved(self.query_start))

    def _each(self, change: Callable[[Any], Any]) -> "AttentionMask":
        """The same after a change of every tensor that has samples."""
        return replace(
            self,
            keys=change(self.keys),
            mask=change(self.mask),
            positions=change(self.positions),
            image=self.image and self.image.changed(change, change),
        )


def visible_keys(attention_mask: Tensor | None, past: int | Tensor, keys: int) -> AttentionMask:
    """What the queries see of `keys` cached and new keys, `past` of them before the first query.

    A mask of rows and keys, [n, K], says which keys are real, and causality the rest; a 4-D mask
    [n or 1, 1, Q, K], True or 0 where a query sees a key, says all. Raises ValueError for others.
    """
    if attention_mask is None:
        return AttentionMask(query_start=past)
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim not in (2, 4):
        what = tuple(getattr(attention_mask, "shape", ()))
        raise ValueError(
            f"causalmm cannot read an attention_mask of type {type(attention_mask).__name__} "
            f"{what}: expected a 2-D or 4-D tensor (flex_attention with a static cache makes "
            "others)"
        )
    if attention_mask.ndim == 2:
        # A static cache has keys to come; causality hides them whatever the mask says.
        real = attention_mask[:, :keys].bool()
        real = pad(real, (0, keys - real.shape[1]))
        if not torch.compiler.is_compiling() and bool(real.all()):
            real = None  # without padding there is less to do
        return AttentionMask(keys=real, query_start=past)
    if attention_mask.shape[1] != 1:
        raise ValueError(
            f"causalmm cannot read a 4-D attention_mask {tuple(attention_mask.shape)} that differs "
            "between heads: expected 1 along axis 1"
        )
    return AttentionMask(mask=_seen(attention_mask), query_start=past)


def _seen(mask: Tensor) -> Tensor:
    """True where a mask that is added to the scores hides nothing."""
    if mask.dtype == torch.bool:
        return mask
    expected = (
        "causalmm reads a 4-D attention_mask as hidden or visible: expected bool, or 0 and numbers "
        f"of at most {HIDDEN:g} in a floating-point dtype, got others ({mask.dtype})"
    )
    if not mask.is_floating_point():
        raise ValueError(expected)
    seen = mask == 0
    require((seen | (mask <= HIDDEN)).all(), expected)
    return seen


def require(holds: Tensor, expected: str) -> None:
    """Raise ValueError unless a bool of no dimensions is True; RuntimeError in compiled code, where
    the check becomes part of the graph."""
    if torch.compiler.is_compiling():
        torch._assert_async(holds, expected)
    elif not bool(holds):
        raise ValueError(expected)
