"""Rows of branches: give more branches the rows of the factual one, or take the leading rows.

A part is a tensor, flex_attention's BlockMask, None, or a tuple or dict of parts. What holds a
single row broadcasts and stays as it is. Tests: tests/decoding/test_rows.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask


def append_branches(part: Any, rows: int, batch: int, branches: int, axis: int = 0) -> Any:
    """`branches` copies of the first `batch` rows behind the `rows` rows along `axis`.

    Raises ValueError for a tensor with other rows than that, or one that broadcasts.
    """
    if isinstance(part, dict):
        return {
            name: append_branches(value, rows, batch, branches, axis)
            for name, value in part.items()
        }
    if isinstance(part, tuple):
        return tuple(append_branches(value, rows, batch, branches, axis) for value in part)
    if part is None or (part.shape[axis] == 1 and rows > 1):
        return part
    if part.shape[axis] != rows:
        raise ValueError(f"expected {rows} rows or 1 along axis {axis}, got {tuple(part.shape)}")
    if isinstance(part, BlockMask):
        order = torch.arange(rows + branches * batch, device=part.kv_indices.device)
        return _block_mask_rows(part, torch.where(order < rows, order, (order - rows) % batch))
    return torch.cat([part, *[part.narrow(axis, 0, batch)] * branches], dim=axis)


def leading_rows(part: Any, rows: int, first: int) -> Any:
    """The first rows of a mask or of positions that have `rows` of them along axis 0."""
    if part is None or part.shape[0] != rows:
        return part
    if isinstance(part, BlockMask):
        return _block_mask_rows(part, torch.arange(first, device=part.kv_indices.device))
    return part[:first]


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
