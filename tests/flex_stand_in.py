"""flex_attention by its documentation, dense: its kernels need a GPU."""

import torch
from torch.nn.attention.flex_attention import AuxOutput

from causalmm.counterfactual.backends import flex


def dense_kernel(query, key, value, *, score_mod, return_aux=None, scale=None, enable_gqa=False):
    """What the documentation of flex_attention says, on the whole map."""
    assert enable_gqa
    share = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(share, dim=1).float() for part in (key, value))
    scores = query.float() @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if score_mod is not None:
        rows, heads, queries, keys = (torch.arange(size) for size in scores.shape)
        places = (rows[:, None, None, None], heads[:, None, None], queries[:, None], keys)
        scores = score_mod(scores, *places)
    output = scores.softmax(dim=-1).nan_to_num(0.0) @ value
    if return_aux is None:
        return output.to(query.dtype)
    return output.to(query.dtype), AuxOutput(
        lse=scores.logsumexp(dim=-1) if return_aux.lse else None,
        max_scores=scores.amax(dim=-1) if return_aux.max_scores else None,
    )


def install(monkeypatch):
    """The stand-in for every formula that the backend computes, a few queries at a time."""
    monkeypatch.setattr(flex, "supports", lambda call: flex.computes(call.formula))
    monkeypatch.setattr(flex, "QUERIES", 3)
    monkeypatch.setattr(flex, "RANDOM_QUERIES", 4)
    monkeypatch.setattr(flex, "flex_attention", dense_kernel)
    monkeypatch.setattr(flex, "_compiled", lambda function: function)
