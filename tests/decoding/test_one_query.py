"""The attention of one query is that of SDPA, and takes its place where it may."""

from types import SimpleNamespace

import pytest
import torch
from attention_cases import MASKS, language_case, language_inputs
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from causalmm.decoding import one_query


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("share", [1, 3])
@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("masks", MASKS)
def test_equals_sdpa(masks, branches, share, past):
    case = language_case(
        masks=masks, draws=range(branches), queries=1, share=share, past=past, unfilled=2
    )
    (query, key, value), visible, sees = language_inputs(case, 0)
    result = one_query.attention(query, key, value, scale=0.7, visible=visible)
    sees = sees.repeat(branches, 1, 1).unsqueeze(1)
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=sees, scale=0.7, enable_gqa=True
    )
    # SDPA, too, gives 0 where nothing is seen.
    assert_close(result, expected)
    half = [part.bfloat16() for part in (query, key, value)]
    low = one_query.attention(*half, scale=0.7, visible=visible)
    assert low.dtype == torch.bfloat16
    assert_close(low.double(), expected, atol=0.05, rtol=0.05)


def test_autocast_changes_nothing():
    tensors, visible, _ = language_inputs(language_case(queries=1), 0)
    tensors = [part.float() for part in tensors]
    expected = one_query.attention(*tensors, scale=0.7, visible=visible)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(one_query.attention(*tensors, scale=0.7, visible=visible), expected)


def test_what_it_supports():
    def layer(attention="sdpa", training=False):
        return SimpleNamespace(
            config=SimpleNamespace(_attn_implementation=attention), training=training
        )

    query = torch.ones(1, 2, 1, 4)
    assert one_query.supports(layer(), query)
    assert not one_query.supports(layer(), query.expand(-1, -1, 2, -1))
    assert not one_query.supports(layer(), query.to("meta"))
    assert not one_query.supports(layer("eager"), query)
    assert not one_query.supports(layer(training=True), query)
    assert not one_query.supports(layer(), query.clone().requires_grad_())
