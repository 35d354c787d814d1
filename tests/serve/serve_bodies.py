"""Bodies of requests, and a stand-in for the models that tells what it was asked."""

import base64
import io
from collections.abc import AsyncIterator
from typing import Any

from PIL import Image

from causalmm.cli.request import find_model
from causalmm.serve.answers import Answer, Refusal
from causalmm.serve.flags import parse_args
from causalmm.serve.http import build_app
from causalmm.serve.options import ServeOptions
from causalmm.serve.question import Question, Reader

MODEL = "demo-llava"


def data_url(color: Any = "red", size: tuple[int, int] = (8, 6), kind: str = "PNG") -> str:
    """A picture of one colour as a data: address."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def body(url: str | None = None, prompt: str = "What is it?", **more: Any) -> dict[str, Any]:
    """A chat completion about one picture."""
    picture = {"type": "image_url", "image_url": {"url": url or data_url()}}
    content = [picture, {"type": "text", "text": prompt}]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}]} | more


class Echo:
    """Answers with the last text of a question; keeps the questions."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    async def ask(self, question: Question) -> Answer | Refusal:
        self.asked.append(question)
        text = question.messages[-1]["content"][-1].get("text", "")
        if text == "refuse":
            return Refusal("it is refused")
        return Answer(text, "stop", 7, len(text.split()), 1)

    async def stream(self, question: Question) -> AsyncIterator[str | Answer | Refusal]:
        answer = await self.ask(question)
        if isinstance(answer, Answer):
            for number, word in enumerate(answer.text.split(" ")):
                yield f" {word}" if number else word
        yield answer

    async def replicas(self) -> int:
        return 1


def echo_app(**options: Any) -> tuple[Any, Echo]:
    """An app over an `Echo`, and that."""
    echo = Echo()
    settings = ServeOptions(**options)
    return build_app(settings, Reader(find_model(parse_args([])), settings), echo), echo
