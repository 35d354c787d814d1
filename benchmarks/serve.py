"""What the service answers a second, with one client and with many, every answer checked.

python benchmarks/serve.py

Starts `causalmm serve` on a port of its own and asks it about drawn scenes with the `openai`
client. Every answer must be the one that the command's own code gives to the question alone.
Clients wait for an answer before they ask again; latencies are those of the measured requests.
Tests: tests/measuring/test_benchmarks.py.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import quantiles
from typing import Any, NamedTuple
from urllib.request import urlopen

import measure
import torch
from measure import Bar
from openai import AsyncOpenAI
from PIL import Image

from causalmm.cli.request import find_model
from causalmm.cli.session import Session
from causalmm.errors import FailureError
from causalmm.inputs.messages import one_turn, open_messages
from causalmm.serve.flags import parse_args as serve_args
from causalmm.toyworld.evaluation import question_set
from causalmm.toyworld.questions import CAPTION_PROMPTS
from causalmm.toyworld.questions import count as count_items

MODEL, FAMILY = "demo-llava", "llava"
START_SECONDS = 180
"""For Ray, the model and the first answer."""


class Asked(NamedTuple):
    """A question, and the body of its request."""

    picture: Image.Image
    prompt: str
    messages: list[dict[str, Any]]


class Load(NamedTuple):
    """What came back to some clients."""

    seconds: float
    latencies: list[float]
    answers: list[str | None]
    ids: list[str | None]


def run(argv: list[str]) -> None:
    """Measure, write and print. Raises FailureError where an answer is wrong, lost or doubled."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    questions = draw(args.pictures)
    expected, alone = answer_alone(questions)
    order = random.Random(0).choices(range(len(questions)), k=args.requests)
    with service(args) as port:
        asyncio.run(load(port, questions, order[: 2 * args.clients], args.clients))  # warm
        before = count(port)
        one = asyncio.run(load(port, questions, order[: args.one_client], 1))
        many = asyncio.run(load(port, questions, order, args.clients))
        counted = count(port) - before
        rows = batch_rows(port)
    check(one, order[: args.one_client], expected)
    check(many, order, expected)
    if counted != args.requests + args.one_client:
        raise FailureError(f"the service counted {counted} answers")
    results = {
        "alone_per_second": alone,
        "one_client": told(one),
        "clients": told(many),
        "rows_of_an_answers_batch": rows,
    }
    ratio = results["clients"]["per_second"] / results["one_client"]["per_second"]
    bars = [
        Bar("serve: throughput of many clients, to that of one", ratio, 1.5, at_least=True),
        Bar("serve: wrong, lost or doubled answers", 0, 0),
    ]
    measure.finish("serve", argv, args, results, bars)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags as given."""
    parser = measure.make_parser(
        __doc__, clients=64, requests=2000, one_client=200, pictures=40, serve_batch_size=32
    )
    parser.set_defaults(dtype="float32")
    return parser.parse_args(argv)


def draw(pictures: int) -> list[Asked]:
    """Four questions about each of some drawn scenes."""
    found = []
    for number, about in groupby(
        question_set("existence random", FAMILY, "test", pictures), key=lambda each: each.number
    ):
        alike = list(about)
        scene = alike[0].scene
        prompts = [each.question.text for each in alike]
        prompts += [count_items(len(scene.items)).text, CAPTION_PROMPTS[number % 5]]
        found += [asked(scene.image, prompt) for prompt in prompts]
    return found


def asked(picture: Image.Image, prompt: str) -> Asked:
    """A question with its request."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": prompt},
    ]
    return Asked(picture, prompt, [{"role": "user", "content": content}])


def answer_alone(questions: Sequence[Asked]) -> tuple[list[str], float]:
    """What the command's own code answers to each alone, and how many a second."""
    args = serve_args(["--model", MODEL])
    session = Session.start(args, find_model(args))

    def answer(each: Asked) -> str:
        messages = open_messages(one_turn([each.picture], each.prompt))
        return session.answer(session.inputs(messages), session.request.config).text

    answer(questions[0])
    begun = time.perf_counter()
    answers = [answer(each) for each in questions]
    return answers, len(questions) / (time.perf_counter() - begun)


@contextlib.contextmanager
def service(args: argparse.Namespace) -> Iterator[int]:
    """The port of a service that runs meanwhile. Raises FailureError where none starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "causalmm", "serve", "--model", MODEL, "--port", str(port)]
    command += ["--batch-size", str(args.serve_batch_size)]
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stderr=said) as process:
        try:
            begun = time.monotonic()
            while not answers(port):
                if process.poll() is not None or time.monotonic() - begun > START_SECONDS:
                    said.seek(0)
                    raise FailureError(f"no service: {said.read().decode()[-300:]}")
                time.sleep(0.5)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(port: int) -> bool:
    """Whether the service says that it is ready."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


def metrics(port: int) -> dict[str, float]:
    """The numbers of the service, by name and labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def count(port: int) -> int:
    """Answers that were given."""
    return int(metrics(port).get('causalmm_requests_total{status="200"}', 0))


def batch_rows(port: int) -> float:
    """Rows that were decoded together, on average over answers."""
    found = metrics(port)
    return found["causalmm_batch_rows_sum"] / found["causalmm_batch_rows_count"]


async def load(port: int, questions: Sequence[Asked], order: Sequence[int], clients: int) -> Load:
    """Ask in this order; each client asks again when it is answered."""
    left = iter(range(len(order)))
    result = Load(0.0, [], [None] * len(order), [None] * len(order))
    client = AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=300
    )

    async def ask() -> None:
        for place in left:
            begun = time.perf_counter()
            said = await client.chat.completions.create(
                model=MODEL, messages=questions[order[place]].messages
            )
            result.latencies.append(time.perf_counter() - begun)
            result.answers[place] = said.choices[0].message.content
            result.ids[place] = said.id

    begun = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(clients)))
    await client.close()
    return result._replace(seconds=time.perf_counter() - begun)


def check(found: Load, order: Sequence[int], expected: Sequence[str]) -> None:
    """Raise FailureError unless each was answered once, as alone."""
    if None in found.answers or len(set(found.ids)) != len(order):
        raise FailureError("an answer is lost or doubled")
    wrong = [place for place, text in enumerate(found.answers) if text != expected[order[place]]]
    if wrong:
        raise FailureError(f"{len(wrong)} answers differ from those alone, first {wrong[0]}")


def told(found: Load) -> dict[str, Any]:
    """Numbers of a load."""
    percentiles = quantiles(found.latencies, n=100, method="inclusive")
    return {
        "requests": len(found.answers),
        "per_second": len(found.answers) / found.seconds,
        "p50_seconds": percentiles[49],
        "p95_seconds": percentiles[94],
    }


main = measure.command(run)

if __name__ == "__main__":
    raise SystemExit(main())
