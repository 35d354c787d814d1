"""Where a benchmark's data come from: a folder, or a data set of the hub in the local cache.

Only `find` with `download` fetches anything; no other function of the project asks the hub for a
data set. Tests: tests/evaluation/test_data_sources.py.
"""

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from causalmm.errors import FailureError, RequestError, first_line
from causalmm.inputs.parquet import ParquetTable

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PICTURES = (".jpg", ".jpeg", ".png")


class Source:
    """The files of a folder, or of a snapshot of a data set."""

    def __init__(self, name: str, folder: Path, revision: str | None = None) -> None:
        """`name` is as given, `revision` the commit of a data set."""
        self.name, self.folder, self.revision = name, folder, revision

    @cached_property
    def files(self) -> list[Path]:
        """All files at any depth, in the order of their names."""
        found = (
            Path(folder) / name
            for folder, _, names in os.walk(self.folder, followlinks=True)
            for name in names
        )
        return sorted(found)

    def named(self, pattern: str) -> list[Path]:
        """Files whose whole name is matched by a regular expression, in capitals or not."""
        return [each for each in self.files if re.fullmatch(pattern, each.name, re.IGNORECASE)]

    @cached_property
    def tables(self) -> list[ParquetTable]:
        """Its parquet files."""
        return [ParquetTable(each) for each in self.named(r".+\.parquet")]

    @cached_property
    def pictures(self) -> dict[str, Path]:
        """Picture files by their names; of two with one name, the first."""
        found: dict[str, Path] = {}
        for each in self.files:
            if each.suffix.lower() in PICTURES:
                found.setdefault(each.name, each)
        return found


def find(
    given: str, patterns: Sequence[str], *, revision: str | None = None, download: bool = False
) -> Source:
    """A folder, or the files of a data set that match `patterns` (as of a shell).

    A data set is taken from the local cache; `download` fetches what is not there, and goes on
    where a download stopped. Raises RequestError for a name that is neither, or a data set that is
    not in the cache, FailureError where the hub cannot be read.
    """
    if Path(given).is_dir():
        if revision is not None:
            raise RequestError(f"--revision {revision}: {given} is a folder, which has none")
        return Source(given, Path(given).absolute())
    if not _HUB_ID.fullmatch(given):
        raise RequestError(
            f"there is no folder {given}: expected a folder, or a data set of the hub such as "
            "lmms-lab/POPE"
        )
    # Imported here: folders need none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            given,
            repo_type="dataset",
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=not download,
        )
    except LocalEntryNotFoundError as error:
        if download:
            raise FailureError(f"{given} is not here, and the hub cannot be reached") from error
        raise RequestError(
            f"{given} is neither a folder nor a data set in the local cache: give --download to "
            "fetch it, or the folder where it lies"
        ) from None
    except GatedRepoError:
        raise RequestError(f"{given} asks for access: request it on its hub page") from None
    except RepositoryNotFoundError:
        raise RequestError(f"{given} is neither a folder nor a data set on the hub") from None
    except RevisionNotFoundError:
        raise RequestError(f"{given} has no revision {revision!r}") from None
    except OSError as error:
        raise FailureError(f"{given} cannot be fetched ({first_line(error)})") from error
    # Snapshots lie in folders named by their commits.
    return Source(given, Path(folder), Path(folder).name)
