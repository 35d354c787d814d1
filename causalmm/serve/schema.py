"""The body of a chat completion, in OpenAI's form; what it may hold is declared here.

A field of OpenAI's that the service does not have may be there with the value that changes
nothing. Everything else that is not declared is refused, never ignored.
Tests: tests/serve/test_schema.py.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from causalmm.serve.errors import ApiError

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
"""Of what is not supported, the values that ask for nothing; null is one of each."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Strict):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where a picture is: a data: address or, if allowed, one on the network."""

    url: str
    detail: Literal["auto"] = "auto"


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _parts(content: Any) -> Any:
    """Text as the list of one part that it stands for."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatMessage(_Strict):
    """A turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_parts), Field(min_length=1)]


class StreamOptions(_Strict):
    """What a stream says besides the answer."""

    include_usage: bool = False


def _stops(stop: Any) -> Any:
    """One text, or none, as a list."""
    return [] if stop is None else [stop] if isinstance(stop, str) else stop


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]],
        BeforeValidator(_stops),
        Field(max_length=4),
    ] = []
    user: str | None = None
    """Who asks; nothing depends on it."""
    causalmm: dict[str, Any] | None = None
    """Settings of `CausalMMConfig`, and `preset`, over those of the checkpoint."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        kept = {}
        for name, value in body.items():
            if name not in NEUTRAL:
                kept[name] = value
            elif value is not None and not any(_same(value, each) for each in NEUTRAL[name]):
                raise ApiError(
                    400,
                    f"{name} is not supported: expected {json.dumps(NEUTRAL[name][0])} or nothing",
                    param=name,
                    code="unsupported",
                )
        return kept

    @model_validator(mode="after")
    def _check_together(self) -> "ChatRequest":
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ApiError(
                400,
                "max_tokens and max_completion_tokens differ: expected one of them",
                param="max_tokens",
            )
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")
        return self

    @property
    def token_limit(self) -> int | None:
        """How long an answer may be, if the request says so."""
        given = self.max_tokens
        return self.max_completion_tokens if given is None else given


def parse_body(body: bytes) -> ChatRequest:
    """The request in a JSON text. Raises ApiError, 400, in a sentence that names what is wrong."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(map(str, first["loc"]))
    message = first["msg"].rstrip(".")
    raise ApiError(400, f"{param}: {message}" if param else message, param=param or None)


def _same(value: Any, other: Any) -> bool:
    """Equal, and no number for a truth value."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
