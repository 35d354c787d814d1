"""A picture has the size that qwen_vl_utils and the processor give it, and no other."""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_utils import fetch_image, fetch_video
from qwen_vl_utils import vision_process as rules
from test_inputs import (
    QUESTION,
    assert_same,
    hub_processor,
    image,
    picture,
    upstream,
    user,
    video,
    write_video,
)
from tiny_llava import llava_processor
from tiny_qwen2_vl import qwen2vl_processor
from tiny_qwen3_vl import qwen3vl_processor

from causalmm.errors import RequestError
from causalmm.inputs.images import MAX_ASPECT_RATIO
from causalmm.inputs.messages import open_messages
from llava_causalmm import prompt as llava_prompt
from qwen2vl_causalmm import prompt as qwen2vl_prompt
from qwen2vl_causalmm.sizes import Size, asked_size, fetched_size, processed_size
from qwen2vl_causalmm.video import read_video
from qwen3vl_causalmm import prompt as qwen3vl_prompt

FACTOR = 28  # of the processors below
HUB = hub_processor()
NARROW = qwen2vl_processor(min_pixels=16 * FACTOR**2, max_pixels=64 * FACTOR**2, patch_size=14)
TINY = qwen2vl_processor()
PROCESSORS = {"hub": HUB, "narrow": NARROW}

examples = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
long_sides = st.one_of(st.integers(1, 300), st.integers(1, 6000))
pictures = st.tuples(st.integers(1, 90), long_sides, st.booleans()).map(
    lambda each: Size(each[0], each[1]) if each[2] else Size(each[1], each[0])
)
limits = st.fixed_dictionaries(
    {},
    optional={
        "min_pixels": st.integers(1, 150_000),
        "max_pixels": st.one_of(st.integers(1, 20_000), st.integers(1, 400_000)),
    },
).filter(lambda each: each.get("min_pixels", 0) <= each.get("max_pixels", math.inf))
asked = st.one_of(
    limits, pictures.map(lambda size: {"resized_height": size.height, "resized_width": size.width})
)


def blank(size):
    return Image.new("RGB", (size.width, size.height))


def size_of(picture):
    return Size(picture.height, picture.width)


def given_by(processor, picture):
    """The size that an image processor gives a picture, or None where it refuses."""
    try:
        inputs = processor.image_processor([picture], return_tensors="pt")
    except ValueError:
        return None
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    return Size(14 * rows, 14 * columns)


def ours(wanted, size, processor):
    fetched = fetched_size(wanted, size, FACTOR)
    return processed_size(fetched, asked_size(wanted, size), processor.image_processor)


@pytest.mark.parametrize("name", PROCESSORS)
@examples
@given(size=pictures, wanted=asked)
@example(size=Size(41, 6000), wanted={})
@example(size=Size(41, 6000), wanted={"max_pixels": 100_000})
@example(size=Size(55, 10_900), wanted={"max_pixels": 400_000})
@example(size=Size(2, 400), wanted={})
@example(size=Size(400, 2), wanted={})
@example(size=Size(1, 200), wanted={"min_pixels": 1, "max_pixels": 10})
@example(size=Size(9, 9), wanted={"resized_height": 41, "resized_width": 6000})
def test_an_image_has_the_size_that_upstream_gives_it(name, size, wanted):
    processor = PROCESSORS[name]
    true = (
        Size(wanted["resized_height"], wanted["resized_width"])
        if len(wanted) == 2 and ("resized_height" in wanted)
        else size
    )
    try:
        fetched = fetch_image({"image": blank(size), **wanted})
    except (ValueError, AssertionError):
        with pytest.raises(RequestError) as caught:
            ours(wanted, size, processor)
        if true.ratio > MAX_ASPECT_RATIO:
            assert f"found {true.ratio:.4g} to 1" in str(caught.value)
        return
    mine = ours(wanted, size, processor)
    theirs = given_by(processor, fetched)
    if theirs is None:
        # Only because rounding made it too long. Within the processor's limits nothing is left to
        # be done; otherwise it is what the processor makes of the picture itself.
        assert size_of(fetched).ratio > MAX_ASPECT_RATIO >= true.ratio
        edges = processor.image_processor.size
        inside = edges["shortest_edge"] <= size_of(fetched).pixels <= edges["longest_edge"]
        theirs = size_of(fetched) if inside else given_by(processor, blank(true))
    assert mine == theirs


@examples
@given(size=pictures, most=st.integers(1, 30_000))
@example(size=Size(1, 200), most=5_000)
@example(size=Size(41, 6000), most=5_000)
def test_the_least_max_pixels_is_told(size, most):
    assume(size.ratio <= MAX_ASPECT_RATIO)

    def fetched(most):
        return fetched_size({"min_pixels": 1, "max_pixels": most}, size, FACTOR)

    try:
        fetched(most)
        return
    except RequestError as error:
        said = str(error)
    assert f"{size.width} x {size.height} pixels does not fit into {most:,}" in said
    least = int(said.rpartition(" ")[2].replace(",", ""))
    assert fetched(least).pixels <= least
    # One more or less, where a float decides.
    with pytest.raises(RequestError):
        fetched(least - 2)


video_settings = st.one_of(
    asked,
    st.builds(
        lambda wanted, total: wanted | {"total_pixels": total},
        limits,
        st.integers(1, 1_000_000),
    ),
)


@settings(examples, max_examples=50)
@given(size=pictures, wanted=video_settings, count=st.integers(1, 3))
@example(size=Size(30, 6000), wanted={}, count=1)
@example(size=Size(2, 400), wanted={"min_pixels": 1}, count=2)
def test_listed_frames_are_those_that_upstream_gives(size, wanted, count):
    part = {"video": [blank(size)] * count, **wanted}
    check_frames(part, size, lambda: fetch_video(part))


@settings(examples, max_examples=50)
@given(size=pictures, wanted=video_settings)
@example(size=Size(2, 400), wanted={"min_pixels": 1})
@example(size=Size(41, 6000), wanted={})
def test_frames_of_a_file_are_those_that_upstream_gives(tmp_path_factory, size, wanted):
    path = write_video(tmp_path_factory.mktemp("video") / "a.mov", [blank(size)] * 2)

    def read(part):
        return torch.zeros(2, 3, size.height, size.width, dtype=torch.uint8), {}, 2.0

    with pytest.MonkeyPatch.context() as patch:
        # Its own readers need packages that are not there; all after them is asked.
        for reader in rules.VIDEO_READER_BACKENDS:
            patch.setitem(rules.VIDEO_READER_BACKENDS, reader, read)
        part = {"video": path, **wanted}
        check_frames(part, size, lambda: fetch_video(part | {"video": str(path)}))


def check_frames(part, size, fetch):
    try:
        theirs = fetch()
    except (ValueError, AssertionError, RuntimeError):
        try:
            mine = read_video(part, 14)
        except RequestError:
            return
        # Only because rounding made them too long for another rounding.
        assert mine.asked.ratio <= MAX_ASPECT_RATIO
        assert max(mine.pixels.shape[2:]) > 150 * FACTOR
        return
    assert torch.equal(read_video(part, 14).pixels, theirs)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(400, 2), (2, 300), (640, 480), (1000, 30), (90, 70)])
@pytest.mark.parametrize(
    "wanted", [{}, {"max_pixels": 30_000}, {"resized_height": 300, "resized_width": 30}]
)
def test_pixels_are_those_of_upstream(name, size, wanted):
    # Twice resized where a checkpoint's limits are other than qwen_vl_utils'.
    parts = [image(picture(1, size), **wanted), image(picture(2)), QUESTION]
    if size != (90, 70):
        parts.insert(0, video([picture(seed, size) for seed in range(3)], min_pixels=9_000))
    theirs = upstream("qwen2_vl", PROCESSORS[name], [[user(*parts)]])
    assert_same(qwen2vl_prompt.build_chat_inputs(PROCESSORS[name], [user(*parts)]), theirs)


QWEN3_VL = {
    "hub": {"images": (65_536, 16_777_216), "videos": (4_096, 25_165_824)},
    "small": {"images": (65_536, 90_000), "videos": (4_096, 200_000)},
    "large": {"images": (200_000, 16_777_216), "videos": (3_000_000, 25_165_824)},
}


@pytest.mark.parametrize("limits", QWEN3_VL)
@pytest.mark.parametrize("size", [(640, 480), (1000, 30), (90, 70)])
@pytest.mark.parametrize("wanted", [{}, {"resized_height": 300, "resized_width": 40}])
def test_the_limits_of_a_whole_video(limits, size, wanted):
    """Those of Qwen3-VL's processor: with more frames each is the smaller."""
    processor = qwen3vl_processor(patch_size=16, **QWEN3_VL[limits])
    shown = [picture(seed, size) for seed in range(5)]
    messages = [user(image(shown[0], **wanted), video(shown, **wanted), QUESTION)]
    inputs = qwen3vl_prompt.build_chat_inputs(processor, messages)
    assert_same(inputs, upstream("qwen3_vl", processor, [messages]))
    least, most = QWEN3_VL[limits]["videos"]
    assert least <= 2 * 16**2 * int(inputs["video_grid_thw"].prod()) <= most


@pytest.mark.parametrize("size", [(6000, 41), (41, 6000)])
def test_a_long_thin_picture_is_judged_by_its_true_sides(size):
    """146 to 1; to whole tokens rounded it is 214 to 1. Beside others, which are resized."""
    parts = [image(picture(1, size)), image(picture(2, (640, 480))), QUESTION]
    inputs = qwen2vl_prompt.build_chat_inputs(HUB, [user(*parts)])
    [thin, other] = inputs["image_grid_thw"].tolist()
    assert sorted(thin) == [1, 2, 428]
    alone = qwen2vl_prompt.build_chat_inputs(HUB, [user(*parts[1:])])
    assert torch.equal(inputs["pixel_values"][2 * 428 :], alone["pixel_values"])
    by_processor = HUB.image_processor([picture(1, size)], return_tensors="pt")
    # It resizes with another library's bicubic filter.
    found = inputs["pixel_values"][: 2 * 428]
    assert (found - by_processor["pixel_values"]).abs().mean() < 0.1
    frames = [user(video([picture(1, size)] * 2), QUESTION)]
    assert qwen2vl_prompt.build_chat_inputs(HUB, frames)["video_grid_thw"].tolist()


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (image(picture(1, (6000, 41)), max_pixels=100_000), "expected a max_pixels of at least"),
        (
            image(picture(1), max_pixels=784),
            "max_pixels=784: expected at least 3,136, or a smaller",
        ),
        (image(picture(1), min_pixels=9**9), "min_pixels=387420489: expected at most 12,845,056"),
        (image(picture(1), min_pixels=9**9, max_pixels=9**9), "would be enlarged to"),
        (image(picture(1), resized_height=1, resized_width=201), "found 201 to 1"),
        (video([picture(1)] * 2, min_pixels=9e9), "min_pixels=9000000000.0: expected at most"),
        (video([picture(1)] * 2, max_pixels=784), "max_pixels=784: expected at least 12,544"),
        (video([picture(1)] * 2, max_pixels=20_000), "max_pixels=20000: expected at least 100,352"),
    ],
)
def test_a_size_that_cannot_be_is_told(part, sentence):
    with pytest.raises(RequestError) as caught:
        qwen2vl_prompt.build_chat_inputs(HUB, [user(part, QUESTION)])
    assert sentence in str(caught.value)


def test_a_splinter_can_be_resized():
    splinter = Image.new("RGB", (1, 300), "white")
    messages = [user(image(splinter, resized_height=56, resized_width=84), QUESTION)]
    assert_same(
        qwen2vl_prompt.build_chat_inputs(HUB, messages), upstream("qwen2_vl", HUB, [messages])
    )
    # LLaVA has a size of its own, and takes no splinter.
    with pytest.raises(RequestError, match="1 x 300 pixels: expected sides within"):
        llava_prompt.build_chat_inputs(llava_processor(), messages)
    with pytest.raises(RequestError, match="1 x 300 pixels: expected sides within"):
        open_messages([user(image(splinter))])


def test_a_processor_that_does_not_resize():
    processor = hub_processor()
    processor.image_processor.do_resize = False
    processor.image_processor.size = {"shortest_edge": 784, "longest_edge": 784}
    messages = [user(image(picture(1)), QUESTION)]
    assert_same(
        qwen2vl_prompt.build_chat_inputs(processor, messages),
        upstream("qwen2_vl", processor, [messages]),
    )
