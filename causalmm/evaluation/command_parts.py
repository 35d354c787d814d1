"""What the commands `evaluate` and `diagnose` have in common.

Held by tests/evaluation/test_evaluation_run.py and tests/evaluation/test_diagnose.py.
"""

from collections.abc import Sequence
from pathlib import Path

from causalmm.cli.terminal import tell
from causalmm.errors import RequestError
from causalmm.evaluation.records import Question

BATCH_SIZE = {
    "default": 8,
    "help": "questions at a time; those about one image share its work (default: %(default)s)",
}
"""For `add_batch_size`."""
SMALLER = "a smaller --batch-size, fewer --draws, --dtype bfloat16 or another --device"
"""What helps where memory ran out."""


def check_images(questions: Sequence[Question]) -> None:
    """Say how many of their images are missing. Raises RequestError where none is there."""
    paths = list(dict.fromkeys(question.path for question in questions))
    missing = [path for path in paths if not Path(path).is_file()]
    if len(missing) == len(paths):
        raise RequestError(f"none of the {len(paths)} images is there (first: {paths[0]})")
    if missing:
        tell(f"{len(missing)} of {len(paths)} images are missing (first: {missing[0]})")
