"""The service as a whole, on Ray: answers, streams, a killed replica, clients that go away."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serve_bodies import body, data_url

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
COLORS = ("red", "blue", "green", "yellow", "purple", "white", "black", "orange")
PROMPTS = ("What color is it?", "Is there a dog in the image?", "Describe the image.")


def client(service):
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0, timeout=120)


def model_pids(service):
    """Of the processes of the model's replicas that this service has, and no other's."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]
    rows = [line.split(maxsplit=2) for line in listed]
    parents = {int(pid): int(parent) for pid, parent, _ in rows}

    def is_ours(pid):
        while pid in parents and pid != service.process.pid:
            pid = parents[pid]
        return pid == service.process.pid

    named = [int(pid) for pid, _, args in rows if "ServeReplica:causalmm:Model" in args]
    return list(filter(is_ours, named))


def test_greedy_answers_are_those_of_the_command(service):
    """Asked at once, so that they are answered in batches, by two replicas."""
    import argparse

    from causalmm.cli.request import find_model
    from causalmm.cli.session import Session
    from causalmm.inputs.messages import open_messages
    from causalmm.serve.flags import parse_args

    args = parse_args([])
    session = Session.start(argparse.Namespace(**vars(args)), find_model(args))
    bodies = [body(data_url(color), prompt) for color in COLORS for prompt in PROMPTS]

    def alone(each):
        [turn] = each["messages"]
        picture, words = turn["content"]
        content = [{"type": "image", "image": picture["image_url"]["url"]}, words]
        inputs = session.inputs(open_messages([turn | {"content": content}]))
        return session.answer(inputs, session.request.config).text

    async def ask():
        async with client(service) as asking:
            return await asyncio.gather(
                *(asking.chat.completions.create(**each) for each in bodies)
            )

    said = asyncio.run(ask())
    assert [each.choices[0].message.content for each in said] == list(map(alone, bodies))
    assert len({each.id for each in said}) == len(bodies)
    assert service.metric("causalmm_batch_rows_sum") > service.metric("causalmm_batch_rows_count")


def test_a_stream_says_what_an_answer_says(service):
    async def ask():
        async with client(service) as asking:
            whole = await asking.chat.completions.create(**body(prompt=PROMPTS[2]))
            stream = await asking.chat.completions.create(
                **body(prompt=PROMPTS[2]), stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            return whole, chunks

    whole, (*chunks, last) = asyncio.run(ask())
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 1
    assert last.usage == whole.usage


def test_the_page_shows_what_is_said(service):
    """Its commands run as they stand, but for the port."""
    page = (ROOT / "docs" / "serve.md").read_text("utf-8")
    told = re.search(r"^## Ask it$(.*?)^## ", page, re.M | re.S)[1]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", told, re.M | re.S)
    (_, shell), (_, answer), (_, error), (_, python), (_, text) = blocks
    assert [language for language, _ in blocks] == ["sh", "json", "json", "python", "text"]

    def run(*command):
        code = command[-1].replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
        done = subprocess.run(
            [*command[:-1], code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    def stable(record):
        return json.loads(record) | {"id": "", "created": 0}

    assert stable(run("bash", "-c", shell)) == stable(answer)
    assert "answer is `Brown`" in told
    plain = shell.replace('"messages"', '"causalmm": {"mode": "plain"}, "messages"')
    assert json.loads(run("bash", "-c", plain))["choices"][0]["message"]["content"] == "Brown"
    assert run("bash", "-c", shell.replace('"messages"', '"n": 2, "messages"')) == error.rstrip()
    assert run(sys.executable, "-c", python) == text


def test_wrong_requests_get_a_sentence(service):
    import openai

    async def ask(**more):
        async with client(service) as asking:
            await asking.chat.completions.create(**body(), **more)

    for more, sentence in (
        ({"n": 2}, "n is not supported"),
        ({"extra_body": {"causalmm": {"language_layers": "90:99"}}}, "causalmm: language_layers"),
        ({"stream": True, "extra_body": {"causalmm": {"gamma": -1}}}, "causalmm: gamma=-1"),
    ):
        with pytest.raises(openai.BadRequestError, match=sentence):
            asyncio.run(ask(**more))


def test_a_killed_copy_is_replaced_and_only_its_requests_fail(service):
    import openai

    service.wait_for(2)
    before = model_pids(service)
    assert len(before) == 2

    async def ask():
        answered, failed = [], []
        async with client(service) as asking:

            async def worker(number):
                for turn in range(12):
                    try:
                        said = await asking.chat.completions.create(
                            **body(data_url(COLORS[number % 8]), PROMPTS[turn % 3])
                        )
                        answered.append(said)
                    except openai.APIStatusError as error:
                        failed.append(error)

            async def kill():
                await asyncio.sleep(1.5)
                os.kill(before[0], signal.SIGKILL)

            await asyncio.gather(kill(), *(worker(number) for number in range(16)))
        return answered, failed

    answered, failed = asyncio.run(asyncio.wait_for(ask(), 200))
    assert len(answered) + len(failed) == 16 * 12
    # No more than the replica may have had at a time.
    assert 1 <= len(failed) <= 16
    for error in failed:
        assert error.status_code == 503
        assert error.body["message"] == ("the model's process ended while it answered; ask again")
    service.wait_for(2, 120)
    deadline = time.monotonic() + 60
    while len(now := model_pids(service)) != 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(set(now) - set(before)) == 1


def test_a_client_that_goes_away_frees_its_place(service):
    """More questions than two replicas have places for are given up: none runs or waits then.

    That their rows end at the next token is held by test_engine.py.
    """
    import httpx

    service.wait_for(2, 120)
    gone = 'causalmm_requests_total{status="499"}'
    before = service.metric(gone)
    bodies = [body(data_url(color), PROMPTS[2]) for color in COLORS]

    async def leave():
        async with httpx.AsyncClient(base_url=service.url) as asking:
            tasks = [
                asyncio.create_task(asking.post("/v1/chat/completions", json=each, timeout=60))
                for each in bodies * 4
            ]
            await asyncio.sleep(0.3)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(leave())
    deadline = time.monotonic() + 30
    while service.metric("causalmm_requests_running") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert service.metric("causalmm_requests_running") == 0
    assert service.metric(gone) > before
    begun = time.monotonic()
    said = httpx.post(f"{service.url}/v1/chat/completions", json=body(), timeout=60)
    assert said.status_code == 200
    assert time.monotonic() - begun < 20
