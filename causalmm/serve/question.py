"""From the body of a request to a question for the model: pictures opened, settings settled.

Tests: tests/serve/test_question.py.
"""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any, NamedTuple

from causalmm.cli.request import Request, settle
from causalmm.config import CausalMMConfig
from causalmm.errors import RequestError
from causalmm.families import checkpoints
from causalmm.inputs.messages import check_prompt, limit_sizes, open_messages, text_part
from causalmm.presets.registry import PRESETS
from causalmm.serve.addresses import Fetcher
from causalmm.serve.errors import ApiError
from causalmm.serve.options import ServeOptions
from causalmm.serve.pictures import decode_data, is_network, open_picture
from causalmm.serve.schema import ChatRequest, ImagePart

SERVER_ONLY = ("center", "center_sha256", "constant_branch")
"""Settings that name files of the server, or tell of them."""


class Sampling(NamedTuple):
    """How a token is drawn, from a stream of random numbers of the request's own."""

    temperature: float
    top_p: float
    seed: int


class Question(NamedTuple):
    """What a model is asked."""

    messages: list[dict[str, Any]]
    """Opened."""
    config: CausalMMConfig | None
    """None for the plain model."""
    max_tokens: int
    sampling: Sampling | None = None
    """None: greedy."""
    stop: tuple[str, ...] = ()
    beginning: str = ""
    """The same for questions that are alike up to and with their last picture; empty without."""


class Reader:
    """Reads requests under the options of a service and the request of its command line."""

    def __init__(
        self, request: Request, options: ServeOptions, fetcher: Fetcher | None = None
    ) -> None:
        self.request = request
        self.options = options
        self.fetcher = fetcher or Fetcher(options.allow_hosts, options.max_body)
        self._settle = lru_cache(maxsize=256)(self._settle_json)

    async def read(self, asked: ChatRequest) -> Question:
        """The question in a request. Raises ApiError for what cannot be asked."""
        if asked.model != self.request.model:
            raise ApiError(
                404,
                f"there is no model {ascii(asked.model)[:100]}: expected {self.request.model!r}",
                param="model",
                code="model_not_found",
            )
        limit = asked.token_limit
        if limit is None:
            limit = min(self.request.max_new_tokens, self.options.max_tokens)
        if limit > self.options.max_tokens:
            raise ApiError(
                400, f"max_tokens: at most {self.options.max_tokens} are answered",
                param="max_tokens",
            )  # fmt: skip
        config = self._config(asked.causalmm or {})
        addresses = _addresses(asked)
        if len(addresses) > self.options.max_pictures:
            raise ApiError(
                400, f"messages: at most {self.options.max_pictures} pictures are read",
                param="messages",
            )  # fmt: skip
        fetched = {
            address: await self.fetcher.fetch(address, param)
            for param, address in addresses
            if is_network(address)
        }
        messages, beginning = await asyncio.to_thread(self._open, asked, fetched)
        return Question(messages, config, limit, _sampling(asked), tuple(asked.stop), beginning)

    def _config(self, given: dict[str, Any]) -> CausalMMConfig | None:
        for name in SERVER_ONLY:
            if given.get(name) is not None:
                raise ApiError(
                    400, f"causalmm.{name} is the server's to set", param=f"causalmm.{name}"
                )
        try:
            return self._settle(json.dumps(given, sort_keys=True))
        except RequestError as error:
            raise ApiError(400, f"causalmm: {error}", param="causalmm") from None

    def _settle_json(self, text: str) -> CausalMMConfig | None:
        """The settings of a request. Raises RequestError for wrong ones."""
        given = {name: value for name, value in json.loads(text).items() if value is not None}
        known = [each.name for each in fields(CausalMMConfig) if each.name not in SERVER_ONLY]
        if unknown := sorted(given.keys() - {*known, "preset"}):
            raise RequestError(
                f"unknown setting {ascii(unknown[0])[:80]}: expected preset or one of "
                f"{', '.join(known)}"
            )
        preset = given.pop("preset", None)
        if preset is not None and preset not in PRESETS:
            raise RequestError(f"preset={ascii(preset)[:80]}: expected one of {', '.join(PRESETS)}")
        if given.get("mode") == "plain":
            if preset is not None:
                raise RequestError("preset and mode 'plain' exclude each other")
            settle(CausalMMConfig(), None, {k: v for k, v in given.items() if k != "mode"})
            return None
        base = self.request.config
        if base is None:
            if not given and preset is None:
                return None
            base = checkpoints.configuration(self.request.source)
        config = settle(base, preset, given)
        if "draws" in given and config.draws > self.options.max_draws:
            raise RequestError(f"draws: at most {self.options.max_draws} are decoded")
        return config

    def _open(
        self, asked: ChatRequest, fetched: dict[str, bytes]
    ) -> tuple[list[dict[str, Any]], str]:
        """The conversation with its pictures, and a digest of all up to the last of them."""
        left, digest, beginning, opened = self.options.max_picture_pixels, hashlib.sha256(), "", {}
        messages = []
        for number, message in enumerate(asked.messages):
            parts: list[dict[str, Any]] = []
            digest.update(f"\n{message.role}\n".encode())
            for place, part in enumerate(message.content):
                param = f"messages.{number}.content.{place}"
                if isinstance(part, ImagePart):
                    address = part.image_url.url
                    if address not in opened:
                        content = fetched.get(address)
                        if content is None:
                            content = decode_data(address, f"{param}.image_url.url")
                        picture, left = open_picture(content, f"{param}.image_url.url", left)
                        opened[address] = picture, hashlib.sha256(content).digest()
                    picture, its_digest = opened[address]
                    digest.update(b"picture" + its_digest)
                    beginning = digest.hexdigest()
                    parts.append({"type": "image", "image": picture})
                else:
                    text = _words(part.text, param)
                    digest.update(f"text {len(text)} {text}".encode())
                    parts.append(text_part(text))
            messages.append({"role": message.role, "content": parts})
        try:
            return limit_sizes(open_messages(messages), self.request.limits), beginning
        except RequestError as error:
            raise ApiError(400, str(error), param="messages") from None


def _words(text: str, param: str) -> str:
    try:
        check_prompt(text)
    except RequestError:
        raise ApiError(400, f"{param}.text: the text is empty", param=f"{param}.text") from None
    return text


def _addresses(asked: ChatRequest) -> Sequence[tuple[str, str]]:
    """Where in the body, and what."""
    return [
        (f"messages.{number}.content.{place}.image_url.url", part.image_url.url)
        for number, message in enumerate(asked.messages)
        for place, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


def _sampling(asked: ChatRequest) -> Sampling | None:
    """None for greedy: without temperature and top_p, or with temperature 0."""
    if asked.temperature == 0 or (asked.temperature is None and asked.top_p is None):
        return None
    temperature = 1.0 if asked.temperature is None else asked.temperature
    seed = secrets.randbits(63) if asked.seed is None else asked.seed
    return Sampling(temperature, 1.0 if asked.top_p is None else asked.top_p, seed)
