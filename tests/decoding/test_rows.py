"""Rows of every kind of part: what each row of the result sees is what its origin saw."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from causalmm.decoding.rows import append_branches, leading_rows

LENGTH = 200  # two blocks of 128


@pytest.fixture
def padded():
    """A causal BlockMask of 4 rows (2 branches of 2) with left padding, and it written out."""
    lead = torch.tensor([0, 150, 0, 150])

    def mask_mod(row, head, query, key):
        return (key <= query) & (key >= lead[row])

    mask = create_block_mask(mask_mod, 4, None, LENGTH, LENGTH, device="cpu")
    return mask, written_out(mask)


def written_out(mask):
    rows, heads = mask.shape[:2]
    places = torch.meshgrid(
        *(torch.arange(size) for size in (rows, heads, LENGTH, LENGTH)), indexing="ij"
    )
    return mask.mask_mod(*places)


def test_rows_of_a_block_mask(padded):
    mask, seen = padded
    first = leading_rows(mask, 4, 3)
    assert first.shape[0] == 3
    assert torch.equal(written_out(first), seen[:3])
    assert torch.equal(first.to_dense(), mask.to_dense()[:3])
    longer = append_branches(mask, rows=4, batch=2, branches=2)
    assert longer.shape[0] == 8
    assert torch.equal(written_out(longer), torch.cat([seen, seen[:2], seen[:2]]))
    assert torch.equal(longer.to_dense()[4:6], mask.to_dense()[:2])
    # Rows of rows: an edited layer takes the leading rows of what has joined before.
    assert torch.equal(written_out(leading_rows(longer, 8, 5))[4], seen[0])


def test_tensors_and_what_holds_them():
    part = torch.arange(8.0).view(4, 2)
    copied = append_branches((part, {"mask": part}, None), rows=4, batch=2, branches=1)
    assert torch.equal(copied[0], torch.cat([part, part[:2]]))
    assert torch.equal(copied[1]["mask"], copied[0])
    assert copied[2] is None
    assert torch.equal(leading_rows(part, 4, 3), part[:3])


def test_what_broadcasts_stays():
    one = torch.ones(1, 5)
    assert append_branches(one, rows=4, batch=2, branches=1) is one
    assert leading_rows(one, 4, 2) is one
    assert append_branches(one, rows=1, batch=1, branches=2).shape == (3, 5)


def test_rows_of_another_axis():
    positions = torch.arange(8).view(1, 2, 4)
    longer = append_branches({"a": positions}, rows=2, batch=2, branches=2, axis=1)["a"]
    assert torch.equal(longer, positions.repeat(1, 3, 1))
    with pytest.raises(ValueError, match="expected 3 rows or 1 along axis 1, got"):
        append_branches(positions, rows=3, batch=3, branches=1, axis=1)
