"""Counterfactual attention outputs, without building the attention map.

B rows: S draws of n samples, laid out [draw 0: all samples | draw 1: all samples | ...]. H query
heads, G KV heads (H = G * g), Q queries, K keys, D head size; vision encoder: Q = K = N.
For query i: a_ij factual softmax weights, S_i the n_i keys it may see, o_i = sum_j a_ij v_j,
m_i = max_j a_ij, u_i = sum of v_j over S_i, M = the largest a_ij of one head's whole map.
Promises, tested in tests/counterfactual/test_attention.py: hidden keys get weight 0; a query that
sees no key gets 0; finite inputs give finite outputs; memory grows linearly with K (shuffle: one
map at a time).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from causalmm.counterfactual.attention_call import AttentionCall, precise
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.backends import BACKENDS
from causalmm.counterfactual.methods import Formula, find
from causalmm.counterfactual.random_weights import RandomHashes, random_hashes
from causalmm.counterfactual.softmax_stats import softmax_stats


def language_attention(
    method: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    visible: AttentionMask,
    normalization: str = "visible",
    scope: str = "all",
    seed: int = 0,
    draws: Sequence[int] = (0,),
    layer: int = 0,
    hashes: RandomHashes | None = None,
) -> Tensor:
    """Counterfactual self-attention of the decoder: [B, H, Q, D] in the query's dtype.

    Query [B, H, Q, D], key and value [B, G, K, D], position embeddings applied. The rows hold one
    group of samples a draw; `visible` describes the samples, and under `scope` "image", which edits
    the image keys of text queries alone, says which tokens are image tokens. `hashes`: those of
    `random_hashes` for this call, where they were computed for several layers together. Raises
    ValueError for an unknown method, normalization or scope and for shapes that do not fit.
    """
    formula = find("language", method).formula(normalization, scope)
    if scope == "image" and visible.image is None:
        raise ValueError("scope='image': expected visible.image, which tokens are image tokens")
    return _run(formula, query, key, value, scale, visible, seed, draws, layer, hashes)


def vision_attention(
    method: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    normalization: str = "visible",
    seed: int = 0,
    draws: Sequence[int] = (0,),
    layer: int = 0,
    positions: Tensor | None = None,
) -> Tensor:
    """Counterfactual attention of the vision encoder, where all N patches see each other.

    As `language_attention`; a sample is an image, or a part of one whose patches see that part
    only. `positions`, consecutive int64 [n or 1, N], are then those of the patches in the image, so
    that parts get random weights of their own; None: from 0 on.
    """
    formula = find("vision", method).formula(normalization)
    mask = AttentionMask(causal=False, positions=positions)
    return _run(formula, query, key, value, scale, mask, seed, draws, layer)


def image_mass(query: Tensor, key: Tensor, *, scale: float, visible: AttentionMask) -> Tensor:
    """How much of its factual attention each text query gives to image keys: float [B, H, Q].

    Letters as in `language_attention`; `visible` describes the B rows. 0 for image tokens and where
    no image key is seen.
    """
    formula = find("language", "blind").formula("visible", "image")
    call = AttentionCall(
        formula=formula,
        query=query,
        key=key,
        value=key[..., :1],  # only weights are asked for
        scale=scale,
        mask=visible,
        heads=range(query.shape[1]),
        seed=0,
        draws=(0,),
        layer=0,
    )
    with torch.autocast(query.device.type, enabled=False):
        inside, outside = (softmax_stats(call.of_part(part)).lse for part in ("inside", "outside"))
    return (inside - outside).sigmoid().nan_to_num_(0.0).squeeze(-1)


def edited_image_mass(
    method: str, query: Tensor, key: Tensor, *, visible: AttentionMask, **settings: Any
) -> Tensor:
    """How much of its counterfactual attention each query gives to image keys: [B, H, Q].

    Letters and `settings` as in `language_attention`: weights on image keys are its output for
    values that are 1 there and 0 elsewhere. A share of all weights, also of a method whose weights
    do not sum to 1; 0 where all weights are 0. `visible` says which tokens are image tokens.
    """
    value = torch.zeros_like(key)
    image = visible.image.keys
    value[..., 0] = image.repeat(1 if len(image) == 1 else len(key) // len(image), 1)[:, None]
    value[..., 1] = 1
    output = language_attention(method, query, key, value, visible=visible, **settings)
    return (output[..., 0] / output[..., 1]).nan_to_num_(0.0)


def edited_map(
    method: str,
    weights: Tensor,
    normalization: str = "visible",
    seed: int = 0,
    draws: Sequence[int] = (0,),
    layer: int = 0,
    positions: Tensor | None = None,
) -> Tensor:
    """The counterfactual map itself, [B, H, N, N], of softmax maps: for the vision site "features".

    A map is the attention output for the identity as values, and it is its own softmax of its
    logarithm: so the formulas of `vision_attention` give it. `positions` as there.
    """
    rows, _, patches, _ = weights.shape
    # -inf times the identity's zeros would be NaN; this, too, is a weight of exactly 0.
    logarithm = precise(weights).log().clamp_min(-1e4)
    identity = torch.eye(patches, dtype=logarithm.dtype, device=weights.device)
    identity = identity.expand(rows, 1, patches, patches)  # one KV head
    edited = vision_attention(
        method,
        logarithm,
        identity,
        identity,
        scale=1.0,
        normalization=normalization,
        seed=seed,
        draws=draws,
        layer=layer,
        positions=positions,
    )
    return edited.to(weights.dtype)


def _run(
    formula: Formula,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    mask: AttentionMask,
    seed: int,
    draws: Sequence[int],
    layer: int,
    hashes: RandomHashes | None = None,
) -> Tensor:
    _check_shapes(query, key, value, mask, draws)
    if formula.random_weights and hashes is None:
        shape = (*query.shape[:3], key.shape[2])
        (hashes,) = random_hashes(mask, shape, query.device, seed, draws, (layer,))
    mask = replace(mask.repeat(len(draws)), part=formula.part)
    if mask.keys is not None and not formula.random_weights:
        value = value * mask.keys[:, None, :, None]  # padding's values do not count in sums
    call = AttentionCall(
        formula=formula,
        query=query,
        key=key,
        value=value,
        scale=scale,
        mask=mask,
        heads=range(query.shape[1]),
        seed=seed,
        draws=tuple(draws),
        layer=layer,
        hashes=hashes,
    )
    # Autocast would run the matrix products in half precision.
    with torch.autocast(query.device.type, enabled=False):
        output = next(each for each in BACKENDS if each.supports(call)).run(call)
    # NaN is a query that sees nothing, or sums beyond float32; methods whose weights do not sum
    # to 1 can leave the range of float16.
    return output.nan_to_num_(0.0)


def _check_shapes(
    query: Tensor, key: Tensor, value: Tensor, visible: AttentionMask, draws: Sequence[int]
) -> None:
    rows, heads, queries, _ = query.shape
    if not draws or rows % len(draws):
        raise ValueError(f"draws={tuple(draws)}: expected their number to divide the {rows} rows")
    if key.shape[:3] != value.shape[:3] or key.shape[0] != rows or heads % key.shape[1]:
        raise ValueError(
            f"key {tuple(key.shape)} and value {tuple(value.shape)} do not fit query "
            f"{tuple(query.shape)}: expected {rows} rows, one length, heads that divide {heads}"
        )
    samples, length, image = rows // len(draws), key.shape[2], visible.image
    for name, part, shape in (
        ("keys", visible.keys, (samples, length)),
        ("mask", visible.mask, (samples, 1, queries, length)),
        ("image.keys", image and image.keys, (samples, length)),
        ("image.queries", image and image.queries, (samples, queries)),
    ):
        if part is None:
            continue
        # No `in`: see Intervention.edited in causalmm/counterfactual/intervention.py.
        if (len(part) != 1 and len(part) != samples) or part.shape[1:] != shape[1:]:
            raise ValueError(
                f"visible.{name} {tuple(part.shape)}: expected {list(shape)} for {rows} rows in "
                f"{len(draws)} draws"
            )
