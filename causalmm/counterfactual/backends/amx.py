"""CPUs that multiply tiles of bfloat16 in hardware (AMX), several times as fast as any float32.

So o_i and m_i of a prefill come from PyTorch's fused kernel there, if it proves right on the CPU
at hand: it is an operator without documentation.
Letters as in causalmm/counterfactual/attention.py. Held by tests/counterfactual/test_attention.py
and tests/counterfactual/test_amx.py.
"""

import warnings
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from causalmm.counterfactual.attention_call import Attention, SoftmaxStats, grouped, precise
from causalmm.counterfactual.attention_mask import AttentionMask

SHARPER = 2.0**20
"""As many times the scores: of their exponentials only the largest counts."""
KEYS = 128
"""Products are best of multiples of so many: for each other shape a kernel is made and kept."""
LARGER = 4
"""As many times larger than elsewhere are blocks: products with few queries leave the tiles
waiting, and these CPUs have large caches."""
ROUNDING = 2.0**-6
"""How far the kernel may be off: several times what it rounds, far less than what is wrong."""


@cache
def available() -> bool:
    """Whether this CPU has such tiles."""
    return torch.cpu.get_capabilities().get("amx_bf16", False)


def supports(part: Tensor) -> bool:
    """Whether products with this should be left in its own precision."""
    return part.device.type == "cpu" and part.dtype == torch.bfloat16 and available()


def round_up(keys: int) -> int:
    """The next multiple of `KEYS`."""
    return -(-keys // KEYS) * KEYS


def serves(call: Attention) -> bool:
    """Whether `softmax_stats` should be used: on such a CPU, without padding."""
    return (
        supports(call.query)
        and _fits(call)
        and not (torch.is_grad_enabled() and call.query.requires_grad)
        and not torch.compiler.is_compiling()
        and is_right()
    )


@cache
def is_right() -> bool:
    """Whether `softmax_stats` gives on this CPU what the scores do, for a few small calls; a
    warning says so where it does not."""
    numbers = torch.Generator().manual_seed(0)
    for heads, queries, keys, causal in (
        (4, 150, 150, True),
        (4, 70, 100, True),
        (2, 90, 90, False),
    ):
        shapes = ((2, heads, queries, 64), (2, 2, keys, 64), (2, 2, keys, 64))
        query, key, value = (torch.randn(shape, generator=numbers).bfloat16() for shape in shapes)
        call = Attention(
            query=query, key=key, value=value, scale=0.5, heads=range(heads), keys_given=keys,
            visible=AttentionMask(causal=causal, query_start=keys - queries),
            seed=0, draws=(0,), layer=0, fused=False,
        )  # fmt: skip
        with torch.autocast("cpu", enabled=False):
            found, weights = softmax_stats(call), call.scores().softmax(dim=-1)
            exact = SoftmaxStats(grouped(weights, precise(value)), weights.amax(-1, keepdim=True))
        for one, other in zip(found, exact, strict=True):
            if not torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING):
                warnings.warn(
                    "PyTorch's attention kernel gives wrong results on this CPU: counterfactual "
                    "attention is computed without it, more slowly",
                    stacklevel=2,
                )
                return False
    return True


def _fits(call: Attention) -> bool:
    """Whether the kernel can say what the queries see: all keys, or those up to their own place, of
    which not most stand before the first query."""
    visible, queries, keys = call.visible, call.query.shape[2], call.key.shape[2]
    if visible.keys is not None or visible.mask is not None:
        return False
    start = visible.query_start
    return visible.is_full(keys) or (
        isinstance(start, int) and start + queries == keys and start <= queries
    )


def heads_at_a_time(call: Attention) -> int:
    """So many key-value heads that every thread of the kernel gets query heads of its own. Threads
    that share one get as many queries each, and the later ones see far more keys."""
    return -(-torch.get_num_threads() // call.rows_a_head)


def softmax_stats(call: Attention) -> SoftmaxStats:
    """o_i, rounded to the inputs' precision, and m_i.

    The kernel gives the logarithm of a row's sum of exponentials, log_i. Of scores c times as large
    it is c max_j s_ij, up to the logarithm of the number of nearly largest ones. So m_i is
    exp(log_i(c s) / c - log_i(s)).
    """
    output, total = _kernel(call, call.scale)
    _, sharp = _kernel(call, call.scale * SHARPER)
    peak = sharp.div_(SHARPER).sub_(total).exp_()
    return SoftmaxStats(output.float(), peak.unsqueeze(-1))


def _kernel(call: Attention, scale: float) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, Q, D] and logarithms [B, H, Q]."""
    kernel = partial(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, scale=scale)
    shared, (heads, queries) = call.key.shape[1], call.query.shape[1:3]
    query, key, value = call.query, call.key, call.value
    share = heads // shared
    if call.visible.is_full(key.shape[2]):
        # The g query heads of a group become further queries, so that nothing is repeated.
        found = kernel(query.unflatten(1, (shared, share)).flatten(2, 3), key, value)
        return tuple(part.unflatten(2, (share, queries)).flatten(1, 2) for part in found)
    # No copy where there is one key-value head, or one for each query head.
    key, value = (
        part.unsqueeze(2).expand(-1, -1, share, -1, -1).flatten(1, 2) for part in (key, value)
    )
    # To the kernel, query i sees the first i keys: so queries stand before the first, for nothing.
    before = call.visible.query_start
    query = pad(query, (0, 0, before, 0)) if before else query
    return tuple(part[:, :, before:] for part in kernel(query, key, value, is_causal=True))
