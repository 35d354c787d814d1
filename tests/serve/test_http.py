"""The HTTP interface over a stand-in for the models."""

import json

import pytest
from serve_bodies import MODEL, body, data_url, echo_app
from starlette.testclient import TestClient

from causalmm import CausalMMConfig
from causalmm.serve.question import Sampling


@pytest.fixture(scope="module")
def served():
    app, echo = echo_app(max_body=100_000, max_pictures=2, max_picture_pixels=1000, max_tokens=50)
    return TestClient(app, raise_server_exceptions=False), echo


def ask(served, **more):
    client, echo = served
    answer = client.post("/v1/chat/completions", json=body(**more))
    return answer, echo.asked[-1] if echo.asked else None


def error_of(answer):
    """Its sentence, in OpenAI's form."""
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert "\n" not in error["message"]
    return error["message"]


def test_a_completion(served):
    answer, question = ask(served, prompt="Say this.")
    assert answer.status_code == 200
    said = answer.json()
    assert said["object"] == "chat.completion"
    assert said["model"] == MODEL
    [choice] = said["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Say this.", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert said["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert question.sampling is None
    assert question.max_tokens == 50
    assert question.config.mode == "language"  # of the checkpoint
    [turn] = question.messages
    assert turn["content"][0]["image"].size == (8, 6)


def test_what_decides_the_answer_reaches_the_question(served):
    _, question = ask(served, temperature=0.5, top_p=0.9, seed=4, max_tokens=3, stop=["a", "b"])
    assert question.sampling == Sampling(0.5, 0.9, 4)
    assert question.max_tokens == 3
    assert question.stop == ("a", "b")
    assert ask(served, temperature=0, top_p=0.9)[1].sampling is None
    assert ask(served, top_p=0.9, seed=1)[1].sampling == Sampling(1.0, 0.9, 1)
    assert ask(served, max_completion_tokens=4)[1].max_tokens == 4
    first, second = (ask(served, temperature=1)[1].sampling.seed for _ in range(2))
    assert first != second


def test_settings_are_those_of_the_checkpoint_of_a_preset_or_given(served):
    checkpoint = ask(served)[1].config
    changed = ask(served, causalmm={"gamma": 2})[1].config
    assert changed.gamma == 2
    assert changed.language_layers == checkpoint.language_layers
    assert ask(served, causalmm={"preset": "vcd"})[1].config == CausalMMConfig.preset("vcd")
    assert ask(served, causalmm={"mode": "plain"})[1].config is None


def test_questions_about_the_same_pictures_begin_alike(served):
    first = ask(served, prompt="One?")[1].beginning
    assert ask(served, prompt="Another?")[1].beginning == first
    assert ask(served, url=data_url("blue"))[1].beginning not in ("", first)


@pytest.mark.parametrize("asked", [None, False, True])
def test_a_stream(served, asked):
    options = {} if asked is None else {"stream_options": {"include_usage": asked}}
    answer, _ = ask(served, prompt="one two three", stream=True, **options)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = [line for line in answer.text.split("\n\n") if line]
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    usage = [chunk.get("usage") for chunk in chunks]
    if asked:
        assert chunks.pop()["choices"] == []
        assert usage.pop() == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert not any(usage)
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "one two three"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_of_the_model_is_a_status(served, stream):
    answer, _ = ask(served, prompt="refuse", stream=stream)
    assert answer.status_code == 400
    assert error_of(answer) == "it is refused"


PIXELS = data_url(size=(40, 40))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"n": 2}, "n is not supported"),
        ({"tools": [{}]}, "tools is not supported"),
        ({"logprobs": True}, "logprobs is not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"top_k": 3}, "top_k: Extra inputs are not permitted"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"top_p": 0}, "top_p: Input should be greater than 0"),
        ({"max_tokens": 51}, "max_tokens: at most 50 are answered"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens differ"),
        ({"stop": [""]}, "stop.0: String should have at least 1 character"),
        ({"stream_options": {}}, "stream_options needs stream: true"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "the last message is the assis"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages.0.content.0.text: the text"),
        ({"url": "file:///etc/passwd"}, "expected data:image/...;base64"),
        ({"url": "/etc/passwd"}, "expected data:image/...;base64"),
        ({"url": "examples/llava_300041_helped.png"}, "expected data:image/...;base64"),
        ({"url": "http://127.0.0.1/a.png"}, "pictures are not fetched from 127.0.0.1"),
        ({"url": "data:image/png;base64,AAAA"}, "the picture is no file of PNG"),
        ({"url": "data:text/plain;base64,AAAA"}, "expected data:image/...;base64"),
        ({"url": data_url(kind="TIFF")}, "the picture is no file of PNG, JPEG, WEBP, GIF, BMP"),
        ({"url": PIXELS}, "too many pixels for one request"),
        ({"causalmm": {"gamma": -1}}, "causalmm: gamma=-1: expected"),
        ({"causalmm": {"draws": 9}}, "causalmm: draws: at most 8 are decoded"),
        ({"causalmm": {"gama": 1}}, "causalmm: unknown setting 'gama': expected preset or one of"),
        ({"causalmm": {"center": "/etc/passwd"}}, "causalmm.center is the server's to set"),
        ({"causalmm": {"preset": "none"}}, "causalmm: preset='none': expected one of"),
        ({"causalmm": {"preset": "vcd", "mode": "plain"}}, "preset and mode 'plain' exclude"),
        ({"causalmm": {"preset": "vcd", "noise_step": 3.5}}, "causalmm: noise_step=3.5"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_sentence(served, more, sentence):
    answer, _ = ask(served, **more)
    assert answer.status_code == 400
    assert sentence in error_of(answer)


def test_another_model_is_not_found(served):
    answer, _ = ask(served, model="another")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_bounds_of_a_request(served):
    client, _ = served
    large = client.post("/v1/chat/completions", content=b"x" * 100_001)
    chunked = client.post("/v1/chat/completions", content=(b"x" * 60_000 for _ in range(2)))
    assert [large.status_code, chunked.status_code] == [413, 413]
    assert error_of(chunked) == "the body is larger than 100,000 bytes"
    many = body()
    many["messages"][0]["content"] += many["messages"][0]["content"][:1] * 2
    answer = client.post("/v1/chat/completions", json=many)
    assert "at most 2 pictures" in error_of(answer)


def test_health_models_metrics_and_what_is_not_there(served):
    client, _ = served
    ask(served)
    assert client.get("/health").json() == {"status": "ok", "replicas": 1}
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == [MODEL]
    told = client.get("/metrics").text
    assert 'causalmm_requests_total{status="200"}' in told
    assert "causalmm_requests_running 0.0" in told
    assert client.get("/docs").status_code == 404
    assert error_of(client.get("/v1/completions")) == "not found"
    assert client.get("/v1/chat/completions").status_code == 405


def test_a_key_is_asked_for():
    app, echo = echo_app(api_key="secret")
    client = TestClient(app)
    for headers in ({}, {"authorization": "Bearer secret2"}, {"authorization": "secret"}):
        for path in ("/v1/models", "/metrics"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401
            assert error_of(answer) == "the API key is missing or wrong"
        assert client.post("/v1/chat/completions", headers=headers, json=body()).status_code == 401
    assert not echo.asked
    assert client.get("/health").status_code == 200
    right = {"authorization": "Bearer secret"}
    assert client.post("/v1/chat/completions", headers=right, json=body()).status_code == 200


def test_a_request_that_takes_too_long_ends_in_a_sentence():
    app, echo = echo_app(max_seconds=0.05)

    async def never(question):
        import asyncio

        await asyncio.sleep(10)

    echo.ask = never
    answer = TestClient(app).post("/v1/chat/completions", json=body())
    assert answer.status_code == 504
    assert error_of(answer) == "the request took more than 0.05 seconds"


def test_a_bug_is_told_without_its_traceback():
    app, echo = echo_app()

    async def broken(question):
        raise KeyError("inside")

    echo.ask = broken
    answer = TestClient(app).post("/v1/chat/completions", json=body())
    assert answer.status_code == 500
    assert error_of(answer) == "the service failed to answer this request"
