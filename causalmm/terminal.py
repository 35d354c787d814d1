"""Standard error is for what concerns the user; standard output is for answers alone.

Held by tests/test_generate_command.py.
"""

import sys
import warnings


def tell(text: str) -> None:
    """A line to standard error."""
    print(text, file=sys.stderr, flush=True)


def complain(sentence: str) -> None:
    """What is wrong, in one line on standard error."""
    tell(f"error: {' '.join(sentence.split())}")


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
