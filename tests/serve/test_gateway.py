"""What went wrong on Ray's side becomes a status and a sentence."""

import asyncio

import pytest

from causalmm.serve.errors import ApiError

pytestmark = pytest.mark.slow


class Broken:
    """A handle of Ray's whose calls raise an error."""

    def __init__(self, error):
        self.error = error
        self.ask = self.stream = self

    def options(self, stream):
        assert stream
        return self

    def remote(self, question):
        async def fail():
            raise self.error

        async def fail_at_once():
            raise self.error
            yield

        return fail_at_once() if question == "stream" else fail()


def test_errors_of_ray_are_told_in_a_sentence():
    # Here, because they take seconds to import.
    from ray.exceptions import ActorDiedError, GetTimeoutError
    from ray.serve.exceptions import BackPressureError

    from causalmm.serve.gateway import _Handle

    for error, sentence in (
        (ActorDiedError(), "the model's process ended while it answered; ask again"),
        (BackPressureError(5, 4), "too many requests wait already; ask again later"),
        (GetTimeoutError(), "the model cannot be reached; ask again later"),
    ):
        handle = _Handle(Broken(error))

        async def stream(handle=handle):
            async for _ in handle.stream("stream"):
                pass

        for asked in (lambda handle=handle: handle.ask("ask"), stream):
            with pytest.raises(ApiError, match=sentence) as told:
                asyncio.run(asked())
            assert told.value.status == 503
