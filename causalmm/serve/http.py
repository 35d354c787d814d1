"""The HTTP interface, in OpenAI's form: a FastAPI app over anything that answers questions.

Nothing here knows of Ray. Tests: tests/serve/test_http.py and tests/serve/test_fuzz.py.
"""

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from causalmm.serve.answers import Answer, Refusal
from causalmm.serve.errors import FAILED, ApiError
from causalmm.serve.metrics import Metrics
from causalmm.serve.options import ServeOptions
from causalmm.serve.question import Question, Reader
from causalmm.serve.schema import ChatRequest, parse_body

_LOGGER = logging.getLogger("ray.serve")
_OPEN = ("/health",)
"""What is answered without a key."""
CLOSED_REQUEST = 499
"""Counted for a client that has gone away, as nginx has it."""


class Models(Protocol):
    """Where questions are answered. Every function raises ApiError where nobody can."""

    def ask(self, question: Question) -> Awaitable[Answer | Refusal]:
        """The answer."""

    def stream(self, question: Question) -> AsyncIterator[str | Answer | Refusal]:
        """Pieces of the answer, and at last the whole of it."""

    def replicas(self) -> Awaitable[int]:
        """How many replicas of the model can answer."""


def build_app(options: ServeOptions, reader: Reader, models: Models) -> FastAPI:
    """The app of a service."""

    async def check_key(request: Request) -> None:
        """Raise ApiError for a request without the key, in a time that tells nothing of it."""
        if options.api_key is None or request.url.path in _OPEN:
            return
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {options.api_key}".encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(check_key)]
    )
    metrics = Metrics()
    model = reader.request.model
    begun = int(time.time())

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return _error(error)

    @app.exception_handler(HTTPException)
    async def known(_: Request, error: HTTPException) -> Response:
        return _error(ApiError(error.status_code, f"{error.detail}".lower()))

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> Response:
        return _error(ApiError(500, FAILED))

    @app.get("/health")
    async def health() -> Response:
        count = await models.replicas()
        if count == 0:
            return _error(ApiError(503, "no model is ready"))
        return JSONResponse({"status": "ok", "replicas": count})

    @app.get("/metrics")
    async def tell_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(model, begun)]})

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        started = time.monotonic()
        deadline = asyncio.get_running_loop().time() + options.max_seconds

        def ended(status: int) -> None:
            metrics.running.dec()
            metrics.requests.labels(str(status)).inc()
            metrics.seconds.observe(time.monotonic() - started)

        metrics.running.inc()
        status = CLOSED_REQUEST
        streams = False
        try:
            async with asyncio.timeout_at(deadline):
                asked = parse_body(await _read(request, options.max_body))
                question = await reader.read(asked)
                if asked.stream:
                    pieces = models.stream(question)
                    # An error before the first piece has a status of its own.
                    first = await anext(pieces)
                    _check(first)
                    events = _events(asked, model, first, pieces, metrics, deadline, ended)
                    status, streams = 200, True
                    return StreamingResponse(events, media_type="text/event-stream")
                answer = await _answered(request, models.ask(question))
            _check(answer)
            metrics.count(answer)
            status = 200
            return JSONResponse(_completion(model, answer))
        except ApiError as error:
            status = error.status
            return _error(error)
        except TimeoutError:
            status = 504
            return _error(_too_slow(options))
        except Exception:
            _LOGGER.exception("a request failed")
            status = 500
            return _error(ApiError(500, FAILED))
        finally:
            if not streams:
                ended(status)

    def _too_slow(options: ServeOptions) -> ApiError:
        return ApiError(504, f"the request took more than {options.max_seconds:g} seconds")

    return app


async def _read(request: Request, most: int) -> bytes:
    """The body. Raises ApiError where it is too large."""
    too_large = ApiError(413, f"the body is larger than {most:,} bytes", code="body_too_large")
    if (length := request.headers.get("content-length", "0")).isdecimal() and int(length) > most:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise too_large
    return bytes(body)


async def _answered(request: Request, asked: Awaitable[Answer | Refusal]) -> Answer | Refusal:
    """The answer, unless the client goes away before: then nobody is asked any longer."""
    answer = asyncio.ensure_future(asked)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ApiError(CLOSED_REQUEST, "the client has gone away")
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    asked: ChatRequest,
    model: str,
    first: str | Answer | Refusal,
    pieces: AsyncIterator[str | Answer | Refusal],
    metrics: Metrics,
    deadline: float,
    ended: Callable[[int], None],
) -> AsyncIterator[str]:
    """Server-sent events of a streamed answer."""
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    chunk = _Chunks(model, usage)
    status = CLOSED_REQUEST
    try:
        yield chunk.of({"role": "assistant", "content": ""})
        piece: str | Answer | Refusal = first
        try:
            async with asyncio.timeout_at(deadline):
                while isinstance(piece, str):
                    yield chunk.of({"content": piece})
                    piece = await anext(pieces)
                _check(piece)
        except TimeoutError:
            raise ApiError(504, "the request took too long") from None
        metrics.count(piece)
        yield chunk.of({}, piece.finish_reason)
        if usage:
            yield chunk.usage(piece)
        yield "data: [DONE]\n\n"
        status = 200
    except ApiError as error:
        status = error.status
        yield f"data: {json.dumps(error.body())}\n\n"
    finally:
        ended(status)
        if (close := getattr(pieces, "aclose", None)) is not None:
            await close()


class _Chunks:
    """The objects of one stream."""

    def __init__(self, model: str, usage: bool) -> None:
        self.base = {
            "id": _id(),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        # With a usage to come, every chunk has one.
        self.none = {"usage": None} if usage else {}

    def of(self, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return f"data: {json.dumps(self.base | {'choices': [choice]} | self.none)}\n\n"

    def usage(self, answer: Answer) -> str:
        return f"data: {json.dumps(self.base | {'choices': [], 'usage': _usage(answer)})}\n\n"


def _check(answer: str | Answer | Refusal) -> None:
    """Raise the ApiError that a refusal is."""
    if isinstance(answer, Refusal):
        raise ApiError(answer.status, answer.message)


def _completion(model: str, answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    return {
        "id": _id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
        ],
        "usage": _usage(answer),
    }


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "causalmm"}


def _error(error: ApiError) -> Response:
    return JSONResponse(error.body(), status_code=error.status)


def _id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
