"""Each of the two answers goes on from what was answered in its own way."""

import pytest
from PIL import Image

from causalmm.app.conversation import CAUSALMM, PLAIN, Conversation, Turn
from causalmm.app.limits import Limits
from causalmm.errors import RequestError
from causalmm.inputs.messages import open_messages

LIMITS = Limits()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cup.png"
    Image.new("RGB", (30, 20), "red").save(path)
    return str(path)


def test_messages_hold_the_pictures_once_and_the_answers_of_one_way(picture):
    talk = Conversation(model="m", pictures=(picture, picture))
    talk = talk.said(Turn(question="color?", answers={PLAIN: "Blue", CAUSALMM: "Red"}))
    talk = talk.said(Turn(question="sure?", answers={PLAIN: "Yes", CAUSALMM: "No"}))
    shown = talk.opened(LIMITS)
    assert [part["image"].size for part in shown] == [(30, 20)] * 2
    for which, first, second in ((PLAIN, "Blue", "Yes"), (CAUSALMM, "Red", "No")):
        messages = talk.messages(which, "why?", shown)
        assert messages == open_messages(messages)
        assert [each["role"] for each in messages] == ["user", "assistant"] * 2 + ["user"]
        assert [each["content"][-1]["text"] for each in messages] == [
            "color?", first, "sure?", second, "why?",
        ]  # fmt: skip
        kinds = [[part["type"] for part in each["content"]] for each in messages]
        assert kinds == [["image", "image", "text"], *[["text"]] * 4]
    assert len(shown) == 2


@pytest.mark.parametrize(
    ("changed", "question", "sentence"),
    [
        ({}, " ", "the prompt is empty"),
        ({"pictures": ()}, "color?", "there is no picture: upload one, or pick an example"),
        ({"pictures": ("a",) * 3}, "color?", "3 pictures are too many: expected at most 2"),
        ({}, "x" * 11, "the question has 11 characters: expected at most 10"),
        (
            {"turns": (Turn(question="?", answers={}),)},
            "color?",
            "the conversation has 1 questions, the most it may have: start another one",
        ),
    ],
)
def test_a_question_out_of_bounds_is_refused(changed, question, sentence):
    talk = Conversation(**{"model": "m", "pictures": ("a",)} | changed)
    with pytest.raises(RequestError) as refused:
        talk.check(question, Limits(pictures=2, characters=10, turns=1))
    assert str(refused.value) == sentence


def test_a_question_within_bounds_may_be_asked():
    talk = Conversation(model="m", pictures=("a",))
    talk.check("x" * 10, Limits(pictures=1, characters=10, turns=1))


def test_a_video_is_cut_to_its_frames(tmp_path, picture):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(4):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48)))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    talk = Conversation(model="m", pictures=(picture,), video=str(path))
    first, second = talk.opened(Limits(frames=5))
    assert first["type"] == "image"
    assert second == {"type": "video", "video": path, "max_frames": 5}
    with pytest.raises(RequestError, match=r"^clip.mp4 is 64 x 48 pixels: expected at most 3,000"):
        talk.opened(Limits(pixels=3000))
