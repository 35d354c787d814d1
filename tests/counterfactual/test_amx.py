"""The kernel for CPUs with tiles of bfloat16 is used only where it has proved right."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from causalmm.counterfactual.attention import language_attention, vision_attention
from causalmm.counterfactual.attention_mask import AttentionMask
from causalmm.counterfactual.backends import amx

KERNEL = amx._kernel


@pytest.fixture(autouse=True)
def unproved(monkeypatch):
    """As on such a CPU, before anything was computed; the kernel is there on others, too."""
    prove = amx.is_right
    monkeypatch.setattr(amx, "available", lambda: True)
    prove.cache_clear()
    yield
    prove.cache_clear()


def inputs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, 40, 16, generator=generator).bfloat16() for _ in range(3)]


def attend(tensors):
    """Both towers, by formulas that look at the kernel's results."""
    return (
        language_attention("reverse", *tensors, scale=0.25, visible=AttentionMask()),
        vision_attention("reversed", *tensors, scale=0.25),
    )


def last_keys_forgotten(call, scale):
    """As a kernel whose last block of keys is short."""
    output, total = KERNEL(call, scale)
    return output, total + 8 / call.key.shape[2]


def first_head_everywhere(call, scale):
    output, total = KERNEL(call, scale)
    return output[:, :1].expand_as(output), total


def unset(call, scale):
    output, total = KERNEL(call, scale)
    output[:, :, -1] = torch.nan
    return output, total


def no_causality(call, scale):
    return KERNEL(replace(call, visible=AttentionMask(causal=False)), scale)


def test_a_right_kernel_is_proved_once_and_without_a_word(monkeypatch):
    calls = []

    def counted(call, scale):
        calls.append(call)
        return KERNEL(call, scale)

    monkeypatch.setattr(amx, "_kernel", counted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attend(inputs())
        first = len(calls)
        attend(inputs())
    proving, attending = 3 * 2, 2 * 2  # calls of the kernel
    assert (first, len(calls)) == (proving + attending, proving + 2 * attending)


@pytest.mark.parametrize(
    "kernel", [last_keys_forgotten, first_head_everywhere, unset, no_causality]
)
def test_a_wrong_kernel_is_told_of_once_and_left_alone(kernel, monkeypatch):
    exact = attend([part.double() for part in inputs()])
    monkeypatch.setattr(amx, "_kernel", kernel)
    with pytest.warns(UserWarning, match="wrong results on this CPU") as told:
        found = attend(inputs())
    assert len(told) == 1
    for one, other in zip(found, exact, strict=True):
        assert_close(one, other, atol=0.02, rtol=0.02, check_dtype=False)


def test_nothing_is_proved_in_a_model_that_is_being_compiled(monkeypatch):
    """There the kernel is not used."""
    monkeypatch.setattr(amx, "is_right", lambda: pytest.fail("looked at"))
    query, key, value = inputs()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda: attend((query, key, value)),
        backend="eager", fullgraph=True,
    )  # fmt: skip
    assert all(part.isfinite().all() for part in compiled())
