"""What a command tells its user in one sentence, and the exit code that goes with it.

A `RequestError` was found before any work: change the request. A `FailureError` came up while doing
what was asked. Anything else that escapes is a bug and keeps its traceback.
"""


class RequestError(ValueError):
    """What was asked for cannot be done: exit code 2."""


class FailureError(RuntimeError):
    """A proper request failed: exit code 1."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the machine ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # Told by their words: besides torch.OutOfMemoryError, some backends and the CPU's allocator
    # raise a plain RuntimeError.
    words = ("out of memory", "can't allocate memory", "Cannot allocate memory")
    return any(each in str(error) for each in words)


def first_line(error: BaseException) -> str:
    """The start of an error's message, for a sentence that quotes it."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
