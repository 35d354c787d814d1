"""The ingress on Ray Serve: reads requests, and hands them to the replicas of the model.

Tests: tests/serve/test_service.py.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from causalmm.cli.request import Request
from causalmm.serve.answers import Answer, Refusal
from causalmm.serve.errors import ApiError
from causalmm.serve.http import build_app
from causalmm.serve.options import ServeOptions
from causalmm.serve.question import Question, Reader

APP = "causalmm"
MODEL = "Model"
"""Names of the application, and of the deployment of the model."""


@serve.ingress()
class Gateway:
    """The FastAPI app of the service. For `serve.deployment`."""

    def __init__(self, model: Any, request: Request, options: ServeOptions) -> None:
        self.models, self.request, self.options = _Handle(model), request, options

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Ray after the constructor."""
        return build_app(self.options, Reader(self.request, self.options), self.models)


class _Handle:
    """`http.Models` over a handle of Ray's: what went wrong there becomes one sentence."""

    def __init__(self, model: Any) -> None:
        self._model = model

    async def ask(self, question: Question) -> Answer | Refusal:
        try:
            return await self._model.ask.remote(question)
        except (RayError, BackPressureError, DeploymentUnavailableError) as error:
            raise _unavailable(error) from error

    async def stream(self, question: Question) -> AsyncIterator[str | Answer | Refusal]:
        try:
            async for piece in self._model.options(stream=True).stream.remote(question):
                yield piece
        except (RayError, BackPressureError, DeploymentUnavailableError) as error:
            raise _unavailable(error) from error

    async def replicas(self) -> int:
        """Asks Ray's controller."""
        status = await asyncio.to_thread(serve.status)
        return status.applications[APP].deployments[MODEL].replica_states.get("RUNNING", 0)


def _unavailable(error: Exception) -> ApiError:
    if isinstance(error, BackPressureError):
        return ApiError(503, "too many requests wait already; ask again later", code="overloaded")
    if isinstance(error, (RayActorError, DeploymentUnavailableError)):
        return ApiError(
            503, "the model's process ended while it answered; ask again", code="replica_lost"
        )
    return ApiError(503, "the model cannot be reached; ask again later")
