"""Where the weights of a folder or hub id are. Held by tests/families/test_authors_format.py."""

from typing import Any

from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from causalmm.families.checkpoints import WEIGHTS, no_weights


def find_file(source: str, name: str, **hub: Any) -> str | None:
    """The path of a file of a folder or hub id; None where it has none."""
    return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)


def weight_files(source: str, **hub: Any) -> list[str]:
    """The paths of all files of weights, those that transformers would take.

    Raises RequestError where there are none.
    """
    for name in WEIGHTS:
        if (path := find_file(source, name, **hub)) is None:
            continue
        if not name.endswith(".json"):
            return [path]
        return get_checkpoint_shard_files(source, path, **hub)[0]
    raise no_weights(source, lambda file: find_file(source, file, **hub) is not None)
