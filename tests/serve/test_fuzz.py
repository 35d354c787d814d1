"""Bodies near what is right, and far from it: each is answered, or refused in a sentence."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_bodies import body, data_url, echo_app
from starlette.testclient import TestClient

from causalmm.serve.question import SERVER_ONLY
from causalmm.serve.schema import NEUTRAL, ChatMessage, ChatRequest, ImagePart, ImageUrl, TextPart

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3)
    ),
    max_leaves=6,
)
ADDRESSES = st.sampled_from(
    [
        data_url(), data_url(kind="JPEG"), data_url()[:-20], "data:image/png;base64,",
        "data:image/png;base64,AAAA", "file:///etc/passwd", "/etc/passwd", "..", "",
        "http://localhost/a.png", "https://[::1]/", "http://\x00", "ftp://a/b",
    ]
)  # fmt: skip
SETTINGS = st.dictionaries(
    st.sampled_from(
        [
            "gamma",
            "mode",
            "preset",
            "vision_layers",
            "language_layers",
            "language_heads",
            "seed",
            "draws",
            "epsilon",
            "noise_step",
            "site",
            "normalization",
            *SERVER_ONLY,
            "other",
        ]
    ),  # fmt: skip
    JSON | st.sampled_from(["plain", "joint", "vcd", "all", "0:99", "-1:", "image:2", 10**30]),
    max_size=3,
)


def mixed(name, right):
    """Mostly what is right for a field, sometimes anything."""
    return st.one_of(right, right, right, JSON)


def fields_of(model, /, **right):
    """Objects of a model's fields, some missing, some wrong, and at times one too many."""
    known = {name: mixed(name, right.get(name, JSON)) for name in model.model_fields}
    objects = st.fixed_dictionaries({}, optional=known)
    return st.builds(lambda one, two: one | two, objects, st.just({}) | st.just({"extra": 1}))


URLS = fields_of(ImageUrl, url=ADDRESSES, detail=st.just("auto"))
PARTS = st.one_of(
    fields_of(TextPart, type=st.just("text"), text=st.text(max_size=20)),
    fields_of(ImagePart, type=st.just("image_url"), image_url=URLS),
)
MESSAGES = fields_of(
    ChatMessage,
    role=st.sampled_from(["user", "system", "assistant"]),
    content=st.text(max_size=20) | st.lists(PARTS, max_size=3),
)
BODIES = st.builds(
    lambda right, changed, neutral: right | changed | neutral,
    st.just(body()),
    fields_of(
        ChatRequest,
        model=st.just("demo-llava"),
        messages=st.lists(MESSAGES, max_size=3),
        stream=st.booleans(),
        temperature=st.floats(),
        top_p=st.floats(),
        seed=st.integers(),
        max_tokens=st.integers(),
        max_completion_tokens=st.integers(),
        stop=st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=5),
        causalmm=SETTINGS,
    ),
    st.dictionaries(st.sampled_from(sorted(NEUTRAL)), JSON, max_size=2),
)


@pytest.fixture(scope="module")
def client():
    app, _ = echo_app()
    return TestClient(app, raise_server_exceptions=False)


def check(answer):
    """It is an answer, or a status of 4xx with one sentence."""
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        assert len(error["message"]) < 2000
        assert "Traceback" not in answer.text
        assert "site-packages" not in answer.text


def ask(client, content):
    return client.post("/v1/chat/completions", content=content)


def test_bodies_that_broke_it_once_or_might(client):
    for content in (
        b"", b"null", b"[]", b"{", b'{"model": "\\ud800"}', b"\xff", b"[" * 100_000,
        json.dumps(body(causalmm={"seed": float("nan")})).encode(),
        json.dumps(body(causalmm={"draws": 10**400})).encode(),
    ):  # fmt: skip
        answer = ask(client, content)
        assert answer.status_code == 400
        check(answer)


@pytest.mark.slow
@settings(
    max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(asked=BODIES)
def test_no_body_of_the_form_breaks_it(client, asked):
    check(ask(client, json.dumps(asked).encode("utf-8", "surrogatepass")))


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_break_it(client, content):
    answer = ask(client, content)
    check(answer)
    assert answer.status_code == 400
