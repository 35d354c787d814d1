"""The pictures a model sees, as its processor made them, and where their patches are.

Read back from the pixel values: cropped and resized, so that a patch lies where the model has it.
Tests: tests/figures/test_figures_maps.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

Order = Callable[[Tensor], Tensor]


class Picture(NamedTuple):
    """An image, or the first of a video's frames that are encoded together."""

    pixels: np.ndarray
    """uint8 [height, width, 3]."""
    places: Tensor
    """Index of each patch among the picture's positions in the vision encoder, int64 [rows,
    columns]."""
    summary: int | None
    """Index of the class token, which stands for no patch; None where there is none."""
    hidden: int = 0
    """How many positions follow that are not shown: those of a picture's tiles after the first,
    which shows it whole."""

    @property
    def size(self) -> int:
        """How many positions it has in the vision encoder."""
        return self.places.numel() + (self.summary is not None) + self.hidden


def pictures_of(model: Any, processor: Any, inputs: Mapping[str, Tensor]) -> list[Picture]:
    """Images, then frames, of a patched model's inputs, in the order in which they are encoded."""
    patch = model.config.vision_config.patch_size
    return pictures(processor, inputs, patch, model.causalmm_patch_order)


def pictures(
    processor: Any, inputs: Mapping[str, Tensor], patch: int, order: Order
) -> list[Picture]:
    """Images, then frames, in the order in which they are encoded.

    `patch`: side in pixels. `order`: of grids, in which order the encoder has the patches, as the
    model's `causalmm_patch_order`.
    """
    images = inputs.get("pixel_values")
    if images is not None and images.ndim == 4:
        return [_whole(processor.image_processor, image, patch) for image in images]
    if images is not None and images.ndim == 5:
        sizes = inputs["image_sizes"].tolist()
        return [
            _first_tile(processor.image_processor, tiles[0], size, patch)
            for tiles, size in zip(images, sizes, strict=True)
        ]
    found = []
    if images is not None:
        grids = inputs["image_grid_thw"]
        found += _packed(processor.image_processor, images, grids, patch, order)
    if (frames := inputs.get("pixel_values_videos")) is not None:
        grids = inputs["video_grid_thw"]
        found += _packed(processor.video_processor, frames, grids, patch, order)
    return found


def _whole(image_processor: Any, image: Tensor, patch: int) -> Picture:
    """CLIP's: [3, height, width], a class token before the patches."""
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    places = torch.arange(1, 1 + rows * columns).view(rows, columns)
    return Picture(_pixels(image_processor, image), places, summary=0)


def _first_tile(image_processor: Any, tile: Tensor, size: list[int], patch: int) -> Picture:
    """LLaVA-NeXT's: the whole picture, then parts of it as large as this tile [3, side, side], of a
    picture of `size`, height and width."""
    found = _whole(image_processor, tile, patch)
    height, width = select_best_resolution(size, image_processor.image_grid_pinpoints)
    side = tile.shape[-1]
    return found._replace(hidden=(height // side) * (width // side) * found.size)


def _packed(
    image_processor: Any, patches: Tensor, grids: Tensor, patch: int, order: Order
) -> list[Picture]:
    """Of the Qwen models: patches [P, channels x frames x patch x patch], squares of `merge` x
    `merge` patches one after the other."""
    merge = image_processor.merge_size
    place = order(grids.cpu()).argsort()  # of each patch in the encoder
    found, start = [], 0
    for times, rows, columns in grids.tolist():
        count = rows * columns
        blocks = (rows // merge, columns // merge, merge, merge)
        packed = torch.arange(count).view(blocks).transpose(1, 2).reshape(rows, columns)
        for _ in range(times):
            first = patches[start : start + count].view(count, 3, -1, patch, patch)[:, :, 0]
            image = first[packed.flatten()].view(rows, columns, 3, patch, patch)
            image = image.permute(2, 0, 3, 1, 4).reshape(3, rows * patch, columns * patch)
            places = place[start + packed] - start
            found.append(Picture(_pixels(image_processor, image), places, summary=None))
            start += count
    return found


def _pixels(image_processor: Any, image: Tensor) -> np.ndarray:
    image = image.float().cpu()
    if image_processor.do_normalize:
        mean, std = (
            torch.tensor(each).view(3, 1, 1)
            for each in (image_processor.image_mean, image_processor.image_std)
        )
        image = image * std + mean
    pixels = (image / image_processor.rescale_factor).round().clamp(0, 255)
    return pixels.permute(1, 2, 0).to(torch.uint8).numpy()
