"""The command refuses in one sentence what it cannot serve."""

import re
import socket
from pathlib import Path

import pytest

from causalmm import extras
from causalmm.app import command
from causalmm.app.limits import Limits


@pytest.fixture
def refused(capsys):
    def run(*flags, code):
        assert command.main(list(flags)) == code
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return err.removeprefix("error: ").strip()

    return run


@pytest.mark.parametrize("missing", ["gradio", "matplotlib"])
def test_without_the_extra_it_says_what_to_install(refused, monkeypatch, missing):
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == missing else found(name))
    assert refused(code=1) == (f'the page needs {missing}: install it by pip install -e ".[app]"')


def test_a_plain_page_is_refused(refused):
    pytest.importorskip("gradio", reason="gradio is not installed: make setup")
    sentence = "mode plain has nothing to compare with: expected another --mode"
    assert refused("--mode", "plain", code=2) == sentence


def test_an_unknown_model_is_refused(refused):
    pytest.importorskip("gradio", reason="gradio is not installed: make setup")
    assert refused("--model", "a/b/c", code=2).startswith(
        "unknown model 'a/b/c': expected a folder"
    )


def test_a_port_that_is_taken_is_refused(refused):
    pytest.importorskip("gradio", reason="gradio is not installed: make setup")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = refused("--port", str(port), code=1)
    assert sentence == (
        f"nothing can be served at 127.0.0.1, port {port} (Address already in use): try another "
        "--port or --host"
    )


def test_limits_are_those_of_the_flags():
    assert command.read_limits(command.parse_args([])) == Limits()
    flags = ["--max-file-mib", "3", "--keep-minutes", "2", "--queue", "1"]
    asked = Limits(file_bytes=3 * 2**20, kept_seconds=120, waiting=1)
    assert command.read_limits(command.parse_args(flags)) == asked


def test_the_page_of_the_docs_names_every_limit_and_its_default():
    page = (Path(__file__).resolve().parents[2] / "docs" / "app.md").read_text("utf-8")
    table = re.findall(r"^\| (.+?) \| (?:`(--[a-z-]+)`)? ?\| ([\d,]+)", page, re.MULTILINE)
    told = {flag: int(number.replace(",", "")) for _, flag, number in table if flag}
    args = vars(command.parse_args([]))
    limits = {flag: args[flag.removeprefix("--").replace("-", "_")] for flag in told}
    assert told == limits
    assert len(told) == 6
    others = [int(number.replace(",", "")) for _, flag, number in table if not flag]
    assert others == [Limits().pixels, Limits().frames, Limits().turns]
