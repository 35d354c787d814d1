"""Which layers of a model an intervention can reach, and what is refused because it cannot."""

import pytest
import torch
from dense_branches import attach
from equivalence import check
from tiny_llava import llava_config, llava_sample
from tiny_llava_next import LLAMA, llava_next_config, llava_next_sample
from tiny_models import model_pair
from tiny_qwen2_vl import qwen2vl_config
from transformers import LlavaConfig, MistralConfig, Qwen2Config

from causalmm import BranchTrace, CausalMMConfig
from llava_causalmm import LlavaForConditionalGeneration
from llavanext_causalmm import LlavaNextForConditionalGeneration
from qwen2vl_causalmm import Qwen2VLForConditionalGeneration


def test_llava_counts_the_layers_below_its_features():
    towers = LlavaForConditionalGeneration(llava_config()).causalmm_towers()
    assert (towers.vision_layers, towers.language_layers) == (3, 4)
    assert towers.features_site


def test_qwen2vl_reads_its_last_vision_layer():
    towers = Qwen2VLForConditionalGeneration(qwen2vl_config()).causalmm_towers()
    assert (towers.vision_layers, towers.language_layers) == (3, 4)
    assert not towers.features_site


def test_no_vision_layer_below_the_features_is_refused():
    model = LlavaForConditionalGeneration(llava_config(vision_feature_layer=0))
    with pytest.raises(ValueError, match="below every vision layer"):
        model.causalmm_plan(CausalMMConfig())


def test_the_features_site_is_llavas():
    model = Qwen2VLForConditionalGeneration(qwen2vl_config())
    with pytest.raises(ValueError, match="site='features' needs"):
        model.causalmm_plan(CausalMMConfig(mode="vision", site="features"))


def test_several_feature_layers_are_all_counterfactual():
    """Branches join below the lowest feature layer that is read, even if edits begin above it."""
    changes = {"vision_feature_layer": [1, -2]}
    model, upstream = model_pair("llava", "sdpa", **changes)
    inputs = llava_sample(seed=1)
    trace = BranchTrace()
    plan = model.causalmm_plan(CausalMMConfig(mode="vision", vision_layers="2:"), trace)
    with torch.no_grad():
        model(**inputs, causalmm=plan)
        plain = upstream(**inputs).logits[:, -1]
    torch.testing.assert_close(trace.steps[0].factual, plain, atol=1e-4, rtol=1e-4)
    assert (trace.steps[0].vision - plain).abs().max() > 1e-3


def test_other_towers_decode_plainly_and_refuse_causalmm():
    config = llava_config()
    text = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config = LlavaConfig(
        vision_config=config.vision_config,
        text_config=text,
        image_token_index=config.image_token_id,
    )
    model = LlavaForConditionalGeneration(config).eval()
    inputs = llava_sample(seed=1)
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1
    with pytest.raises(
        ValueError, match="a part of type MistralModel: expected the patched LlamaModel"
    ):
        model.generate(**inputs, causalmm=CausalMMConfig(), max_new_tokens=2)


def test_llava_next_with_a_llama_is_the_dense_definition():
    """A batch of pictures with different numbers of tiles, too."""
    ours, upstream = model_pair(LLAMA, "sdpa")
    inputs = LLAMA.sample(seed=1, **LLAMA.two_images)
    with torch.no_grad():
        assert torch.equal(ours(**inputs).logits, upstream(**inputs).logits)
    samples = [LLAMA.sample(seed=2, before=5), LLAMA.sample(seed=3, sizes=((40, 12),))]
    check((ours, upstream, attach(upstream, LLAMA)), samples, CausalMMConfig(epsilon=0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text": Qwen2Config}, "type Qwen2Model: expected the patched LlamaModel or MistralModel"),
        ({"sliding_window": 8}, "does not support sliding-window attention layers"),
    ],
)
def test_other_decoders_of_llava_next_decode_plainly_and_refuse_causalmm(changes, sentence):
    model = LlavaNextForConditionalGeneration(llava_next_config(**changes)).eval()
    inputs = llava_next_sample(seed=1)
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1
    with pytest.raises(ValueError, match=sentence):
        model.generate(**inputs, causalmm=CausalMMConfig(), max_new_tokens=2)


def test_other_attention_implementations_are_refused_by_name():
    model = LlavaForConditionalGeneration(llava_config())
    model.config.text_config._attn_implementation = "paged|sdpa"
    with pytest.raises(ValueError, match=r"attn_implementation='paged\|sdpa'"):
        model.causalmm_plan(CausalMMConfig())
