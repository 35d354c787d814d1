"""What the figures of attention show: the model's own maps, and what each formula makes of them."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_methods import RELEASED
from family_rows import FAMILIES, row_of
from PIL import Image
from random_numbers import uniform
from tiny_llava import llava_processor
from tiny_llava_next import LENGTH, count_tiles
from tiny_models import model_pair, sample
from tiny_qwen2_5_vl import WINDOW
from tiny_qwen2_vl import qwen2vl_processor
from tiny_words import IMAGE
from transformers import AttentionInterface

from causalmm import CausalMMConfig
from causalmm.counterfactual import random_weights, released
from causalmm.counterfactual.methods import LANGUAGE_METHODS, VISION_METHODS
from causalmm.errors import RequestError
from causalmm.figures import language, maps, vision
from causalmm.figures.pictures import Picture, pictures
from causalmm.figures.recording import attention_modules, record_language, record_vision

RECORDING = "eager_recording_for_tests"
LAYER, SEED = 1, 5


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def pair(family):
    return model_pair(family)


@pytest.fixture(scope="module")
def inputs(family):
    return sample(family, 3)


@pytest.fixture(scope="module")
def two_pictures(family):
    return sample(family, 3, **row_of(family).two_images)


@pytest.fixture(scope="module")
def call(pair, inputs):
    """The language model's."""
    return record_language(pair[0], inputs, LAYER)


@pytest.fixture(scope="module")
def vision_call(pair, inputs):
    [calls] = record_vision(pair[0], inputs, LAYER, sizes(inputs))
    return calls[0]


def sizes(inputs):
    """How many positions each picture has in the vision encoder."""
    if "image_sizes" in inputs:
        return [LENGTH * count for count in count_tiles(inputs)]
    if "image_grid_thw" not in inputs:
        return [1 + image.shape[1] * image.shape[2] // 49 for image in inputs["pixel_values"]]
    grids = [each for name in GRIDS for each in inputs.get(name, torch.zeros(0, 3)).tolist()]
    return [int(rows * columns) for times, rows, columns in grids for _ in range(int(times))]


GRIDS = ("image_grid_thw", "video_grid_thw")


def words_of(queries):
    """A tokenizer, as far as the figures ask it."""

    class Tokenizer:
        def decode(self, ids):
            return queries[ids[0]]

        def convert_ids_to_tokens(self, token):
            return f"<0x{token:02X}>"

    return Tokenizer()


# -- recorded maps -----------------------------------------------------------------------------


@torch.no_grad()
def upstream_vision_maps(model, inputs, layer):
    """Upstream's eager weights [H, N, N] of each picture, or of each window."""
    tower = model.get_encoder("image")
    watched = attention_modules(tower)[layer]
    # Noted where upstream's own eager function gives them: some of its towers drop them.
    upstreams = sys.modules[type(watched).__module__].eager_attention_forward
    weights = []

    def eager(module, *args, **kwargs):
        output = upstreams(module, *args, **kwargs)
        if module is watched:
            weights.extend(output[1])
        return output

    AttentionInterface.register(RECORDING, eager)
    tower.set_attn_implementation(RECORDING)
    try:
        model(**inputs)
    finally:
        tower.set_attn_implementation("eager")
    return weights


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layer", [0, 2])
def test_factual_vision_maps_are_upstreams(pair, two_pictures, attention, layer):
    ours, upstream = pair
    expected = upstream_vision_maps(upstream, two_pictures, layer)
    ours.set_attn_implementation(attention)
    found = record_vision(ours, two_pictures, layer, sizes(two_pictures))
    assert len(found) == 2
    calls = [call for each in found for call in each]
    for recorded, weights in zip(calls, expected, strict=True):
        torch.testing.assert_close(maps.factual(recorded, causal=False), weights)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layer", [0, 3])
def test_the_factual_language_map_is_upstreams(pair, two_pictures, attention, layer):
    ours, upstream = pair
    with torch.no_grad():
        expected = upstream(**two_pictures, output_attentions=True).attentions[layer][0]
    ours.set_attn_implementation(attention)
    recorded = record_language(ours, two_pictures, layer)
    torch.testing.assert_close(maps.factual(recorded, causal=True), expected)


@torch.no_grad()
def test_recording_changes_nothing_and_leaves_nothing_behind(pair, two_pictures):
    model, _ = pair
    model.set_attn_implementation("eager")
    before = model(**two_pictures).logits
    attributes = [set(vars(module)) for module in model.modules()]
    assert record_vision(model, two_pictures, LAYER, sizes(two_pictures))
    record_language(model, two_pictures, LAYER)
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(model(**two_pictures).logits, before)


@torch.no_grad()
def test_a_failed_recording_leaves_nothing_behind(pair, inputs):
    model, _ = pair
    model.set_attn_implementation("eager")
    before = model(**inputs).logits
    with pytest.raises((TypeError, ValueError), match="input_ids|None"):
        record_language(model, inputs | {"input_ids": None}, LAYER)
    assert torch.equal(model(**inputs).logits, before)


# -- counterfactual maps -----------------------------------------------------------------------


def edited(call, method, causal, normalization):
    return maps.counterfactual(call, method, causal=causal, normalization=normalization, seed=SEED)


def numbers_of(call):
    positions = torch.arange(call.key.shape[2])
    return uniform(SEED, (0,), LAYER, call.heads, positions, positions)[0]


@pytest.mark.parametrize("method", RELEASED["language"])
def test_released_language_maps_are_those_of_the_reference(call, method):
    weights = maps.factual(call, causal=True)[None]
    formula = getattr(released, f"language_{method}")
    expected = formula(weights, numbers_of(call)) if method == "random" else formula(weights)
    # The first row is uniform: the reference divides 0 by 0 there.
    rows = slice(1, None) if method == "reverse_and_normalize" else slice(None)
    found = edited(call, method, True, "released")
    torch.testing.assert_close(found[:, rows], expected[0][:, rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", RELEASED["vision"])
def test_released_vision_maps_are_those_of_the_reference(vision_call, method):
    weights = maps.factual(vision_call, causal=False)[None]
    size = weights.shape[-1]
    chance = {
        "random": (numbers_of(vision_call),),
        "shuffle": (
            torch.stack(
                [
                    random_weights.permutation(SEED, 0, LAYER, head, torch.arange(size))
                    for head in range(vision_call.heads)
                ]
            ),
        ),
    }
    expected = getattr(released, f"vision_{method}")(weights, *chance.get(method, ()))[0]
    found = edited(vision_call, method, False, "released")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_visible_language_maps_are_those_of_the_table(call):
    weights = maps.factual(call, causal=True)
    seen = torch.ones_like(weights[0]).tril()
    drawn = numbers_of(call) * seen
    count, peak = seen.sum(-1, keepdim=True), weights.amax(-1, keepdim=True)
    reverse = (peak - weights) * seen
    expected = {
        "uniform": (seen / count).expand_as(weights),
        "reverse": reverse,
        "reverse_and_normalize": reverse / (count * peak - 1),
        "random": drawn / drawn.sum(-1, keepdim=True),
    }
    expected["reverse_and_normalize"][:, 0] = expected["uniform"][:, 0]
    for method, each in expected.items():
        found = edited(call, method, True, "visible")
        torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-5)
        assert found.triu(1).eq(0).all()
        if method != "reverse":
            torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:2]))


def test_visible_vision_maps_are_those_of_the_table(vision_call):
    weights = maps.factual(vision_call, causal=False)
    size, peak = weights.shape[-1], weights.amax((-2, -1), keepdim=True)
    expected = {
        "uniform": torch.full_like(weights, 1 / size),
        "reversed": (peak - weights) / (size * peak - 1),
        "random": numbers_of(vision_call) / numbers_of(vision_call).sum(-1, keepdim=True),
    }
    for method, each in expected.items():
        found = edited(vision_call, method, False, "visible")
        torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:2]))
    shuffled = edited(vision_call, "shuffle", False, "visible")
    assert not torch.equal(shuffled, weights)
    torch.testing.assert_close(shuffled.flatten(1).sort().values, weights.flatten(1).sort().values)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_an_edited_map_is_what_a_branch_computes(family, pair, two_pictures, layer):
    """Weights of every head times values are the attention output of the branch's rows."""
    model, _ = pair
    counts = sizes(two_pictures)
    module = attention_modules(model.get_encoder("image"))[layer]
    packed = hasattr(module, "qkv")
    seen = {}
    hooks = [
        (module.qkv if packed else module.v_proj).register_forward_hook(
            lambda _module, _inputs, output: seen.update(values=output.flatten(0, -2))
        ),
        (module.proj if packed else module.out_proj).register_forward_pre_hook(
            lambda _module, inputs: seen.update(output=inputs[0].flatten(0, -2))
        ),
    ]
    recorded = record_vision(model, two_pictures, layer, counts)
    values = seen["values"].chunk(3 if packed else 1, dim=-1)[-1].split(counts)
    drawn = CausalMMConfig(seed=SEED)
    expected = {method: [] for method in VISION_METHODS}  # of each picture
    for calls, value in zip(recorded, values, strict=True):
        of_heads = value.chunk(calls[0].heads, dim=-1)
        shown = [dict(maps.all_maps(calls, "vision", head, drawn)) for head in range(len(of_heads))]
        for method in VISION_METHODS:
            weighted = [each[method] @ part for each, part in zip(shown, of_heads, strict=True)]
            expected[method].append(torch.cat(weighted, dim=-1))
    for method in VISION_METHODS:
        config = replace(drawn, mode="vision", vision_method=method, vision_layers=str(layer))
        model(**two_pictures, causalmm=model.causalmm_plan(config))
        branch = seen["output"][sum(counts) :]
        torch.testing.assert_close(branch, torch.cat(expected[method]), rtol=1e-4, atol=1e-5)
    for hook in hooks:
        hook.remove()


def test_a_map_beyond_memory_is_refused(call, monkeypatch):
    monkeypatch.setattr(maps, "LARGEST", call.heads * call.key.shape[2] ** 2)
    maps.factual(call, causal=True)
    monkeypatch.setattr(maps, "LARGEST", maps.LARGEST - 1)
    with pytest.raises(RequestError, match="too large to be drawn: take a smaller image"):
        maps.factual(call, causal=True)


def test_a_head_or_their_mean(call):
    weights = maps.factual(call, causal=True)
    assert torch.equal(maps.of_head(weights, 2), weights[2])
    torch.testing.assert_close(maps.of_head(weights, None), sum(weights) / len(weights))


# -- pictures ----------------------------------------------------------------------------------


def noise(width, height, seed):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def in_order(grids):
    return torch.arange(int(grids.prod(dim=-1).sum()))


def packed_place(row, column, columns):
    """Where the processor of a Qwen model has a patch: squares of 2 x 2 one after the other."""
    return (row // 2 * (columns // 2) + column // 2) * 4 + row % 2 * 2 + column % 2


def one_patch_changed(inputs, number, line, column):
    """The inputs with other pixels in one patch of the picture of this number."""
    if "image_grid_thw" not in inputs:
        pixels = inputs["pixel_values"].clone()
        picture = pixels[number] if pixels.ndim == 4 else pixels[number, 0]
        picture[:, 7 * line : 7 * line + 7, 7 * column : 7 * column + 7] += 1
        return inputs | {"pixel_values": pixels}
    found = []
    for name, grid in zip(("pixel_values", "pixel_values_videos"), GRIDS, strict=True):
        start = 0
        for times, rows, columns in inputs.get(grid, torch.zeros(0, 3).int()).tolist():
            for _ in range(times):
                found.append((name, start + packed_place(line, column, columns)))
                start += rows * columns
    name, place = found[number]
    pixels = inputs[name].clone()
    pixels[place] += 1
    return inputs | {name: pixels}


@torch.no_grad()
def test_a_patch_is_drawn_where_the_encoder_has_it(family, pair):
    """What differs in one patch differs in the first layer at its place, and nowhere else."""
    model, row = pair[0], row_of(family)
    samples = [sample(family, 3, **row.two_images)]
    samples += [row.video(3)] if row.video is not None else []
    for inputs in samples:
        shown = pictures(row.processor(), inputs, 7, model.causalmm_patch_order)
        counts = [picture.size for picture in shown]
        assert counts == sizes(inputs)
        before = record_vision(model, inputs, 0, counts)
        for number, picture in enumerate(shown):
            rows, columns = picture.places.shape
            for each in range(0, rows * columns, 5):
                line, column = divmod(each, columns)
                changed = one_patch_changed(inputs, number, line, column)
                for other, calls in enumerate(record_vision(model, changed, 0, counts)):
                    different = [
                        call.start + place
                        for call, one in zip(calls, before[other], strict=True)
                        for place in range(call.query.shape[2])
                        if not torch.equal(call.query[:, :, place], one.query[:, :, place])
                    ]
                    assert different == [picture.places[line, column]] * (other == number)


@torch.no_grad()
@pytest.mark.parametrize("full", [True, False])
def test_a_map_of_windows_is_that_of_a_tower_without_an_order(full):
    """Upstream's, in whose one window patches lie as the processor has them."""
    row = row_of("qwen2_5_vl")

    def config(window):
        changed = row.config()
        changed.vision_config.fullatt_block_indexes = [0, 1] if full else [1]
        changed.vision_config.window_size = 7 * window
        return changed

    ours, upstream = model_pair(replace(row, config=lambda: config(WINDOW)))
    plain = row.upstream(config(64)).eval()
    plain.load_state_dict(upstream.state_dict())
    inputs = sample("qwen2_5_vl", 3, **row.two_images)
    expected = upstream_vision_maps(plain, inputs, 0)
    shown = pictures(row.processor(), inputs, 7, ours.causalmm_patch_order)
    assert any(not torch.equal(each.places, shown[0].places.sort()[0]) for each in shown)
    calls = record_vision(ours, inputs, 0, [picture.size for picture in shown])
    for picture, recorded, weights in zip(shown, calls, expected, strict=True):
        rows, columns = picture.places.shape
        packed = [packed_place(*divmod(n, columns), columns) for n in range(rows * columns)]
        weights = weights[:, packed][:, :, packed]
        if not full:
            # In a window, the same scores among fewer patches.
            windows = [(n // columns // WINDOW, n % columns // WINDOW) for n in range(len(packed))]
            same = torch.tensor([[one == other for other in windows] for one in windows])
            weights = weights * same
            weights = weights / weights.sum(-1, keepdim=True)
        factual = dict(maps.all_maps(recorded, "vision", 1, CausalMMConfig()))["factual"]
        places = picture.places.flatten()
        torch.testing.assert_close(factual[places][:, places], weights[1])


def test_llava_sees_the_picture_itself():
    images = [noise(28, 28, 1), noise(28, 28, 2)]
    processor = llava_processor()
    inputs = processor(
        images=[Image.fromarray(each) for each in images],
        text="<image> <image>",
        return_tensors="pt",
    )
    found = pictures(processor, inputs, 7, in_order)
    assert len(found) == 2
    for picture, pixels in zip(found, images, strict=True):
        assert np.array_equal(picture.pixels, pixels)
        assert picture.summary == 0
        assert picture.places.tolist() == [[1 + 4 * row + n for n in range(4)] for row in range(4)]


def test_llava_next_sees_the_whole_picture_in_its_first_tile():
    """Its other tiles are recorded, and left out where it is drawn."""
    row = row_of("llava_next")
    model, inputs = model_pair(row)[0], sample("llava_next", 3, **row.two_images)
    shown = pictures(row.processor(), inputs, 7, in_order)
    recorded = record_vision(model, inputs, LAYER, [picture.size for picture in shown])
    assert [len(calls) for calls in recorded] == [5, 3]
    for number, (picture, calls) in enumerate(zip(shown, recorded, strict=True)):
        assert picture.pixels.shape == (14, 14, 3)
        assert picture.places.tolist() == [[1, 2], [3, 4]]
        moved = one_patch_changed(inputs, number, 1, 0)
        assert (pictures(row.processor(), moved, 7, in_order)[number].pixels[7:, :7] > 0).any()
        drawn = vision.rows(calls, picture, ["cls"], 1, CausalMMConfig())
        weights = maps.factual(calls[0], causal=False)[1]
        ratios = drawn[0].overlays["factual"].ratios
        torch.testing.assert_close(ratios.flatten(), 5 * weights[0, 1:])


def test_qwen2vl_sees_pictures_and_frames():
    images = [noise(28, 56, 1), noise(42, 28, 2)]
    frames = [noise(56, 28, seed) for seed in range(3, 7)]
    processor = qwen2vl_processor()
    inputs = processor(
        images=[Image.fromarray(each) for each in images],
        videos=[[Image.fromarray(each) for each in frames]],
        text="<|image_pad|> <|image_pad|> <|video_pad|>",
        return_tensors="pt",
        do_sample_frames=False,
    )
    found = pictures(processor, inputs, 7, in_order)
    # Frames are encoded two by two.
    for picture, pixels in zip(found, [*images, *frames[::2]], strict=True):
        assert np.array_equal(picture.pixels, pixels)
        assert picture.summary is None
    # Squares of 2 x 2 patches, one after the other.
    assert found[1].places.tolist() == [
        [0, 1, 4, 5, 8, 9],
        [2, 3, 6, 7, 10, 11],
        [12, 13, 16, 17, 20, 21],
        [14, 15, 18, 19, 22, 23],
    ]


# -- over a picture ----------------------------------------------------------------------------


def a_picture(summary):
    """2 x 3 patches, their positions in an order of their own."""
    first = 0 if summary is None else 1
    places = torch.tensor([[3, 1, 5], [0, 2, 4]]) + first
    return Picture(np.zeros((2, 3, 3), np.uint8), places, summary)


@pytest.mark.parametrize("summary", [None, 0])
def test_an_overlay_says_who_gets_how_many_even_shares(summary):
    picture = a_picture(summary)
    size = 6 if summary is None else 7
    weights = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    weights /= weights.sum(-1, keepdim=True)
    query = picture.places[1, 2]
    found = vision.overlay(weights, picture, (1, 2))
    for row in range(2):
        for column in range(3):
            share = weights[query, picture.places[row, column]]
            assert found.ratios[row, column].item() == pytest.approx(size * share.item())
    mean = vision.overlay(weights, picture, "mean")
    patches = [weights[place] for place in picture.places.flatten()]
    expected = sum(patches) / 6
    torch.testing.assert_close(mean.ratios, size * expected[picture.places])
    if summary is None:
        assert found.summary is mean.summary is None
    else:
        assert found.summary == weights[query, 0].item()
        assert mean.summary == pytest.approx(expected[0].item())
        assert torch.equal(
            vision.overlay(weights, picture, "cls").ratios, size * weights[0][picture.places]
        )


def test_rows_hold_every_map_of_every_query(family, vision_call):
    summary = 0 if row_of(family).class_token else None
    count = vision_call.key.shape[2] - (summary is not None)
    places = torch.arange(count).view(4, -1) + (summary is not None)
    picture = Picture(np.zeros((28, 28, 3), np.uint8), places, summary)
    config = CausalMMConfig(seed=SEED)
    found = vision.rows([vision_call], picture, ["mean", (1, 0)], 1, config)
    assert [row.query for row in found] == ["mean", (1, 0)]
    for row in found:
        assert list(row.overlays) == ["factual", *VISION_METHODS]
        for name, overlay in row.overlays.items():
            if name == "factual":
                weights = maps.factual(vision_call, causal=False)
            else:
                weights = edited(vision_call, name, False, "visible")
            expected = vision.overlay(weights[1], picture, row.query)
            assert torch.equal(overlay.ratios, expected.ratios)
        # A query gives all it has.
        overlay = row.overlays["factual"]
        given = overlay.ratios.sum() / vision_call.key.shape[2] + (overlay.summary or 0)
        assert given.item() == pytest.approx(1, rel=1e-5)
        torch.testing.assert_close(row.overlays["uniform"].ratios, torch.ones(places.shape))


@pytest.mark.parametrize(
    ("query", "summary", "said"),
    [
        ("cls", None, "no class token"),
        ((2, 0), 0, "the picture has 2 rows and 3 columns of patches"),
        ((0, 3), 0, "the picture has 2 rows and 3 columns of patches"),
    ],
)
def test_a_query_that_is_not_there_is_refused(vision_call, query, summary, said):
    with pytest.raises(RequestError, match=said):
        vision.rows([vision_call], a_picture(summary), [query], None, CausalMMConfig())


# -- over a prompt -----------------------------------------------------------------------------


def test_places_are_tokens_and_pictures():
    tokenizer = words_of({7: "is", 8: "\n", 9: " ", 10: "\ufffd", 11: " a\nb"})
    ids = [7, 1, 1, 1, 8, 2, 9, 1, 10, 11]
    found = language.places(ids, tokenizer, {1: "image", 2: "video"})
    assert found == [
        ("is", 0, 1, False),
        ("image", 1, 4, True),
        ("↵", 4, 5, False),
        ("video", 5, 6, True),
        ("␣", 6, 7, False),
        ("image", 7, 8, True),
        ("<0x0A>", 8, 9, False),
        ("a↵b", 9, 10, False),
    ]


def test_a_ratio_is_what_is_given_over_what_an_even_map_gives():
    shown = [language.Place("", *bounds) for bounds in ((0, 1), (1, 4), (4, 5), (5, 6))]
    weights = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)).tril()
    weights /= weights.sum(-1, keepdim=True)
    found = language.ratio(weights, shown)
    for row, query in enumerate(shown):
        for column, key in enumerate(shown):
            given = even = 0.0
            for i in range(query.start, query.stop):
                for j in range(key.start, min(key.stop, i + 1)):
                    given += weights[i, j].item()
                    even += 1 / (i + 1)
            if column > row:
                assert found[row, column].isnan()
            else:
                assert found[row, column].item() == pytest.approx(given / even, rel=1e-5)


@pytest.mark.parametrize(
    ("scope", "methods"),
    [
        ("all", ["uniform", "reverse", "reverse_and_normalize", "random"]),
        ("image", list(LANGUAGE_METHODS)),
    ],
)
def test_matrices_hold_every_map(pair, inputs, call, scope, methods):
    ids = inputs["input_ids"][0].tolist()
    tokenizer = words_of({token: f"t{token}" for token in range(64)})
    # The configuration's own method has no say in which are shown.
    config = CausalMMConfig(seed=SEED, language_scope=scope)
    found = language.matrices(call, ids, tokenizer, {IMAGE: "image"}, config, None)
    assert list(found.ratios) == ["factual", *methods]
    assert [place.stop - place.start for place in found.places if place.picture] == [
        ids.count(IMAGE)
    ]
    seen = torch.ones(len(found.places), len(found.places)).tril().bool()
    for name, ratios in found.ratios.items():
        weights = maps.factual(call, causal=True)
        if name != "factual":
            settings = {"normalization": "visible", "seed": SEED, "scope": scope}
            image = inputs["input_ids"][0] == IMAGE
            weights = maps.counterfactual(call, name, causal=True, image=image, **settings)
        expected = language.ratio(weights.mean(0), found.places)
        torch.testing.assert_close(ratios, expected, equal_nan=True)
        assert torch.equal(~ratios.isnan(), seen)
    if scope == "all":
        torch.testing.assert_close(found.ratios["uniform"][seen], torch.ones(int(seen.sum())))
    else:
        place = next(number for number, each in enumerate(found.places) if each.picture)
        text = list(range(place + 1, len(found.places)))
        assert found.ratios["blind"][text, place].eq(0).all()
        assert found.ratios["factual"][text, place].gt(0).all()
        # The image's share of the attention stays what it is.
        for name in ("uniform", "reverse_and_normalize", "random"):
            torch.testing.assert_close(
                found.ratios[name][:, place], found.ratios["factual"][:, place], equal_nan=True
            )


def test_without_pictures_maps_of_scope_image_are_the_factual_one(call):
    ids = [8] * call.key.shape[2]
    config = CausalMMConfig(seed=SEED, language_scope="image")
    found = language.matrices(call, ids, words_of({8: "word"}), {IMAGE: "image"}, config, 1)
    assert len(found.ratios) == 1 + len(LANGUAGE_METHODS)
    for ratios in found.ratios.values():
        torch.testing.assert_close(ratios, found.ratios["factual"], equal_nan=True)


def test_a_prompt_too_long_to_be_shown_is_refused(call):
    tokenizer = words_of({8: "word"})
    with pytest.raises(RequestError, match="the prompt has 121 tokens beside its pictures"):
        language.matrices(call, [8] * 121, tokenizer, {}, CausalMMConfig(), None)
