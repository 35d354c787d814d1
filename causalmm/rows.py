"""Row groups of a batch: repeat what every group shares, split what each has of its own."""

from typing import Any

from torch import Tensor


def repeat_groups(part: Any, batch: int, groups: int, axis: int = 0) -> Any:
    """`part` for `groups` groups: repeated along `axis` where that holds `batch` rows.

    None, and tensors with a single row that broadcasts, are returned as they are; dicts by value.
    """
    if part is None or groups == 1:
        return part
    if isinstance(part, dict):
        return {name: repeat_groups(value, batch, groups, axis) for name, value in part.items()}
    if part.shape[axis] == batch:
        repeats = [1] * part.ndim
        repeats[axis] = groups
        return part.repeat(repeats)
    if part.shape[axis] == 1:
        return part
    raise ValueError(f"expected {batch} rows or 1 along axis {axis}, got {tuple(part.shape)}")


def fold_groups(features: Tensor, groups: int) -> Tensor:
    """[groups x N, ..., D] -> [N, ..., groups x D]: groups side by side in the last dimension.

    So a feature row keeps its counterfactual twins wherever transformers slices or repeats it.
    """
    grouped = features.unflatten(0, (groups, -1))
    return grouped.movedim(0, -2).flatten(-2)


def split_groups(features: Tensor, groups: int) -> tuple[Tensor, ...]:
    """[..., groups x D] -> `groups` tensors [..., D]; undoes `fold_groups`."""
    return features.chunk(groups, dim=-1)
