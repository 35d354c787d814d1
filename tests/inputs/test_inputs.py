"""Images, videos and conversations become the inputs that upstream makes of them, or a sentence."""

import base64
import io
import json
import re
import sys
import wave
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from dense_branches import attach
from equivalence import check
from family_rows import FAMILIES, row_of
from PIL import Image
from qwen_vl_utils import fetch_video, process_vision_info
from qwen_vl_utils import vision_process as rules
from tiny_llava import llava_processor
from tiny_models import PICTURES, model_pair
from tiny_qwen2_vl import qwen2vl_processor
from torchvision.transforms import InterpolationMode
from transformers.image_utils import SizeDict

from causalmm import CausalMMConfig
from causalmm.counterfactual.methods import VISION_CHOICES, VISION_METHODS
from causalmm.errors import FailureError, RequestError
from causalmm.families.registry import find
from causalmm.inputs.images import open_image
from causalmm.inputs.messages import MAX_FRAMES, open_messages, read_messages
from causalmm.inputs.prompts import to_model
from causalmm.inputs.video import decode
from llava_causalmm import prompt as llava_prompt
from qwen2vl_causalmm import prompt as qwen2vl_prompt
from qwen2vl_causalmm.video import read_video

PROMPT = {family: find(family).prompts() for family in FAMILIES}
VIDEO = [family for family in FAMILIES if "video" in find(family).media]


def hub_processor():
    """Of Qwen2-VL, with the limits of the checkpoints on the hub."""
    return qwen2vl_processor(min_pixels=56 * 56, max_pixels=28 * 28 * 16384, patch_size=14)


PROCESSOR = {family: row_of(family).processor for family in FAMILIES} | {"qwen2_vl": hub_processor}
QUESTION = {"type": "text", "text": "what is this ?"}


def picture(seed, size=(60, 40), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def frames(count, size=(112, 112)):
    return [picture(seed, size) for seed in range(count)]


def user(*parts):
    return {"role": "user", "content": [*parts]}


def image(source, **settings):
    return {"type": "image", "image": source, **settings}


def video(source, **settings):
    return {"type": "video", "video": source, **settings}


def write_video(path, images, codec="png", pixels="rgb24", rate=2, rotation=0):
    """A video file; its default codec loses nothing. `rotation`: to be shown in, degrees."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = pixels
        if rotation:
            stream.set_display_rotation(rotation)
        for each in images:
            container.mux(stream.encode(av.VideoFrame.from_image(each)))
        container.mux(stream.encode())
    return path


def assert_same(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(mine[name], value), name


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def processor(family):
    return PROCESSOR[family]()


@pytest.fixture(scope="module")
def hub():
    return hub_processor()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same picture as a file of several kinds, and a conversation that holds it in each."""
    folder = tmp_path_factory.mktemp("inputs")
    picture(1).save(folder / "a.png")
    picture(2, (90, 30)).save(folder / "b.png")
    return folder


# Upstream's inputs


def upstream(family, processor, conversations):
    """What the model cards do."""
    texts = [
        processor.apply_chat_template(each, tokenize=False, add_generation_prompt=True)
        for each in conversations
    ]
    if "video" not in find(family).media:
        shown = [part for each in conversations for message in each for part in message["content"]]
        pictures = {"images": [part["image"] for part in shown if part["type"] == "image"]}
    else:
        images, videos, settings = process_vision_info(
            conversations,
            return_video_kwargs=True,
            return_video_metadata=True,
            image_patch_size=processor.image_processor.patch_size,
        )
        pictures = {"images": images} | settings
        if videos:
            pictures["videos"], pictures["video_metadata"] = zip(*videos, strict=True)
            pictures["video_metadata"] = list(pictures["video_metadata"])
    return processor(text=texts, **pictures, padding=True, return_tensors="pt")


def encoded(path):
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_pixels": 100 * 28 * 28},
        {"max_pixels": 4 * 28 * 28},
        {"min_pixels": 8 * 28 * 28, "max_pixels": 12 * 28 * 28},
        {"resized_height": 80, "resized_width": 200},
    ],
)
def test_messages_give_what_qwen_vl_utils_gives(hub, folder, settings):
    path = folder / "a.png"
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "is this a banana"}]},
        user(image(str(path), **settings), image(f"file://{path}"), QUESTION),
        {"role": "assistant", "content": [{"type": "text", "text": "a banana"}]},
        user(image(encoded(path), **settings), image(picture(3, (300, 200)), **settings), QUESTION),
    ]
    assert_same(
        qwen2vl_prompt.build_chat_inputs(hub, messages), upstream("qwen2_vl", hub, [messages])
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_pixels": 200 * 28 * 28},
        {"min_pixels": 16 * 28 * 28, "total_pixels": 80 * 28 * 28},
        {"resized_height": 80, "resized_width": 200},
        {"sample_fps": 1.5},
        {"sample_fps": 3, "raw_fps": 30},
    ],
)
@pytest.mark.parametrize("family", VIDEO)
def test_a_list_of_frames_gives_what_qwen_vl_utils_gives(family, settings):
    processor = PROCESSOR[family]()
    images = frames(5, (90, 70))
    messages = [user(video(images, **settings), image(images[0]), QUESTION)]
    mine = PROMPT[family].build_chat_inputs(processor, messages)
    assert mine["video_grid_thw"][0, 0] == 3
    assert_same(mine, upstream(family, processor, [messages]))


def test_a_file_and_a_folder_are_lists_of_frames(hub, tmp_path):
    # Sizes that qwen_vl_utils, which resizes listed frames twice, leaves alone the first time.
    images = frames(12)
    listed = qwen2vl_prompt.build_chat_inputs(hub, [user(video(images), QUESTION)])
    for number, each in enumerate(images):
        # By any name, if it is a picture.
        each.save(tmp_path / f"frame{number}{('.png', '.PNG', '', '.dat')[number % 4]}", "PNG")
    for name in (".hidden.png", "Thumbs.db", "notes.txt"):
        (tmp_path / name).write_bytes(b"no picture")
    mine = qwen2vl_prompt.build_chat_inputs(hub, [user(video(str(tmp_path)), QUESTION)])
    assert_same(mine, listed)
    # Two frames a second, of which qwen_vl_utils takes two.
    for name, codec in (("all.mov", ("png", "rgb24")), ("all.MKV", ("ffv1", "bgr0"))):
        path = write_video(tmp_path / name, images, *codec)
        for source in (str(path), f"file://{path}"):
            mine = qwen2vl_prompt.build_chat_inputs(hub, [user(video(source), QUESTION)])
            assert_same(mine, listed)


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({}, [0, 2, 4, 7, 9, 11]),
        ({"fps": 4}, range(12)),
        ({"nframes": 2}, [0, 11]),
        ({"max_frames": 4}, [0, 4, 7, 11]),
        ({"video_start": 1, "video_end": 2, "nframes": 2}, [4, 8]),
    ],
)
def test_which_frames_are_taken(tmp_path, settings, taken):
    images = frames(12)
    path = write_video(tmp_path / "a.mov", images, rate=4)
    part = {"video": path, "resized_height": 112, "resized_width": 112, **settings}
    expected = np.stack([np.asarray(images[number]) for number in taken]).transpose(0, 3, 1, 2)
    assert torch.equal(read_video(part, 14).pixels, torch.from_numpy(expected).float())


class Reader:
    """In the place of decord's: the 12 frames of the file at 4 a second."""

    def __init__(self, path):
        assert path.endswith("a.mov")

    def __len__(self):
        return 12

    def get_avg_fps(self):
        return 4.0

    def get_batch(self, indices):
        chosen = np.stack([np.asarray(frames(12)[index]) for index in indices])
        return SimpleNamespace(asnumpy=lambda: chosen)


@pytest.mark.parametrize("family", VIDEO)
def test_the_times_of_frames_reach_the_processor(family, tmp_path, monkeypatch):
    """Of several videos in a batch: files of which frames are chosen, and lists."""
    monkeypatch.setitem(sys.modules, "decord", SimpleNamespace(VideoReader=Reader))
    monkeypatch.setattr(rules, "get_video_reader_backend", lambda: "decord")
    processor = PROCESSOR[family]()
    path = str(write_video(tmp_path / "a.mov", frames(12), rate=4))
    excerpt = {"video_start": 0.5, "video_end": 2.5, "nframes": 4}
    conversations = [
        [user(video(path), QUESTION)],
        [user(video(path, fps=4), video(frames(3), sample_fps=0.5), QUESTION)],
        [user(video(frames(4)), video(path, **excerpt), QUESTION)],
    ]
    prepared = [PROMPT[family].prepare(processor, each) for each in conversations]
    mine = PROMPT[family].join(processor, prepared)
    assert_same(mine, upstream(family, processor, conversations))
    if "second_per_grid_ts" in mine:
        # Two frames a step, at 2, 4, 0.5, 2 and 4 x 4/9 a second.
        assert mine["second_per_grid_ts"].tolist() == pytest.approx([1, 0.5, 4, 1, 1.125])


@pytest.mark.parametrize("family", VIDEO)
def test_only_pixels_take_the_dtype_of_the_model(family):
    processor, model = PROCESSOR[family](), SimpleNamespace(device="cpu", dtype=torch.bfloat16)
    messages = [user(image(picture(1)), video(frames(4), sample_fps=3), QUESTION)]
    inputs = PROMPT[family].build_chat_inputs(processor, messages)
    for name, part in to_model(inputs, model).items():
        if name in ("pixel_values", "pixel_values_videos"):
            assert part.dtype == torch.bfloat16
        else:
            assert part.dtype == inputs[name].dtype
            assert torch.equal(part, inputs[name])


def test_qwen3_vl_writes_the_times_into_the_prompt(tmp_path, monkeypatch):
    """Of the middle of each two frames. The tiny tokenizer has no words for them."""
    processor = PROCESSOR["qwen3_vl"]()
    path = str(write_video(tmp_path / "a.mov", frames(12), rate=4))
    shown = [video(path), video(frames(3), sample_fps=0.5), video(frames(4))]
    prepared = PROMPT["qwen3_vl"].prepare(processor, [user(*shown, QUESTION)])
    written, write = [], processor.replace_video_token

    def replace_video_token(*args, **settings):
        written.append(write(*args, **settings))
        return written[-1]

    monkeypatch.setattr(processor, "replace_video_token", replace_video_token)
    PROMPT["qwen3_vl"].join(processor, [prepared])
    times = re.findall(r"<([0-9.]+) seconds><\|vision_start\|>", "".join(written))
    # Frames 0, 2, 4, 7, 9 and 11 of the file; the third listed frame stands for a fourth.
    assert times == [f"{time:.1f}" for time in (0.25, 1.375, 2.5, 1, 5, 0.25, 1.25)]


@pytest.mark.parametrize("family", VIDEO)
def test_fps_of_listed_frames_is_their_rate(family):
    """The older name, which model cards use; what chooses frames of a file has no other meaning."""
    processor = PROCESSOR[family]()
    mine, theirs = (
        PROMPT[family].build_chat_inputs(processor, [user(video(frames(4), **rate), QUESTION)])
        for rate in ({"fps": 1}, {"sample_fps": 1})
    )
    assert_same(mine, theirs)
    if "second_per_grid_ts" in mine:
        assert mine["second_per_grid_ts"].tolist() == [2]


@pytest.mark.parametrize("size", [(150, 90), (900, 20), (900, 800)])
def test_frames_of_a_file_have_the_size_transformers_gives_them(hub, tmp_path, size):
    images = frames(4, size)
    found = read_video({"video": write_video(tmp_path / "a.mov", images)}, 14).pixels
    stacked = torch.from_numpy(np.stack([np.asarray(each) for each in images]))
    expected = hub.video_processor.resize(
        stacked.permute(0, 3, 1, 2)[None],
        size=SizeDict(shortest_edge=128 * 28 * 28, longest_edge=768 * 28 * 28),
        resample=InterpolationMode.BICUBIC,
        factor=28,
        cap_pixels_per_frame=True,
    )
    assert found.shape == expected[0].shape


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9")])
def test_frames_of_a_file_are_those_that_decord_reads(tmp_path, name, codec):
    pytest.importorskip("decord", reason="a decoder of qwen_vl_utils to compare with")
    path = write_video(tmp_path / name, frames(12, (90, 62)), codec, "yuv420p", rate=4)
    for settings in ({}, {"fps": 4}, {"video_start": 1.0, "video_end": 2.0, "max_pixels": 150_000}):
        theirs = fetch_video({"video": str(path), **settings})
        assert torch.equal(read_video({"video": path, **settings}, 14).pixels, theirs)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_any_mode_in_one_prompt(family, processor, mode):
    images = [picture(1), picture(2, (30, 90), mode), picture(3, (7, 5))]
    mine, theirs = (
        [user(*map(image, each), QUESTION)]
        for each in (images, [open_image(one) for one in images])
    )
    assert_same(
        PROMPT[family].build_chat_inputs(processor, mine), upstream(family, processor, [theirs])
    )


def test_one_turn_is_a_conversation(family, processor):
    images = [picture(1), picture(2)]
    messages = [user(*map(image, images), QUESTION)]
    mine = PROMPT[family].build_inputs(processor, images, QUESTION["text"])
    assert_same(mine, PROMPT[family].build_chat_inputs(processor, messages))


def test_several_turns_follow_the_chat_template(family, processor):
    messages = [
        user(image(picture(1)), QUESTION),
        {"role": "assistant", "content": "a banana"},
        {"role": "user", "content": "is it there ?"},
    ]
    inputs = PROMPT[family].build_chat_inputs(processor, messages)
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.endswith(row_of(family).answered)


def test_llava_has_its_own_sizes():
    processor = llava_processor()
    sized = [user(image(picture(1), max_pixels=28 * 28, min_pixels=1), QUESTION)]
    assert_same(
        llava_prompt.build_chat_inputs(processor, sized),
        llava_prompt.build_inputs(processor, [picture(1)], QUESTION["text"]),
    )


def test_opening_twice_changes_nothing(hub, tmp_path):
    path = write_video(tmp_path / "a.mov", frames(4))
    messages = [user(video(str(path)), video(frames(2)), image(picture(1, mode="P")), QUESTION)]
    once = open_messages(messages)
    assert open_messages(once) == once


def test_joined_conversations_are_what_the_processor_pads(family, processor):
    conversations = [
        [user(image(picture(1)), QUESTION)],
        [user(image(picture(2, (90, 30))), image(picture(3)), QUESTION), *2 * [user(QUESTION)]],
    ]
    prepared = [PROMPT[family].prepare(processor, each) for each in conversations]
    mine = PROMPT[family].join(processor, prepared)
    theirs = upstream(family, processor, conversations)
    assert_same(mine, theirs)
    assert mine["attention_mask"][0, 0] == 0
    # By call: the tokenizer keeps the side it has.
    other = PROCESSOR[family]()
    other.tokenizer.padding_side = "right"
    assert_same(PROMPT[family].join(other, prepared), theirs)
    assert other.tokenizer.padding_side == "right"
    other.tokenizer.pad_token = None
    with pytest.raises(FailureError, match="no padding token"):
        PROMPT[family].join(other, prepared)
    PROMPT[family].join(other, prepared[:1])


# Counterfactual vision attention stays within an image and a frame


@pytest.mark.parametrize("method", VISION_CHOICES)
def test_an_image_is_encoded_as_if_it_were_alone(family, method):
    processor = row_of(family).processor()
    model = model_pair(family, "sdpa")[0]
    config = CausalMMConfig(mode="vision", vision_method=method, vision_layers="all")
    plan = model.causalmm_plan(config)

    def encoded_images(images):
        inputs = PROMPT[family].build_inputs(processor, images, "what ?")
        pictures = {name: inputs[name] for name in PICTURES if name in inputs}
        with torch.no_grad():
            output = model.model.get_image_features(**pictures, causalmm=plan)
        return output.pooler_output

    images = [picture(1), picture(2, (40, 60)), picture(3)]
    together = encoded_images(images)
    for each, features in zip(images, together, strict=True):
        torch.testing.assert_close(features, encoded_images([each])[0], atol=1e-5, rtol=1e-5)
        factual, edited = features.chunk(2, dim=-1)
        assert not torch.allclose(factual, edited, atol=1e-2)


@pytest.mark.parametrize("family", VIDEO)
@pytest.mark.parametrize("method", VISION_METHODS)
def test_a_frame_is_encoded_as_if_it_were_alone(family, method):
    processor, model = row_of(family).processor(), model_pair(family, "sdpa")[0]
    # By Qwen3-VL's a frame is the smaller, the more there are.
    processor.video_processor.do_resize = False
    config = CausalMMConfig(mode="vision", vision_method=method, vision_layers="all")
    plan = model.causalmm_plan(config)
    images = frames(6)

    def encoded_frames(shown):
        inputs = PROMPT[family].build_chat_inputs(processor, [user(video(shown), QUESTION)])
        given = inputs["pixel_values_videos"], inputs["video_grid_thw"]
        with torch.no_grad():
            [features] = model.model.get_video_features(*given, causalmm=plan).pooler_output
        return features.tensor_split(int(given[1][0, 0]))

    # The encoder takes two pictures at a time for one frame.
    whole = encoded_frames(images)
    assert len(whole) == 3
    for index, frame in enumerate(whole):
        [alone] = encoded_frames(images[2 * index : 2 * index + 2])
        torch.testing.assert_close(frame, alone, atol=1e-5, rtol=1e-5)
    changed = encoded_frames([*images[:3], picture(9, images[0].size), *images[4:]])
    same = [torch.equal(one, other) for one, other in zip(whole, changed, strict=True)]
    assert same == [True, False, True]


@pytest.mark.parametrize("family", VIDEO)
@pytest.mark.parametrize("method", ["random", "noise"])
@pytest.mark.parametrize("mode", ["vision", "multimodal", "joint"])
def test_images_and_a_video_equal_separate_runs(family, mode, method):
    ours, other = model_pair(family, "sdpa")
    shown = video(frames(4), sample_fps=3)
    messages = [user(image(picture(1)), shown, image(picture(2, (40, 60))), QUESTION)]
    inputs = PROMPT[family].build_chat_inputs(row_of(family).processor(), messages)
    config = CausalMMConfig(mode=mode, vision_method=method, vision_layers="all", epsilon=0, seed=3)
    check((ours, other, attach(other, family)), [dict(inputs)], config)


# Refusals


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "no list of messages"),
        ("what?", "no list of messages"),
        ({"role": "user"}, "no list of messages"),
        ([{"content": "what?"}], "message 1: expected an object with a role"),
        ([user(QUESTION), {"role": "robot", "content": "x"}], "message 2: expected an object"),
        ([{"role": "user"}], "message 1: expected a content"),
        ([user()], "message 1: expected a content"),
        ([user("what?")], "message 1, part 1: expected an object with a type"),
        ([user({"type": "audio", "audio": "a.wav"})], "a type of text, image or video"),
        ([user({"type": "image", "url": "a.png"})], "no image file at a.png"),
        ([user({"type": "image", "path": "a.png", "url": "a.png"})], "unknown 'url' beside its"),
        ([user({"type": "image"})], "a type of text, image or video"),
        ([user({"type": ["image"], "image": "a.png"})], "a type of text, image or video"),
        ([user({"type": "image_url", "image_url": {"uri": "a.png"}})], "an image_url with a url"),
        ([user({"type": "image_url", "image_url": {"url": "a", "x": 1}})], "nothing but a detail"),
        (
            [user({"type": "image_url", "image_url": {"url": "a", "detail": "low"}})],
            "expected auto",
        ),
        ([user({"type": "video", "path": "a.mp4"})], "no video file or folder of frames at a.mp4"),
        ([user({"type": "text", "text": 1})], "text=1: expected text"),
        ([user(QUESTION), {"role": "assistant", "content": "x"}], "the last message is the"),
        ([user(image("missing.png"))], "no image file at missing.png"),
        ([user(image("https://x/a.png"))], "https://x/a.png is not fetched: download it"),
        ([user(image("data:image/png;base64,%%"))], "expected data:image/...;base64"),
        ([user(image("data:text/plain;base64,aGk="))], "expected data:image/...;base64"),
        ([user(image("data:image/png;base64,aGk="))], "message 1, part 1: the image is not an"),
        ([user(image(7))], "expected an image, found int"),
        ([user(image(picture(1), max_pixel=9))], "unknown 'max_pixel' beside its image"),
        ([user(image(picture(1), text="hello"))], "unknown 'text' beside its image"),
        ([user(image(picture(1), max_pixels="9"))], "max_pixels='9': expected a number > 0"),
        (
            [user(image(picture(1), max_pixels=10**5000))],
            "max_pixels is too large: expected",
        ),
        ([user(video([picture(1)], total_pixels=1e300))], "total_pixels is too large: expected"),
        ([user(image(picture(1), max_pixels=0))], "max_pixels=0: expected a number > 0"),
        ([user(image(picture(1), resized_width=9))], "go together"),
        ([user(image(picture(1), min_pixels=9, max_pixels=8))], "min_pixels is more than"),
        ([user(video("missing.mp4"))], "no video file or folder of frames at missing.mp4"),
        ([user(video([]))], "expected a video file, a folder of frames"),
        ([user(video([picture(1)] * (MAX_FRAMES + 1)))], f"at most {MAX_FRAMES}"),
        ([user(video([picture(1), picture(1, (9, 9))]))], "of one size, these are 60 x 40 and 9 x"),
        ([user(video([picture(1)], sample_fps=0))], "sample_fps=0: expected a number > 0"),
        ([user(video([picture(1)], fps=-2))], "fps=-2: expected a number > 0"),
        ([user(video([picture(1)], sample_fps="fast"))], "sample_fps='fast': expected a number"),
        ([user(video([picture(1)] * 2, fps=1, nframes=2))], "fps and nframes exclude each other"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, sentence):
    with pytest.raises(RequestError) as caught:
        open_messages(messages)
    assert sentence in str(caught.value)


def test_a_file_of_messages_is_read_or_refused(folder, tmp_path):
    path = tmp_path / "messages.json"
    with pytest.raises(RequestError, match=r"messages.json cannot be read \("):
        read_messages(path)
    refused = {
        b"{": "messages.json is not JSON",
        b"[" * 100_000: "messages.json is not JSON",
        b'[{"role": "user", "role": "user", "content": "a"}]': "'role' is there twice",
        b"\xff": r"messages.json is not text in UTF-8 \(byte 0 is 0xff\)$",
    }
    for text, sentence in refused.items():
        path.write_bytes(text)
        with pytest.raises(RequestError, match=sentence):
            read_messages(path)
    path.write_text(json.dumps([user(image(str(folder / "a.png")), QUESTION)]))
    [message] = read_messages(path)
    assert message["content"] == [image(picture(1)), QUESTION]


def test_what_is_no_video_is_refused(tmp_path, monkeypatch):
    whole = write_video(tmp_path / "whole.mov", frames(4)).read_bytes()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    for name, content, sentence in (
        ("empty.MP4", b"", "is not a whole video"),
        ("text.mp4", b"a film, honestly", "is not a whole video"),
        ("half.mov", whole[: len(whole) // 2], "is not a whole video"),
        ("sound.wav", None, "holds no video"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(RequestError, match=sentence):
            open_messages([user(video(tmp_path / name))])
    (tmp_path / "none").mkdir()
    with pytest.raises(RequestError, match="none holds no frames$"):
        open_messages([user(video(tmp_path / "none"))])
    for name in ("Thumbs.db", "notes.txt", ".hidden.png"):
        (tmp_path / "none" / name).write_bytes(b"no picture")
    with pytest.raises(RequestError, match="holds no frames: none of its 2 files is a picture"):
        open_messages([user(video(tmp_path / "none"))])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RequestError, match="decoded by the package av"):
        open_messages([user(video(tmp_path / "whole.mov"))])
    open_messages([user(video(frames(2)))])


def test_a_video_file_of_one_frame_is_that_frame_twice(hub, tmp_path):
    """As a folder of one is: the encoder takes two pictures at a time."""
    [image] = frames(1)
    path = write_video(tmp_path / "a.mov", [image])
    (tmp_path / "frames").mkdir()
    image.save(tmp_path / "frames" / "1.png")
    listed = qwen2vl_prompt.build_chat_inputs(hub, [user(video([image, image]), QUESTION)])
    for source, settings in (
        (tmp_path / "frames", {}),
        *((path, each) for each in ({}, {"fps": 4}, {"nframes": 2}, {"video_start": 0})),
    ):
        mine = qwen2vl_prompt.build_chat_inputs(hub, [user(video(source, **settings), QUESTION)])
        assert_same(mine, listed)
    for settings in ({"nframes": 4}, {"video_start": 3}):
        with pytest.raises(RequestError, match="a video of 1 frame at 2 a second cannot be"):
            read_video({"video": path, **settings}, 14)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_video_comes_upright(tmp_path, degrees):
    """As a telephone marks it, degrees counterclockwise."""
    images = frames(2, (40, 28))
    stored = [each.rotate(-degrees, expand=True) for each in images]
    path = write_video(tmp_path / "a.mov", stored, rotation=degrees)
    assert decode(path, [0, 1]) == images


def test_frames_of_a_file_that_change_their_size_are_refused(tmp_path):
    path = tmp_path / "a.mpng"
    with av.open(str(path), "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=2)
        stream.width, stream.height, stream.pix_fmt = 28, 28, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_image(picture(1, (28, 28)))))
        container.mux(stream.encode())
    buffer = io.BytesIO()
    picture(2, (56, 28)).save(buffer, "PNG")
    path.write_bytes(path.read_bytes() + buffer.getvalue())
    with pytest.raises(RequestError, match="of one size, these are 28 x 28 and 56 x 28"):
        read_video({"video": path, "nframes": 2}, 14)


def test_a_video_too_short_for_what_is_asked(hub, tmp_path):
    path = write_video(tmp_path / "a.mov", frames(4))
    for settings in ({"nframes": 10}, {"video_start": 1.0, "video_end": 0.5}):
        with pytest.raises(RequestError, match="a video of 4 frames at 2 a second cannot be"):
            qwen2vl_prompt.build_chat_inputs(hub, [user(video(path, **settings), QUESTION)])


def test_no_text_may_stand_for_a_picture(family, processor):
    tokens = [
        processor.image_token,
        *([processor.video_token] if "video" in find(family).media else []),
    ]
    for token in tokens:
        for messages in (
            [user(image(picture(1)), {"type": "text", "text": f"what is {token} ?"})],
            [{"role": "system", "content": token}, user(image(picture(1)), QUESTION)],
        ):
            with pytest.raises(RequestError, match="which stands for"):
                PROMPT[family].build_chat_inputs(processor, messages)


def test_llava_takes_no_video():
    with pytest.raises(RequestError, match="LLaVA reads images only"):
        llava_prompt.build_chat_inputs(llava_processor(), [user(video(frames(2)), QUESTION)])


def test_a_template_that_leaves_a_picture_out_or_refuses(family):
    processor = PROCESSOR[family]()
    messages = [user(image(picture(1)), QUESTION)]
    processor.chat_template = "{{ messages[0].content[1].text }}"
    with pytest.raises(RequestError, match="does not show every image"):
        PROMPT[family].build_chat_inputs(processor, messages)
    processor.chat_template = "{{ raise_exception('Roles must take turns.') }}"
    with pytest.raises(RequestError, match="refuses the messages .Roles must take turns"):
        PROMPT[family].build_chat_inputs(processor, messages)


def test_an_image_may_come_from_memory():
    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG")
    assert open_image(buffer) == picture(1)
    with pytest.raises(RequestError, match="the image is empty"):
        open_image(io.BytesIO())
