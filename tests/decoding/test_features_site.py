"""Vision site "features" is the released formula, computed densely on upstream's maps."""

import pytest
import torch
from random_numbers import uniform
from tiny_llava import llava_config
from tiny_llava_next import tile_starts
from tiny_models import model_pair, sample
from tiny_words import IMAGE

from causalmm import BranchTrace, CausalMMConfig
from causalmm.counterfactual import random_weights, released
from llava_causalmm import LlavaForConditionalGeneration

METHODS = ["uniform", "reversed", "random", "shuffle"]


def edited_map(method, maps, seed, layer, start=0):
    """The released edit of a [1, H, T, T] map, with our draws as its random numbers; `start`: the
    position of its first token."""
    _, heads, size, _ = maps.shape
    places = start + torch.arange(size)
    if method == "random":
        drawn = uniform(seed, (0,), layer, heads, places, places)
        return released.vision_random(maps, drawn.reshape(1, heads, size, size))
    if method == "shuffle":
        permutations = torch.stack(
            [random_weights.permutation(seed, 0, layer, head, places) for head in range(heads)]
        )
        return released.vision_shuffle(maps, permutations)
    return {"uniform": released.vision_uniform, "reversed": released.vision_reversed}[method](maps)


def weighed_features(upstream, pixels, method, starts):
    """The projected features of pictures or tiles [N, 3, H, W], weighed: [N, T, D]."""
    tower = upstream.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
    features = tower.hidden_states[-2][:, 1:]
    maps = torch.cat(
        [
            edited_map(method, each, seed=4, layer=2, start=start)
            for each, start in zip(tower.attentions[-2].split(1), starts, strict=True)
        ]
    )
    return upstream.model.multi_modal_projector(released.apply_to_features(features, maps))


def check(models, inputs, method, projected):
    """That our vision branch is upstream's model on these features."""
    ours, upstream = models
    config = CausalMMConfig(
        mode="vision",
        vision_method=method,
        site="features",
        normalization="released",
        epsilon=0,
        seed=4,
    )
    trace = BranchTrace()
    ours(**inputs, causalmm=ours.causalmm_plan(config, trace))
    embeds = upstream.get_input_embeddings()(inputs["input_ids"])
    placeholders = (inputs["input_ids"] == IMAGE).unsqueeze(-1)
    embeds = embeds.masked_scatter(placeholders, projected)
    logits = upstream(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(trace.steps[0].vision, logits[:, -1], atol=1e-4, rtol=1e-4)
    assert (trace.steps[0].vision - trace.steps[0].factual).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_equals_the_released_formula(method):
    models = model_pair("llava", "eager")
    inputs = sample("llava", seed=1, images=2)
    projected = weighed_features(models[1], inputs["pixel_values"], method, (0, 0))
    check(models, inputs, method, projected)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_each_tile_is_weighed_by_its_own_map(method):
    models = model_pair("llava_next", "eager")
    upstream = models[1]
    inputs = sample("llava_next", seed=1, sizes=((24, 40), (40, 12)))
    tiles = torch.cat([inputs["pixel_values"][0], inputs["pixel_values"][1, :3]])
    starts = tile_starts(upstream.config, inputs, 2)
    projected = weighed_features(upstream, tiles, method, starts)
    packed, _ = upstream.model.pack_image_features(
        projected.split([5, 3]), inputs["image_sizes"], "default", upstream.model.image_newline
    )
    check(models, inputs, method, torch.cat(packed))


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
