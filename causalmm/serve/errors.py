"""What a client is told in the place of an answer: a status and one sentence, in OpenAI's form."""

from typing import Any

INVALID = "invalid_request_error"
SERVER = "server_error"
FAILED = "the service failed to answer this request"
"""All that is told of a fault of our own."""


class ApiError(Exception):
    """A request that is not answered. `param` names the part of the body that is at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = " ".join(message.split())
        self.param = param
        self.code = code
        self.type = type or (INVALID if status < 500 else SERVER)

    def body(self) -> dict[str, Any]:
        """The object that is sent."""
        names = ("message", "type", "param", "code")
        return {"error": {name: getattr(self, name) for name in names}}
