"""What a command says, and the exit code it ends with.

Standard error is for what concerns the user; standard output is for answers alone.
Tests: tests/cli/test_generate_command.py and tests/cli/test_entry_points.py.
"""

import os
import sys
import warnings
from collections.abc import Callable
from typing import TextIO

from causalmm.errors import FailureError, RequestError

# 128 + the signal, as a shell reports it.
INTERRUPTED = 130
PIPE_CLOSED = 141


def tell(text: str) -> None:
    """A line to standard error."""
    print(text, file=sys.stderr, flush=True)


def complain(sentence: str) -> None:
    """What is wrong, in one line on standard error."""
    tell(f"error: {' '.join(sentence.split())}")


def exit_code(run: Callable[[], int | None]) -> int:
    """Of a command: what `run` returns, or 0 for None; 2 for a wrong request, 1 for a failure, 130
    when interrupted, each said in one line on standard error; 141, and not a word, where whoever
    read the output has closed it. Every entry point ends here.
    """
    try:
        try:
            return _said(run)
        finally:
            # Also where the parser leaves by SystemExit. Were it left to the interpreter's exit,
            # nothing could be done about an output that cannot be written.
            for stream in _streams():
                stream.flush()
    except OSError as error:
        _drop_unwritable()
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        if error.strerror is None:  # not the system's
            complain(str(error))
        elif error.filename is None:
            complain(f"the output cannot be written ({error.strerror})")
        else:
            complain(f"{error.filename} cannot be read or written ({error.strerror})")
        return 1


def _said(run: Callable[[], int | None]) -> int:
    try:
        return run() or 0
    except RequestError as error:
        complain(str(error))
        return 2
    except FailureError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED


def _drop_unwritable() -> None:
    """Whatever a standard stream still holds and cannot write goes nowhere: the interpreter would
    try again at exit, fail and say so."""
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def _streams() -> list[TextIO]:
    """Standard output and error, as far as the process has been given them."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def quiet_hub() -> None:
    """Leave it to us to say what a hub says."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()


def quiet_transformers() -> None:
    """Drop the warnings and progress bars of transformers and what it uses."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
