"""Pictures are found wherever a message says, on the network only if that is allowed."""

import base64
import contextlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from family_rows import FAMILIES
from test_inputs import (
    PROCESSOR,
    PROMPT,
    QUESTION,
    assert_same,
    frames,
    image,
    picture,
    user,
    video,
    write_video,
)
from tiny_checkpoints import save_checkpoint
from transformers import AutoProcessor

from causalmm import answer_questions
from causalmm.cli import generate
from causalmm.errors import RequestError
from causalmm.inputs import sources
from causalmm.inputs.messages import open_messages
from llava_causalmm import LlavaForConditionalGeneration


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a folder, 100%")
    picture(1).save(folder / "a b.PNG")
    write_video(folder / "a b.MOV", frames(4))
    return folder


class Server(BaseHTTPRequestHandler):
    """The files of a folder, and whatever can go wrong."""

    def do_GET(self):
        self.server.asked.append(self.path)
        name = self.path.strip("/")
        if name == "moved":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + (name == "cut")))
        self.end_headers()
        if name == "slow":
            self.server.patience.wait(5)
        with contextlib.suppress(OSError):  # a client that has heard enough
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    content, clip = ((folder / name).read_bytes() for name in ("a b.PNG", "a b.MOV"))
    server.files = dict.fromkeys(("a.png", "cut", "slow"), content) | {"a.mov": clip, "page": b"<"}
    server.asked, server.patience = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.patience.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def address(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    server.asked.clear()
    return f"http://127.0.0.1:{server.server_port}"


def opened(part, **options):
    [message] = open_messages([user(part)], **options)
    [part] = message["content"]
    return part


# Files


def test_every_form_of_a_picture_is_one_picture(folder):
    path = folder / "a b.PNG"
    for where in (str(path), path, f"file://{path}", path.as_uri(), f"FILE://localhost{path}"):
        for part in (
            {"type": "image", "image": where},
            {"type": "image", "path": where},
            {"type": "image", "url": where},
            {"type": "image", "image_url": where},
            {"type": "image_url", "image_url": where},
            {"type": "image_url", "image_url": {"url": where}},
            {"type": "image_url", "image_url": {"url": where, "detail": "auto"}},
            {"image_url": {"url": where}},
        ):
            assert opened(part) == image(picture(1))
    assert opened({"type": "image", "path": path, "max_pixels": 9})["max_pixels"] == 9


def test_every_form_of_a_video_is_one_video(folder):
    path = folder / "a b.MOV"
    for where in (str(path), path, f"file://{path}", path.as_uri()):
        for name in ("video", "path", "url"):
            assert opened({"type": "video", name: where}) == video(path)


def test_a_file_whose_name_has_a_per_cent_code_in_it(tmp_path):
    """As qwen_vl_utils takes a file:// address: to the letter, where there is such a file."""
    picture(1).save(tmp_path / "a%20b.png")
    assert opened(image(f"file://{tmp_path}/a%20b.png")) == image(picture(1))
    picture(2).save(tmp_path / "a b.png")
    assert opened(image(f"file://{tmp_path}/a%20b.png")) == image(picture(1))


@pytest.mark.parametrize("part", [image, video])
@pytest.mark.parametrize("source", ["", "a\0b.png", "\ud800.png", "file://\ud800"])
def test_what_names_no_file_is_refused(part, source):
    with pytest.raises(RequestError) as caught:
        open_messages([user(part(source))])
    assert "message 1, part 1: " in str(caught.value)
    assert "is not the name of a file" in str(caught.value)
    str(caught.value).encode()


def test_a_name_that_is_too_long_is_not_repeated():
    # Such as base64 without the words in front.
    for part in (image, video):
        with pytest.raises(RequestError, match=r"part 1: 'a{60}\.\.\.' is not the name of a file$"):
            open_messages([user(part("a" * 10_000))])


def test_what_may_not_be_looked_at_is_told(tmp_path, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.stat", refuse)  # by whoever runs the tests, who may be allowed it
    with pytest.raises(RequestError, match="a.mov cannot be read .Permission denied.$"):
        open_messages([user(video(tmp_path / "a.mov"))])


# data: addresses


def folded(text):
    return "\r\n ".join(text[start : start + 60] for start in range(0, len(text), 60))


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ("data:image/png;base64,", lambda text: text),
        ("data:image/png;base64,", folded),
        ("data:image/png;base64,\n", lambda text: f" {text}\t\n"),
        ("data:image/png;charset=utf-8;name=a,b.png;base64,", lambda text: text),
        ("DATA:IMAGE/PNG;BASE64,", lambda text: text),
        ("data:image/png;base64,", lambda text: text.rstrip("=")),
        ("data:image/png;base64,", lambda text: text + "=="),
        ("data:image/png;base64,", lambda text: text.replace("+", "%2B").replace("/", "%2F")),
    ],
)
@pytest.mark.parametrize("size", [(60, 40), (7, 5), (8, 5)])
def test_base64_in_any_dress(head, change, size):
    buffer = io.BytesIO()
    picture(3, size).save(buffer, "PNG")
    for padding in range(3):
        text = base64.b64encode(buffer.getvalue() + bytes(padding)).decode()
        assert opened(image(head + change(text))) == image(picture(3, size))


def test_a_video_as_base64(folder):
    content = (folder / "a b.MOV").read_bytes()
    part = opened(video("data:video/quicktime;base64," + base64.b64encode(content).decode()))
    assert part == video(content)
    inputs = [
        PROMPT["qwen2_vl"].build_chat_inputs(PROCESSOR["qwen2_vl"](), [user(each, QUESTION)])
        for each in (part, video(folder / "a b.MOV"))
    ]
    assert_same(*inputs)


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (image("data:image/png;base64,iVBO*Rw0"), "expected data:image/...;base64, and image data"),
        (image("data:image/png;base64,A"), "expected data:image/...;base64, and image data"),
        (image("data:image/svg+xml,<svg/>"), "expected data:image/...;base64, and image data"),
        (image("data:video/mp4;base64,aGk="), "expected data:image/...;base64, and image data"),
        (video("data:image/png;base64,aGk="), "expected data:video/...;base64, and video data"),
        (video("data:video/mp4;base64,aGk="), "message 1, part 1: the video is not a whole video"),
    ],
)
def test_what_is_no_base64_is_refused(part, sentence):
    with pytest.raises(RequestError) as caught:
        open_messages([user(part)])
    assert sentence in str(caught.value)


# The network


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_is_asked_only_if_allowed(address, server, family):
    build, processor = PROMPT[family].build_chat_inputs, PROCESSOR[family]()
    for url in (f"{address}/a.png", f"{address}/moved".replace("http", "HTTP")):
        messages = [user({"type": "image_url", "image_url": {"url": url}}, QUESTION)]
        with pytest.raises(RequestError, match="is not fetched.* or give --allow-network"):
            build(processor, messages)
        assert not server.asked
        mine = build(processor, messages, allow_network=True)
        assert_same(mine, build(processor, [user(image(picture(1)), QUESTION)]))
        assert server.asked.pop() == "/a.png"
        server.asked.clear()


def test_questions_about_a_picture_from_the_network(address, server, tmp_path):
    save_checkpoint("llava", tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    asked = (["what is this ?", "is this a banana ?"],)
    settings = {"max_new_tokens": 3, "do_sample": False}
    with pytest.raises(RequestError, match="is not fetched"):
        answer_questions(model, processor, f"{address}/a.png", *asked, **settings)
    assert not server.asked
    said = answer_questions(
        model, processor, f"{address}/a.png", *asked, allow_network=True, **settings
    )
    assert server.asked == ["/a.png"]
    assert said == answer_questions(model, processor, picture(1), *asked, **settings)


def test_a_video_from_the_network(address, folder):
    build, processor = PROMPT["qwen2_vl"].build_chat_inputs, PROCESSOR["qwen2_vl"]()
    messages = [user({"type": "video", "url": f"{address}/a.mov"}, QUESTION)]
    with pytest.raises(RequestError, match="is not fetched"):
        build(processor, messages)
    mine = build(processor, messages, allow_network=True)
    assert_same(mine, build(processor, [user(video(folder / "a b.MOV"), QUESTION)]))
    once = open_messages(messages, allow_network=True)
    assert open_messages(once) == once
    with pytest.raises(RequestError, match=f"^{address}/page is not a whole video"):
        open_messages([user(video(f"{address}/page"))], allow_network=True)
    listed = [user(video([f"{address}/a.png"] * 2))]
    with pytest.raises(RequestError, match="is not fetched"):
        open_messages(listed)
    assert open_messages(listed, allow_network=True) == [user(video([picture(1)] * 2))]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/missing", "cannot be fetched (Client error '404 Not Found'"),
        ("/cut", "cannot be fetched ("),
        ("/slow", "cannot be fetched ("),
        ("/page", "/page is not an image that Pillow can read"),
        ("/a.mov", "is larger than 2,000 bytes"),
    ],
)
def test_what_cannot_be_fetched_is_told(address, monkeypatch, name, sentence):
    monkeypatch.setattr(sources, "TIMEOUT", 0.3)
    monkeypatch.setattr(sources, "MAX_BYTES", 9_000 if name != "/a.mov" else 2_000)
    with pytest.raises(RequestError) as caught:
        open_messages([user(image(address + name))], allow_network=True)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("where", ["http://", "http://[", "http://.", "http://127.0.0.1:1/a.png"])
def test_an_address_that_leads_nowhere(monkeypatch, where):
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(RequestError, match="cannot be fetched"):
        open_messages([user(image(where))], allow_network=True)


def test_a_server_may_not_take_for_ever(address, monkeypatch):
    monkeypatch.setattr(sources, "MAX_SECONDS", -1)
    with pytest.raises(RequestError, match="takes more than"):
        open_messages([user(image(f"{address}/a.png"))], allow_network=True)


def test_the_command_asks_the_network_only_if_told_to(address, server, tmp_path, capfd):
    model = save_checkpoint("llava", tmp_path / "model")
    capfd.readouterr()
    picture(1).save(tmp_path / "a.png")
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps([user({"type": "image", "url": f"{address}/a.png"}, QUESTION)]))

    def run(*given):
        flags = (*given, "--model", model, "--max-new-tokens", 3)
        return generate.main([str(each) for each in flags]), *capfd.readouterr()

    prompt = ("--prompt", QUESTION["text"])
    expected = run("--image", tmp_path / "a.png", *prompt)
    assert expected[0] == 0
    for given in (("--image", f"{address}/a.png", *prompt), ("--messages", messages)):
        code, out, err = run(*given)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert f"{address}/a.png is not fetched: download it first, or give --allow-network" in err
        assert not server.asked
        assert run(*given, "--allow-network") == expected
        assert server.asked.pop()
