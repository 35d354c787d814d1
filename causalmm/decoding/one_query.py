"""Factual attention of a decoding step on a CPU, where SDPA takes several times as long.

Its kernel is made for many queries; for one, two matrix products in float32 do. It also rounds the
weights to the precision of the query. B rows, H query heads, G KV heads, K keys, D head size.
Tests: tests/decoding/test_one_query.py.
"""

import torch
from torch import Tensor

from causalmm.counterfactual.attention_call import grouped_query_product, precise
from causalmm.counterfactual.attention_mask import AttentionMask


def supports(module: torch.nn.Module, query: Tensor) -> bool:
    """Whether `attention` may stand for the SDPA of this layer: one query, on a CPU, not compiled,
    without gradients."""
    return (
        query.shape[2] == 1
        and query.device.type == "cpu"
        and module.config._attn_implementation == "sdpa"
        and not (module.training or query.requires_grad or torch.compiler.is_compiling())
    )


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, visible: AttentionMask
) -> Tensor:
    """Factual attention of query [B, H, 1, D], key and value [B, G, K, D]: [B, H, 1, D].

    `visible` describes the samples, which the rows hold one or more times. A row that sees no key
    gets 0.
    """
    rows, keys = query.shape[0], key.shape[2]
    samples = [len(part) for part in (visible.keys, visible.mask) if part is not None]
    visible = visible.repeat(rows // max(samples, default=rows))
    # Autocast would run the matrix products in half precision.
    with torch.autocast(query.device.type, enabled=False):
        scores = grouped_query_product(precise(query) * scale, precise(key).mT)
        if not visible.is_full(keys):
            scores.masked_fill_(~visible.to_dense(1, keys, key.device), -torch.inf)
        output = grouped_query_product(scores.softmax(dim=-1), precise(value))
    return output.nan_to_num_(0.0).to(query.dtype)
