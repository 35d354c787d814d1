"""The options of the service, and their flags."""

import re
import sys
from dataclasses import fields

import pytest

import mkdocs_hooks
from causalmm import extras
from causalmm.__main__ import main
from causalmm.errors import RequestError
from causalmm.serve.flags import KEY_VARIABLE, parse_args, read_options
from causalmm.serve.options import ServeOptions


def read(*argv):
    return read_options(parse_args(argv))


def test_flags_are_those_of_the_fields():
    assert read() == ServeOptions()
    given = read("--autoscale", "1:4", "--allow-hosts", "A.example, b.example:8443", "--port", "81")
    assert given == ServeOptions(
        autoscale=(1, 4), allow_hosts=("a.example", "b.example:8443"), port=81
    )


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--port", "0"], "port=0: expected an integer from 1 to 65,535"),
        (["--host", "example.com"], "host='example.com': expected an IP address or localhost"),
        (["--autoscale", "3:2"], "autoscale='3:2': expected MIN:MAX"),
        (["--autoscale", "3"], "autoscale='3': expected MIN:MAX"),
        (["--allow-hosts", "a_b"], "allow_hosts: 'a_b' is no name of a host"),
        (["--replicas", "2", "--autoscale", "1:2"], "--replicas and --autoscale exclude each"),
        (["--api-key", "a", "--api-key-file", "b"], "--api-key and --api-key-file exclude each"),
        (["--api-key-file", "nowhere"], "--api-key-file nowhere cannot be read"),
        (["--api-key", ""], "api_key: expected ASCII text that is not empty"),
        (["--batch-wait", "-1"], "batch_wait=-1.0: expected a number above"),
    ],
)
def test_wrong_options_end_in_a_sentence(argv, sentence):
    with pytest.raises(RequestError, match=re.escape(sentence)):
        read(*argv)


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "of the environment")
    (tmp_path / "key").write_text("of a file\n")
    assert read().api_key == "of the environment"
    options = read("--api-key-file", str(tmp_path / "key"))
    assert options.api_key == "of a file"
    assert "of a file" not in repr(options)


@pytest.mark.parametrize("package", extras.EXTRAS["serve"])
def test_without_the_extra_a_sentence_says_what_to_install(package, monkeypatch, capsys):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else sys)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == (
        f'error: `causalmm serve` needs {package}: install it by pip install -e ".[serve]"\n'
    )


def test_the_site_shows_every_option():
    rows = mkdocs_hooks.serve_table().splitlines()[2:]
    declared = [each for each in fields(ServeOptions) if "flag" in each.metadata]
    for row, field in zip(rows, declared, strict=True):
        flag, default, meaning = row.strip("| ").split(" | ")
        assert flag.startswith(f"`--{field.name.replace('_', '-')} ")
        assert len(meaning) > 10
        assert default
