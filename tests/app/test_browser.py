"""The page as a person uses it, in chromium; what it answers is what `causalmm generate` answers.

Skipped where chromium is not installed, unless REQUIRE_BROWSER is set, as .ci/run does.
"""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import pytest
from PIL import Image

from causalmm.cli import generate
from causalmm.families import checkpoints
from causalmm.figures.flags import CANDIDATES

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
MUSHROOM, COLOR = EXAMPLES / "llava_300041_helped.png", "What color is the mushroom?"
BOAT, THERE = EXAMPLES / "llava_100024_helped.png", "Is there a boat in the image?"
DESCRIBE = "Describe the image."
WAIT = 20_000  # milliseconds, for what takes a second
LLAVA, QWEN = "demo-llava", "demo-qwen2vl"
PICTURE_BYTES = 300_000

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A demonstration model whose answers have no end but that of max_new_tokens."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    shutil.copytree(checkpoints.resolve(LLAVA), folder)
    settings = json.loads((folder / "generation_config.json").read_text("utf-8"))
    settings["eos_token_id"] = 0
    (folder / "generation_config.json").write_text(json.dumps(settings), "utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def outside():
    """A proxy that every request of the server to elsewhere would go to, and those that came."""
    came = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                came.append(connection.recv(200))
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", came


def heed_interrupts():
    """In a process that begins: a shell's background jobs, these tests perhaps, ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def address(endless, outside, tmp_path_factory):
    """Of a page that is served as a user serves it."""
    log = tmp_path_factory.mktemp("server") / "log"
    proxies = {f"{name}_PROXY": outside[0] for name in ("HTTP", "HTTPS", "ALL")}
    environment = {**os.environ, **proxies, "PYTHONPATH": str(ROOT)}
    environment |= {name.lower(): value for name, value in proxies.items()}
    command = [
        *(sys.executable, "-m", "causalmm", "app", "--port", "0"),
        *("--model", LLAVA, "--model", QWEN, "--model", endless),
        *("--max-answer-tokens", "100000", "--queue", "1"),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, cwd=log.parent,
            preexec_fn=heed_interrupts,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield found[0]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            finally:
                process.kill()
                process.wait()
    assert process.returncode == 130
    said = log.read_text()
    assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if path is None:
        told = "chromium is not installed: apt-get install chromium"
        (pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip)(told)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def context(browser):
    """What pages share, as the windows of one person's browser do."""
    made = browser.new_context(viewport={"width": 1200, "height": 1000})
    made.set_default_timeout(WAIT)
    return made


@pytest.fixture
def opened(browser, context, address, outside):
    """Opens pages; none of them may ask for anything elsewhere or meet an error of a script.

    A window's pages together have few connections to a server, of which each page keeps two.
    """
    pages, asked, errors = [], [], []

    def open_page(*, apart=False, **size):
        page = browser.new_page() if apart else context.new_page()
        pages.append(page)
        if size:
            page.set_viewport_size(size)
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.locator("#ask").wait_for()
        return Driver(page)

    yield open_page
    for page in pages:
        page.close()
    assert asked
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not outside[1]
    assert not errors


@pytest.fixture
def driver(opened):
    return opened()


class Driver:
    """What a person does on the page, and sees."""

    def __init__(self, page):
        self.page = page

    def expect(self, selector):
        from playwright.sync_api import expect

        expect.set_options(timeout=WAIT)
        return expect(self.page.locator(selector))

    def upload(self, *files):
        self.page.locator("#pictures input[type=file]").first.set_input_files(
            [str(each) for each in files]
        )
        self.expect("#pictures .thumbnail-lg, #pictures .thumbnail-item").to_have_count(len(files))

    def choose(self, setting, label):
        self.page.locator(f"#{setting} input").click()
        self.page.get_by_role("option", name=label, exact=True).click()

    def settings(self, **values):
        self.page.locator("#settings > button").click()
        self.expect("#setting-seed textarea, #setting-seed input").to_have_value("0")
        for name, value in values.items():
            self.page.locator(f"#setting-{name}").locator("input, textarea").first.fill(value)

    def press(self, button, question=None):
        if question is not None:
            self.page.locator("#question textarea").fill(question)
        self.page.locator(f"#{button}").click()

    def ask(self, question=None, button="ask"):
        """Both answers, once they are whole."""
        before = self.page.locator("#tokens").inner_html()
        self.press(button, question)
        self.page.wait_for_function(
            "before => document.querySelector('#tokens').innerHTML !== before", arg=before
        )
        self.expect("#status").to_contain_text("Both answers are whole.")
        return self.answers()

    def answers(self):
        said = []
        for which in ("plain", "causalmm"):
            last = self.page.locator(f"#answer-{which} [data-testid=bot]").last
            said.append(last.inner_text().strip())
        return tuple(said)

    def error(self):
        return self.page.locator("#error [role=alert]").inner_text()


@pytest.fixture
def command(capsys):
    """Both answers of `causalmm generate --compare`."""

    def ask(*flags):
        capsys.readouterr()
        assert generate.main([*map(str, flags), "--compare"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return tuple(line[10:].strip() for line in lines)

    return ask


def test_both_answers_are_those_of_the_command(driver, command):
    driver.page.locator("#examples .gallery-item").first.click()
    driver.expect("#question textarea").to_have_value(COLOR)
    driver.expect("#pictures .thumbnail-lg").to_have_count(1)
    answers = driver.ask()
    assert answers == command("--image", MUSHROOM, "--prompt", COLOR)
    assert answers == ("Brown", "Purple")
    changed = driver.page.locator("#tokens .cm-changed")
    assert changed.locator("del").inner_text() == "Brown"
    assert changed.locator("ins").inner_text() == "Purple"


def test_every_token_shows_its_probabilities_when_pointed_at(driver, command, capsys):
    driver.upload(MUSHROOM)
    driver.ask(DESCRIBE)
    capsys.readouterr()
    assert generate.main(["--image", str(MUSHROOM), "--prompt", DESCRIBE, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["tokens"]
    tokens = driver.page.locator("#tokens .cm-token")
    assert tokens.count() == len(expected) > 5
    for number in (0, len(expected) - 1):
        tokens.nth(number).hover()
        card = tokens.nth(number).locator(".cm-card")
        assert card.is_visible()
        assert driver.page.locator(".cm-card:visible").count() == 1
        assert 1 <= card.locator("tbody tr").count() <= CANDIDATES
        cells = card.locator(".cm-chosen td").all_inner_texts()
        wanted = [f"{100 * expected[number][name]:.1f}%" for name in ("factual", "adjusted")]
        assert [cells[0], cells[-1]] == wanted
        assert len(cells) == 3  # and the language branch's


def test_a_changed_setting_and_a_preset_give_other_answers(driver, command):
    driver.upload(MUSHROOM)
    driver.settings()
    shown = ("--image", MUSHROOM, "--prompt", COLOR)
    # Open controls send what they show.
    assert driver.ask(COLOR) == command(*shown) == ("Brown", "Purple")
    driver.page.locator("#setting-gamma textarea, #setting-gamma input").fill("0")
    assert driver.ask() == command(*shown, "--gamma", "0") == ("Brown", "Brown")
    driver.choose("preset", "vcd")
    driver.expect("#setting-mode input").to_have_value("vision")
    answers = driver.ask(DESCRIBE)
    assert answers == command("--image", MUSHROOM, "--prompt", DESCRIBE, "--preset", "vcd")
    driver.page.locator("#setting-language_layers").locator("input, textarea").fill("1:2")
    driver.press("ask")
    driver.expect("#error").to_contain_text("language_layers='1:2': preset 'vcd' has None")


def test_what_is_wrong_is_told_in_a_sentence(driver, tmp_path):
    driver.press("ask", COLOR)
    driver.expect("#error").to_contain_text("there is no picture: upload one, or pick an example.")
    driver.press("follow")
    driver.expect("#error").to_contain_text("there is no conversation to follow up")
    driver.upload(MUSHROOM)
    driver.settings(gamma="-1")
    driver.press("ask")
    driver.expect("#error").to_contain_text("gamma=-1.0: expected a number from 0 to 1,000,000.")
    driver.page.locator("#setting-gamma textarea, #setting-gamma input").fill("0.5")
    driver.page.locator("#setting-language_layers").locator("input, textarea").fill("90:99")
    driver.press("ask")
    driver.expect("#error").to_contain_text("language_layers='90:99': 90 is outside")
    driver.page.locator("#setting-language_layers").locator("input, textarea").fill("1:4")
    assert driver.ask() == ("Brown", "Purple")
    driver.expect("#error [role=alert]").to_have_count(0)


def test_uploads_are_bounded(driver, tmp_path):
    large, wide, broken = (tmp_path / name for name in ("large.bmp", "wide.png", "broken.png"))
    Image.new("RGB", (3000, 2500)).save(large)
    driver.page.locator("#pictures input[type=file]").first.set_input_files(str(large))
    driver.expect("[data-testid=toast-body]").to_contain_text(["exceed the maximum allowed size"])
    Image.new("L", (6000, 5000)).save(wide)
    broken.write_bytes(MUSHROOM.read_bytes()[:5000])
    for files, sentence in (
        ([wide], "wide.png is 6000 x 5000 pixels: expected at most 24,000,000 in all."),
        ([broken], "broken.png is a damaged or truncated image"),
        ([MUSHROOM] * 9, "9 pictures are too many: expected at most 8."),
    ):
        driver.page.reload()
        driver.page.locator("#ask").wait_for()
        driver.upload(*files)
        driver.press("ask", COLOR)
        driver.expect("#error").to_contain_text(sentence)


def test_several_pictures_and_a_conversation(driver, command, tmp_path):
    driver.choose("model", QWEN)
    driver.upload(MUSHROOM, BOAT)
    both = ("--model", QWEN, "--image", MUSHROOM, "--image", BOAT)
    first = driver.ask(DESCRIBE)
    assert first == command(*both, "--prompt", DESCRIBE)
    second = driver.ask(THERE, button="follow")
    for number, way in enumerate(((), ("--mode", "language"))):
        images = [{"type": "image", "image": str(each)} for each in (MUSHROOM, BOAT)]
        messages = [
            {"role": "user", "content": [*images, {"type": "text", "text": DESCRIBE}]},
            {"role": "assistant", "content": first[number]},
            {"role": "user", "content": THERE},
        ]
        path = tmp_path / "messages.json"
        path.write_text(json.dumps(messages), "utf-8")
        assert second[number] == command("--model", QWEN, "--messages", path, *way)[number]
    driver.expect("#answer-plain [data-testid=user]").to_have_count(2)
    driver.page.locator("#examples .gallery-item").first.click()
    driver.expect("#pictures .thumbnail-lg").to_have_count(1)
    driver.press("follow", COLOR)
    driver.expect("#error").to_contain_text("are no longer those of the conversation")


def test_a_video(driver, command, tmp_path):
    path = tmp_path / "clip.mp4"
    pictures = [Image.open(each).convert("RGB").resize((112, 112)) for each in (MUSHROOM, BOAT)]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 112, 112, "yuv420p"
        for picture in (*pictures, *pictures):
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode())
    driver.expect("#video").to_have_count(0)
    driver.choose("model", QWEN)
    driver.page.locator("#video input[type=file]").set_input_files(str(path))
    driver.expect("#video").to_contain_text("clip")
    answers = driver.ask(DESCRIBE)
    assert answers == command("--model", QWEN, "--video", path, "--prompt", DESCRIBE)


def test_attention_over_the_picture(driver):
    driver.upload(MUSHROOM, BOAT)
    driver.page.locator("#attention > button").click()
    driver.press("draw")
    driver.expect("#maps figure").to_have_count(5)
    assert driver.page.locator("#maps figcaption").first.inner_text().startswith("factual")
    driver.expect("#maps .cm-edited").to_contain_text("random")
    first = driver.page.locator("#maps img").first.get_attribute("src")
    driver.page.locator("#attention-picture input").fill("2")
    driver.press("draw")
    driver.page.wait_for_function(
        "first => document.querySelector('#maps img').src !== first", arg=first
    )
    driver.page.locator("#attention-picture input").fill("3")
    driver.press("draw")
    driver.expect("#error").to_contain_text("picture 3: the question shows 2, counted from 1")


def begin_endless(driver, endless):
    driver.choose("model", endless)
    driver.upload(MUSHROOM)
    driver.settings()
    driver.page.locator("#max-new-tokens input").fill("100000")
    driver.press("ask", DESCRIBE)
    driver.page.wait_for_function(
        "document.querySelectorAll('#answer-plain [data-testid=bot]').length > 0"
    )


def test_who_stops_or_leaves_frees_the_model_for_the_next_in_a_short_queue(opened, endless):
    first, second, third = (opened(apart=True) for _ in range(3))
    begin_endless(first, endless)
    for driver in (second, third):
        driver.upload(MUSHROOM)
    second.press("ask", COLOR)
    second.expect("#status").to_contain_text("Waiting: 1 question is before this one.")
    third.press("ask", COLOR)
    third.expect("#error").to_contain_text("as many questions wait as may (1): ask again later.")
    second.press("stop")
    second.expect("#status").to_contain_text("Stopped.")
    third.press("ask", COLOR)
    third.expect("#status").to_contain_text("Waiting: 1 question is before this one.")
    third.press("stop")
    third.expect("#status").to_contain_text("Stopped.")
    second.press("ask", COLOR)
    second.expect("#status").to_contain_text("Waiting")
    second.expect("#answer-plain [data-testid=bot]").to_have_count(0)
    first.press("follow", COLOR)
    first.expect("#error").to_contain_text("an answer is on its way to this page: wait for it")
    first.expect("#status").to_contain_text("Answering")
    first.press("stop")
    first.expect("#status").to_contain_text("Stopped.")
    second.expect("#status").to_contain_text("Both answers are whole.")
    assert second.answers() == ("Brown", "Purple")
    first.press("follow", COLOR)
    first.expect("#error").to_contain_text("there is no conversation to follow up")
    first.press("ask", DESCRIBE)
    first.expect("#status").to_contain_text("Answering")
    third.press("ask", COLOR)
    third.expect("#status").to_contain_text("Waiting")
    third.expect("#answer-plain [data-testid=bot]").to_have_count(0)
    first.page.close()
    third.expect("#status").to_contain_text("Both answers are whole.")
    assert third.answers() == ("Brown", "Purple")


def test_an_answer_that_was_stopped_stays_stopped(driver, endless):
    begin_endless(driver, endless)
    for _ in range(5):
        driver.press("stop")
        driver.expect("#status").to_contain_text("Stopped.")
        driver.page.wait_for_timeout(1000)  # for what would still come
        assert "Stopped." in driver.page.locator("#status").inner_text()
        assert not driver.page.locator("#error").inner_text()
        driver.press("ask")
        driver.expect("#status").to_contain_text("Answering")
    driver.press("stop")


def test_it_fits_a_phone(opened):
    driver = opened(width=375, height=700)
    driver.upload(MUSHROOM, BOAT)
    driver.ask(DESCRIBE)
    driver.page.locator("#settings > button").click()
    driver.page.locator("#attention > button").click()
    driver.press("draw")
    driver.expect("#maps figure").to_have_count(5)
    driver.page.locator("#tokens .cm-token").last.click()
    assert driver.page.locator("#tokens .cm-token").last.locator(".cm-card").is_visible()
    widths = driver.page.evaluate(
        "[document.documentElement.scrollWidth, document.body.scrollWidth, window.innerWidth]"
    )
    assert widths == [375, 375, 375]
    outside = driver.page.evaluate(
        "[...document.querySelectorAll('button, input, textarea, .cm-token, figure')]"
        ".filter(each => each.getBoundingClientRect().right > 375)"
        ".map(each => each.outerHTML.slice(0, 100))"
    )
    assert not outside


def test_the_picture_in_the_docs(driver, request, tmp_path):
    """With --app-picture it is written there."""
    driver.upload(MUSHROOM)
    driver.ask(DESCRIBE)
    driver.page.locator("#attention > button").click()
    driver.press("draw")
    driver.expect("#maps figure").to_have_count(5)
    given = request.config.getoption("--app-picture")
    path = Path(given) if given else tmp_path / "app.png"
    with Image.open(io.BytesIO(driver.page.screenshot(full_page=True))) as picture:
        picture.quantize(256).save(path, optimize=True)
    for each in (path, ROOT / "docs" / "figures" / "app.png"):
        with Image.open(each) as picture:
            assert picture.format == "PNG"
            assert picture.width == 1200
        assert each.stat().st_size < PICTURE_BYTES
