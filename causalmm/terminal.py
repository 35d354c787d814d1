"""What a command says, and the exit code it ends with.

Standard error is for what concerns the user; standard output is for answers alone.
Held by tests/test_generate_command.py.
"""

import sys
import warnings
from collections.abc import Callable

from causalmm.errors import FailureError, RequestError

INTERRUPTED = 130  # 128 + the signal, as a shell reports it


def tell(text: str) -> None:
    """A line to standard error."""
    print(text, file=sys.stderr, flush=True)


def complain(sentence: str) -> None:
    """What is wrong, in one line on standard error."""
    tell(f"error: {' '.join(sentence.split())}")


def exit_code(run: Callable[[], None]) -> int:
    """Of a command: 0, 2 for a wrong request, 1 for a failure, 130 when interrupted; said in one
    line on standard error."""
    try:
        run()
    except RequestError as error:
        complain(str(error))
        return 2
    except FailureError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    return 0


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
