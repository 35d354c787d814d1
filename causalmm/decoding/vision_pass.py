"""The plan at work in one run of the vision encoder.

Rows: N images a branch, [ factual | draw 0 | draw 1 ... ]. The counterfactual branches equal the
factual one below the first edited layer and so join only there, or before the encoder where
their pixels differ. CLIP lays branches along the batch axis, and the tiles into which LLaVA-NeXT
cuts a picture are rows of it. The Qwen models pack all images along one patch axis, so there a
branch is a copy of every segment, and an edit acts within one segment at a time: an image, a frame,
or in most layers of Qwen2.5-VL a window of one.
Tests: tests/decoding/test_equivalence.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from causalmm.counterfactual.attention import edited_map, vision_attention
from causalmm.counterfactual.intervention import PixelNoise
from causalmm.counterfactual.pixel_noise import gaussian, noised
from causalmm.decoding.plan import BranchPlan


class PackedInputs(NamedTuple):
    """What a vision block of a Qwen model takes: patches [P, C] and the bounds of images and frames
    [segments + 1]."""

    hidden_states: Tensor
    cu_seqlens: Tensor
    position_embeddings: tuple[Tensor, Tensor]


class VisionPass:
    """One run of the vision encoder under a plan. Lives for that run only."""

    def __init__(self, plan: BranchPlan) -> None:
        self.plan = plan
        self.edit = plan.vision
        self.branches = 1 + plan.image_branches
        self.noisy = isinstance(plan.vision, PixelNoise)
        self.noise_added = False
        # Of packed patches, the bounds of images and frames in all branches.
        self.bounds: Tensor | None = None
        # Of tiles, the number of each within its picture, [N].
        self.tiles: Tensor | None = None
        # Weight of each patch under site "features", [branches - 1, N, T]: found by the feature
        # layer, used once the features are selected.
        self.patch_weights: Tensor | None = None

    @classmethod
    def start(cls, plan: BranchPlan | None) -> "VisionPass | None":
        """The pass of a plan; None where the plan has no counterfactual images."""
        return None if plan is None or plan.vision is None else cls(plan)

    def number_tiles(self, counts: Sequence[int]) -> None:
        """Take the rows for the tiles of pictures, so many of each in a row."""
        self.tiles = torch.cat([torch.arange(count) for count in counts])

    def add_noise(self, pixels: Tensor, grid_thw: Tensor | None = None) -> Tensor:
        """Lay the noised pictures of every draw behind the factual ones, where the plan has such.

        [N, C, H, W] -> [branches x N, C, H, W]; with the grids [N, 3] of packed pictures, patches
        [P, C] -> [branches x P, C].
        """
        if not self.noisy:
            return pixels
        if grid_thw is not None:
            shape = pixels.shape
            places = _places_in_pictures(grid_thw.to(pixels.device), len(pixels))
        else:
            shape = pixels.shape[1:] if self.tiles is None else pixels.shape
            lines = pixels.shape[1:-1].numel()
            places = torch.arange(lines, device=pixels.device)
            if self.tiles is not None:
                places = places + lines * self.tiles.to(places).unsqueeze(1)
        self.noise_added = True
        edit, parts = self.edit, [pixels]
        for draw in range(edit.draws):
            noise = gaussian(edit.seed, draw, places.flatten(), shape[-1]).view(shape)
            parts.append(noised(pixels, noise, edit.noise_step))
        return torch.cat(parts)

    def repeat_grids(self, grid_thw: Tensor) -> Tensor:
        """The grids of packed pictures [N, 3], of every branch where noised patches are there from
        the start."""
        return grid_thw.repeat(self.branches, 1) if self._is_noised() else grid_thw

    def join_rows(self, layer: int, hidden_states: Tensor) -> Tensor:
        """Let the counterfactual branches join: [N, T, C] -> [branches x N, T, C].

        Not those of noised pixels, which are there from the start.
        """
        if layer != self.plan.vision_entry or self.plan.site == "features" or self._is_noised():
            return hidden_states
        return hidden_states.repeat(self.branches, 1, 1)

    def join_packed_rows(self, layer: int, inputs: PackedInputs) -> PackedInputs:
        """The same for packed patches [P, C] -> [branches x P, C], their bounds and positions."""
        if layer != self.plan.vision_entry or self._is_noised():
            return inputs
        hidden_states, bounds, positions = inputs
        self.bounds = self._every_branch(bounds, len(hidden_states))
        return PackedInputs(
            hidden_states.repeat(self.branches, 1),
            self.bounds,
            tuple(part.repeat(self.branches, 1) for part in positions),
        )

    def join_windows(
        self, layer: int, bounds: Tensor, window_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same for the bounds in patches of windows, [windows + 1], and for the number of the
        token that comes first, second and so on where tokens are laid out by windows, [tokens]."""
        if layer != self.plan.vision_entry or self._is_noised():
            return bounds, window_index
        tokens = [window_index + branch * len(window_index) for branch in range(self.branches)]
        return self._every_branch(bounds, bounds[-1]), torch.cat(tokens)

    def _every_branch(self, bounds: Tensor, patches: int | Tensor) -> Tensor:
        """Bounds [segments + 1] of so many patches: [branches x segments + 1]."""
        further = [bounds[1:] + branch * patches for branch in range(1, self.branches)]
        return torch.cat([bounds, *further])

    def edits(self, layer: int) -> bool:
        """Whether attention in `layer` is edited in the counterfactual branches."""
        return self.plan.site == "attention" and self.edit.edits(layer)

    def attention(self, interface: Callable) -> Callable:
        """The attention function that a CLIP layer calls instead of `interface`."""
        return partial(self._attend, interface)

    def packed_attention(
        self,
        interface: Callable,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens: Tensor,
    ) -> Tensor:
        """Attention of an edited block of packed patches: [1, H, branches x P, D] ->
        [branches x P, H x D].

        Each segment sees itself only: the factual branch's through `interface`, the others' edited.
        Segments of one length are rows of one call: windows are small, and there are hundreds.
        """
        lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
        starts = cu_seqlens[:-1].to(query.device).long()
        picture = torch.searchsorted(self.bounds.to(starts), starts, right=True) - 1
        offsets = starts - self.bounds.to(starts)[picture]
        output = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
        for length in sorted(set(lengths)):
            # In the order of the branches, which have as many each.
            chosen = [index for index, each in enumerate(lengths) if each == length]
            chosen = torch.tensor(chosen, device=query.device)
            inside = torch.arange(length, device=query.device)
            places = starts[chosen].unsqueeze(1) + inside  # [segments, length]
            parts = [part[0, :, places].transpose(0, 1) for part in (query, key, value)]
            factual = len(chosen) // self.branches
            plain, _ = interface(
                module,
                *(part[:factual] for part in parts),
                attention_mask=None,
                scaling=module.scaling,
                dropout=0.0,
                is_causal=False,
            )
            edited = self._edited(
                module,
                *(part[factual:] for part in parts),
                scaling=module.scaling,
                positions=offsets[chosen[:factual]].unsqueeze(1) + inside,
            )
            output[places] = torch.cat([plain, edited])
        return output.flatten(1)

    def weigh(self, features: Tensor) -> Tensor:
        """Under site "features", [N, T, C] -> [branches x N, T, C]: counterfactual branches are the
        selected features weighed by the feature layer's edited map. Else unchanged."""
        if self.plan.site != "features":
            return features
        weights = self.patch_weights.to(features).unsqueeze(-1)
        return torch.cat([features, (features * weights).flatten(0, 1)])

    def fold(self, features: Tensor) -> Tensor:
        """Put a row's branches side by side: [branches x N, ..., D] -> [N, ..., branches x D].

        So a feature row keeps its counterfactual twins wherever transformers slices or repeats it.
        """
        return features.unflatten(0, (self.branches, -1)).movedim(0, -2).flatten(-2)

    @staticmethod
    def repeat_channels(vector: Tensor | None, features: Sequence[Tensor]) -> Tensor | None:
        """A vector [D] that is laid between features, for those of `fold`, [..., branches x D]:
        [branches x D]. For features of D channels, the vector itself; None stays None."""
        if vector is None or len(vector) == features[0].shape[-1]:
            return vector
        return vector.repeat(features[0].shape[-1] // len(vector))

    def fold_each(self, features: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        """The same for features read at several layers, [tokens or branches x tokens, D] each.

        `like` has been folded: [tokens, branches x D]. Below the layer where branches join they
        are all the factual one.
        """
        return [
            self.fold(each.repeat(self.branches, 1) if len(each) == len(like) else each)
            for each in features
        ]

    def _is_noised(self) -> bool:
        """Whether the counterfactual rows are there from the start, as noised pixels are.

        Raises ValueError where modeling files, such as another package's, did not call `add_noise`.
        """
        if self.noisy and not self.noise_added:
            raise ValueError(
                f"vision_method={self.edit.method!r}: the modeling files of this model add no "
                "noise to pixels; expected a method of attention"
            )
        return self.noisy

    def _attend(
        self,
        interface: Callable,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if self.plan.site == "features" and module.layer_idx == self.edit.first_layer:
            self.patch_weights = self._patch_weights(query, key, scaling, module.layer_idx)
        if not self.edits(module.layer_idx):
            return interface(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        images, length = query.shape[0] // self.branches, query.shape[2]
        parts = (query, key, value)
        factual, weights = interface(
            module, *(part[:images] for part in parts), attention_mask, scaling=scaling, **kwargs
        )
        positions = self._tile_positions(length, query.device)
        parts = (part[images:] for part in parts)
        edited = self._edited(module, *parts, scaling=scaling, positions=positions)
        return torch.cat([factual, edited]), weights

    def _edited(
        self,
        module: torch.nn.Module,
        *parts: Tensor,
        scaling: float,
        positions: Tensor | None,
    ) -> Tensor:
        """Counterfactual attention output [rows, T, H, D], rows a branch a draw."""
        output = vision_attention(
            self.edit.method,
            *parts,
            scale=scaling,
            normalization=self.edit.normalization,
            seed=self.edit.seed,
            draws=tuple(range(self.edit.draws)),
            layer=module.layer_idx,
            positions=positions,
        )
        return output.transpose(1, 2)

    def _tile_positions(self, length: int, device: torch.device) -> Tensor | None:
        """The positions within their pictures of tiles of so many tokens, [N, T]; None without
        tiles."""
        if self.tiles is None:
            return None
        inside = torch.arange(length, device=device)
        return inside + length * self.tiles.to(inside).unsqueeze(1)

    def _patch_weights(self, query: Tensor, key: Tensor, scaling: float, layer: int) -> Tensor:
        """Edited maps [N, H, T+1, T+1] of each draw, resized to the patch grid, mean over heads."""
        scores = query.float() @ key.float().transpose(-1, -2) * scaling
        weights = scores.softmax(dim=-1)
        side = round((weights.shape[-1] - 1) ** 0.5)
        maps = edited_map(
            self.edit.method,
            weights.repeat(self.edit.draws, 1, 1, 1),
            normalization=self.edit.normalization,
            seed=self.edit.seed,
            draws=tuple(range(self.edit.draws)),
            layer=layer,
            positions=self._tile_positions(weights.shape[-1], weights.device),
        )
        grid = interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)
        return grid.mean(dim=1).flatten(1).unflatten(0, (self.edit.draws, -1))


def _places_in_pictures(grid_thw: Tensor, patches: int) -> Tensor:
    """The number of each of so many packed patches within its picture, from grids [N, 3]."""
    lengths = grid_thw.prod(dim=-1)
    starts = lengths.cumsum(dim=0) - lengths
    # With the size given, an accelerator need not be waited for.
    starts = starts.repeat_interleave(lengths, output_size=patches)
    return torch.arange(patches, device=grid_thw.device) - starts
