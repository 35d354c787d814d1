"""What is true of the keys in a KV cache that a plan filled, and the mixin of layers that keep it.

A step, or a later call with the same cache, must know which settings decided the cached keys, and
which keys are padding, image tokens or parts of packed rows. Tensor shapes do not say it.

transformers applies every operation on a cache (beams, crops, repeats, selections, resets) layer by
layer. So the state is an attribute of a layer, the first: what changes the keys changes it too, and
no copy of the keys is without it. Every layer knows how many branches its rows are of: callers name
samples, as for the plain model. Tests: tests/decoding/test_branch_state.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from causalmm.counterfactual.attention_mask import AttentionMask, ImageTokens, require

_OF_KEYS = ("real", "image", "packed")


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchState:
    """Of the cached keys of B samples, the same in every branch.

    Tensors of keys are bool [B or 1, K]. None: no padding, no image tokens, no packed rows. One may
    be narrower than the cache: the keys after it are real, text and not packed, so a one-token step
    has nothing to add.
    """

    filled_by: Mapping[str, Any]
    """`BranchPlan.key_settings` of the plan that filled the cache."""
    real: Tensor | None = None
    """Keys that are no padding."""
    image: Tensor | None = None
    """Keys of image or video tokens."""
    packed: Tensor | None = None
    """Keys whose 4-D mask said more than causality and padding, as for packed sequences."""
    heads: Tensor | None = None
    """Which query heads of each decoder layer are edited, bool [B, L, H], where they were found in
    the prompt (`Intervention.image_heads`)."""
    prompt: int | Tensor = 0
    """How many keys the cache held when the last prompt ended, which decides the first token of an
    answer; a tensor [] where a static cache counts on the device."""

    def each_of_keys(self, change: Callable[[Tensor], Tensor]) -> "BranchState":
        """The state with every tensor of keys changed as the keys are."""
        return self._each(change, _OF_KEYS)

    def each(self, change: Callable[[Tensor], Tensor]) -> "BranchState":
        """The state with every tensor changed as the samples are, along axis 0."""
        return self._each(change, (*_OF_KEYS, "heads"))

    def _each(self, change: Callable[[Tensor], Tensor], names: tuple[str, ...]) -> "BranchState":
        parts = {name: getattr(self, name) for name in names}
        changed = {name: change(part) for name, part in parts.items() if part is not None}
        return replace(self, **changed)

    def extended(
        self,
        visible: AttentionMask,
        image: Tensor | None,
        past: int | Tensor,
        queries: int,
        keys: int,
        prefill: bool = False,
    ) -> "BranchState":
        """The state that includes the keys of Q new tokens, numbers `past` and up of `keys` keys.

        `visible` says which keys they see, and `image` bool [B, Q] which of them are image tokens.
        They end a prompt where they are several, the cache's first, or `prefill` says so.
        Raises ValueError (RuntimeError in compiled code) where `visible` contradicts the padding
        with which the cached keys were computed, or lets a token see several packed sequences.
        """
        parts: dict[str, Any] = {}
        if image is not None:
            old = _widened(self.image, keys, image)
            here = past + torch.arange(queries, device=image.device)
            parts["image"] = old.expand(len(image), -1).index_copy(1, here, image)
        if visible.mask is not None:
            parts |= self._read_4d(visible.mask[:, 0], past, keys)
        elif visible.keys is not None or self.real is not None or self.packed is not None:
            parts |= self._read_2d(visible.keys, past, queries, keys)
        if prefill or queries > 1:
            parts["prompt"] = past + queries
        elif torch.compiler.is_compiling():
            return self  # a compiled step keeps the tensors it was given: it says nothing new
        return replace(self, **parts)

    def image_tokens(self, past: int | Tensor, queries: int, keys: int) -> ImageTokens | None:
        """Which of `keys` keys, and of the Q queries from number `past` on, are image tokens; None
        where there is none."""
        if self.image is None:
            return None
        image = _widened(self.image, keys, self.image)
        return ImageTokens(keys=image, queries=_at_queries(image, past, queries))

    def real_queries(self, past: int | Tensor, queries: int, keys: int, device: Any) -> Tensor:
        """Which of the Q queries from number `past` on are no padding: bool [B or 1, Q]."""
        if self.real is None:
            return torch.ones(1, queries, dtype=torch.bool, device=device)
        return _at_queries(_widened(self.real, keys, self.real, fill=True), past, queries)

    def _read_2d(
        self, given: Tensor | None, past: int | Tensor, queries: int, keys: int
    ) -> dict[str, Tensor]:
        like = next(part for part in (given, self.real, self.packed) if part is not None)
        if self.packed is not None:
            require(
                ~self.packed.any(),
                "past_key_values hold several sequences packed into a row: continue them with a "
                "4-D attention_mask, which says which sequence the new tokens belong to",
            )
        column = torch.arange(keys, device=like.device)
        known = _widened(self.real, keys, like, fill=True)
        given = torch.ones_like(known) if given is None else given
        _require_same_padding(((given == known) | (column >= past)).all())
        return {"real": given | (column >= past + queries)}

    def _read_4d(self, seen: Tensor, past: int | Tensor, keys: int) -> dict[str, Tensor]:
        """By the last query, which sees all real keys but those of other packed sequences."""
        queries = seen.shape[1]
        column = torch.arange(keys, device=seen.device)
        cached, later = column < past, column >= past + queries
        known = _widened(self.real, keys, seen, fill=True)
        packed = _widened(self.packed, keys, seen)
        last = seen[:, -1]
        wrong = last & ~known & cached & ~packed.any(dim=1, keepdim=True)
        _require_same_padding(~wrong.any())
        separate = (known & ~last & cached).any(dim=1, keepdim=True)
        if queries > 1:
            # A real query sees all real keys before it, and no query sees other keys before it.
            place = past + torch.arange(queries, device=seen.device)
            hidden = last[:, place].unsqueeze(2) & ~seen
            odd = torch.where(last.unsqueeze(1), hidden, seen) & (column < place.unsqueeze(1))
            separate = separate | odd.any(dim=2).any(dim=1, keepdim=True)
        return {
            "real": torch.where(cached, known, last | later),
            "packed": packed | (separate & ~cached & ~later),
        }


class BranchLayer:
    """Mixin in front of a cache layer class: row operations take samples, and the state follows."""

    branches: int = 1
    """Of how many branches the layer holds rows."""
    state: BranchState | None = None
    """In the first layer of a cache that a plan filled."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let the samples of a batch, in every branch, be those that int64 [B] names."""
        super().reorder_cache(self._rows(beam_idx))
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these samples only, in every branch."""
        super().batch_select_indices(self._rows(indices))
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample, in every branch."""
        super().batch_repeat_interleave(repeats)
        self._change(lambda part: part.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -`tokens_to_remove` tokens."""
        super().crop(tokens_to_remove)
        length = self.get_seq_length()
        if self.state is not None:
            self.state = self.state.each_of_keys(lambda part: part[:, :length]) if length else None

    def reset(self) -> None:
        """Drop all keys, and what is true of them: any plan, or none, may fill the layer."""
        super().reset()
        self.branches, self.state, self.is_initialized = 1, None, False

    def _rows(self, samples: Tensor) -> Tensor:
        if self.branches == 1:
            return samples
        batch = len(self.keys) // self.branches
        samples = torch.arange(batch, device=samples.device)[samples]
        return torch.cat([samples + branch * batch for branch in range(self.branches)])

    def _select(self, samples: Tensor) -> None:
        self._change(lambda part: part if len(part) == 1 else part[samples.to(part.device)])

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None:
            self.state = self.state.each(change)


def state_of(cache: Any) -> BranchState | None:
    """What is true of a cache's keys; None if it has none, or was filled without branches."""
    first = next(iter(getattr(cache, "layers", ())), None)
    return first.state if isinstance(first, BranchLayer) and first.is_initialized else None


def answer_place(cache: Any) -> int | Tensor:
    """Place in its answer of the token that the last call with a cache decides, from 1 on.

    1 for the end of a prompt, one more for each one-token call after it; a tensor int [] where a
    static cache counts on the device. Without a cache, or one of branches, 1. All samples of a
    batch are at the same place: padding counts as keys, in a prompt and in what is held.
    """
    state = state_of(cache)
    if state is None:
        return 1
    place = cache.get_seq_length() - state.prompt + 1
    return place.clamp(min=1) if isinstance(place, Tensor) else max(place, 1)


def _widened(part: Tensor | None, keys: int, like: Tensor, fill: bool = False) -> Tensor:
    """A tensor of the state for `keys` keys: bool [B or 1, keys]."""
    if part is None:
        return torch.full((1, keys), fill, device=like.device)
    return pad(part, (0, keys - part.shape[1]), value=fill)


def _at_queries(part: Tensor, past: int | Tensor, queries: int) -> Tensor:
    return part[:, past + torch.arange(queries, device=part.device)]


def _require_same_padding(same: Tensor) -> None:
    require(
        same,
        "attention_mask contradicts the padding with which the keys in past_key_values were "
        "computed: continue a cache with the attention_mask that filled it, prolonged",
    )
