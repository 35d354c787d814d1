"""Rows of branches: repeat what all branches share, split what each has of its own.

A part is a tensor, flex_attention's BlockMask, None, or a tuple or dict of parts. What holds a
single row broadcasts and stays as it is. Tests: tests/decoding/test_rows.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask


def repeat_branches(part: Any, batch: int, branches: int, axis: int = 0) -> Any:
    """`part` for `branches` branches: repeated along `axis` where that holds `batch` rows.

    None, and tensors with a single row that broadcasts, are returned as they are; dicts by value.
    """
    if part is None or branches == 1:
        return part
    if isinstance(part, dict):
        return {name: repeat_branches(value, batch, branches, axis) for name, value in part.items()}
    if part.shape[axis] == batch:
        repeats = [1] * part.ndim
        repeats[axis] = branches
        return part.repeat(repeats)
    if part.shape[axis] == 1:
        return part
    raise ValueError(f"expected {batch} rows or 1 along axis {axis}, got {tuple(part.shape)}")


def append_branches(part: Any, rows: int, batch: int, branches: int) -> Any:
    """`branches` copies of the first `batch` rows behind whatever has `rows` rows along axis 0."""
    if isinstance(part, dict):
        return {name: append_branches(value, rows, batch, branches) for name, value in part.items()}
    if isinstance(part, tuple):
        return tuple(append_branches(value, rows, batch, branches) for value in part)
    if part is None or part.shape[0] != rows:
        return part
    if isinstance(part, BlockMask):
        order = torch.arange(rows + branches * batch, device=part.kv_indices.device)
        return _block_mask_rows(part, torch.where(order < rows, order, (order - rows) % batch))
    return torch.cat([part, *[part[:batch]] * branches])


def leading_rows(part: Any, rows: int, first: int) -> Any:
    """The first rows of a mask or of positions that have `rows` of them along axis 0."""
    if part is None or part.shape[0] != rows:
        return part
    if isinstance(part, BlockMask):
        return _block_mask_rows(part, torch.arange(first, device=part.kv_indices.device))
    return part[:first]


def fold_branches(features: Tensor, branches: int) -> Tensor:
    """[branches x N, ..., D] -> [N, ..., branches x D]: side by side in the last dimension.

    So a feature row keeps its counterfactual twins wherever transformers slices or repeats it.
    """
    per_branch = features.unflatten(0, (branches, -1))
    return per_branch.movedim(0, -2).flatten(-2)


def split_branches(features: Tensor, branches: int) -> tuple[Tensor, ...]:
    """[..., branches x D] -> `branches` tensors [..., D]; undoes `fold_branches`."""
    return features.chunk(branches, dim=-1)


def _block_mask_rows(mask: BlockMask, order: Tensor) -> BlockMask:
    """The rows of a BlockMask that `order` names, int64 [rows]."""

    def pick(blocks: Tensor | None) -> Tensor | None:
        return None if blocks is None else blocks[order]

    def of_row(mask_mod: Callable) -> Callable:
        return lambda row, head, query, key: mask_mod(order[row], head, query, key)

    return BlockMask.from_kv_blocks(
        pick(mask.kv_num_blocks),
        pick(mask.kv_indices),
        pick(mask.full_kv_num_blocks),
        pick(mask.full_kv_indices),
        BLOCK_SIZE=mask.BLOCK_SIZE,
        mask_mod=of_row(mask.mask_mod),
        seq_lengths=mask.seq_lengths,
    )
