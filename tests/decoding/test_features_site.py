"""Vision site "features" (LLaVA) is the released formula, computed densely on upstream's maps."""

import pytest
import torch
from random_numbers import uniform
from tiny_llava import llava_config, llava_sample
from tiny_models import model_pair
from tiny_words import IMAGE

from causalmm import BranchTrace, CausalMMConfig
from causalmm.counterfactual import random_weights, released
from llava_causalmm import LlavaForConditionalGeneration


@pytest.fixture(scope="module")
def models():
    return model_pair("llava", "eager")


def edited_map(method, maps, seed, layer):
    """The released edit of [N, H, T, T] maps, with our draws as its random numbers."""
    _, heads, size, _ = maps.shape
    if method == "random":
        drawn = uniform(seed, (0,), layer, heads, torch.arange(size), torch.arange(size))
        return released.vision_random(maps, drawn.reshape(1, heads, size, size))
    if method == "shuffle":
        permutations = torch.stack(
            [
                random_weights.permutation(seed, 0, layer, head, torch.arange(size))
                for head in range(heads)
            ]
        )
        return released.vision_shuffle(maps, permutations)
    return {"uniform": released.vision_uniform, "reversed": released.vision_reversed}[method](maps)


@pytest.mark.parametrize("method", ["uniform", "reversed", "random", "shuffle"])
def test_equals_the_released_formula(models, method):
    ours, upstream = models
    inputs = llava_sample(seed=1, images=2)
    config = CausalMMConfig(
        mode="vision",
        vision_method=method,
        site="features",
        normalization="released",
        epsilon=0,
        seed=4,
    )
    trace = BranchTrace()
    with torch.no_grad():
        ours(**inputs, causalmm=ours.causalmm_plan(config, trace))
        tower = upstream.model.vision_tower(
            inputs["pixel_values"], output_attentions=True, output_hidden_states=True
        )
        features = tower.hidden_states[-2][:, 1:]
        maps = edited_map(method, tower.attentions[-2], seed=4, layer=2)
        weighed = released.apply_to_features(features, maps)
        projected = upstream.model.multi_modal_projector(weighed)
        embeds = upstream.get_input_embeddings()(inputs["input_ids"])
        placeholders = (inputs["input_ids"] == IMAGE).unsqueeze(-1)
        embeds = embeds.masked_scatter(placeholders, projected)
        logits = upstream(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(trace.steps[0].vision, logits[:, -1], atol=1e-4, rtol=1e-4)
    assert (trace.steps[0].vision - trace.steps[0].factual).abs().max() > 1e-3


def test_needs_one_feature_layer_without_the_class_token():
    for changes in (
        {"vision_feature_select_strategy": "full"},
        {"vision_feature_layer": [-2, -3]},
    ):
        model = LlavaForConditionalGeneration(llava_config(**changes))
        with pytest.raises(ValueError, match="site='features' needs a model with one vision"):
            model.causalmm_plan(CausalMMConfig(mode="vision", site="features"))


def test_names_no_layers():
    model = LlavaForConditionalGeneration(llava_config())
    config = CausalMMConfig(mode="vision", site="features", vision_layers="1:")
    with pytest.raises(ValueError, match="leave vision_layers at 'full'"):
        model.causalmm_plan(config)
