"""Write prepared data into a folder: question files, pictures.json and manifest.json.

manifest.json says what the files were made of and holds their digests; it is written first, without
pictures, and whole at the end. Tests: tests/evaluation/test_data_command.py.
"""

import hashlib
import io
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from causalmm.cli.sole_writer import SUFFIX
from causalmm.errors import RequestError
from causalmm.evaluation.data.prepared import Place, Prepared, listed
from causalmm.evaluation.data.sources import Source
from causalmm.inputs.json_lines import read_bytes, read_json, write_json, write_whole
from causalmm.inputs.stored_pictures import INDEX

MANIFEST = "manifest.json"
_SHOWN = 10
"""Of pictures that cannot be read, so many get a sentence of their own."""


class Pictures(NamedTuple):
    """What the pictures of the questions are."""

    sha256: str
    """Of the lines "SHA-256  name" of all that are there, in the order of their names: the same for
    the same pictures wherever they lie."""
    there: list[str]
    missing: list[str]
    bad: list[str]
    """Sentences on what is there and is no picture."""

    @property
    def problems(self) -> list[str]:
        """What is wrong with them, in sentences."""
        total = len(self.there) + len(self.missing) + len(self.bad)
        said = []
        if self.missing:
            said = [f"{len(self.missing)} of {total} pictures are missing: {listed(self.missing)}"]
        said += self.bad[:_SHOWN]
        if (more := len(self.bad) - _SHOWN) > 0:
            said.append(f"{more} more pictures cannot be read")
        return said


def check_out(out: Path, benchmark: str, sources: Sequence[Source]) -> None:
    """Raise RequestError for a folder that is not ours to write into."""
    for source in sources:
        if out.resolve().is_relative_to(source.folder.resolve()):
            raise RequestError(f"--out {out} lies in --source {source.name}: give another folder")
    file = out / MANIFEST
    if not file.exists():
        if any(each.suffix != SUFFIX for each in out.iterdir()):
            raise RequestError(f"--out {out} holds other files: give a new folder")
        return
    written = read_json(file)
    if not isinstance(written, dict) or written.get("benchmark") != benchmark:
        raise RequestError(f"--out {out} was not written by `causalmm data {benchmark}`")


def write_files(out: Path, benchmark: str, files: Mapping[str, bytes]) -> None:
    """Write question files, where a finished manifest has no others.

    Raises RequestError where it has: runs may have been made with them.
    """
    manifest = out / MANIFEST
    if manifest.exists() and "pictures" in read_json(manifest):
        for name, data in files.items():
            if (out / name).exists() and (old := read_bytes(out / name)) != data:
                lines = enumerate(zip_longest(old.split(b"\n"), data.split(b"\n")), 1)
                number = next(number for number, (one, other) in lines if one != other)
                raise RequestError(
                    f"{out / name} holds other questions (first: line {number}): give a new folder"
                )
    else:
        write_json(manifest, {"benchmark": benchmark})
    for name, data in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(out / name, data)


def check_pictures(wanted: Sequence[str], places: Mapping[str, Place]) -> Pictures:
    """Read every picture that is asked about, with a progress bar; that it can be decoded to its
    end is not looked at."""
    digests, missing, bad = {}, [], []
    by_place = sorted(wanted, key=lambda name: _order(places.get(name)))
    for name in tqdm(by_place, unit="picture", desc="pictures", file=sys.stderr):
        if (place := places.get(name)) is None:
            missing.append(name)
            continue
        try:
            content = place.read()
            _check_picture(content)
        except FileNotFoundError:
            missing.append(name)
        except (RequestError, OSError, Image.DecompressionBombError) as error:
            where = place.source if isinstance(place.source, Path) else place.source.path
            said = str(error) if isinstance(error, RequestError) else f"{where}: {error}"
            bad.append(f"{name} cannot be read: {said}")
        else:
            digests[name] = hashlib.sha256(content).hexdigest()
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return Pictures(
        hashlib.sha256(lines.encode()).hexdigest(), sorted(digests), sorted(missing), sorted(bad)
    )


def write_index(out: Path, names: Sequence[str], places: Mapping[str, Place]) -> None:
    """Write pictures.json, see `causalmm.inputs.stored_pictures`."""
    used = {name: places[name] for name in names}
    files = [place.source for place in used.values() if isinstance(place.source, Path)]
    folder = Path(os.path.commonpath([each.parent for each in files])) if files else None
    sources: list[dict[str, Any]] = []
    numbers: dict[Any, int] = {}
    index = {}
    for name, place in used.items():
        if isinstance(place.source, Path):
            key, row = folder, place.source.relative_to(folder).as_posix()
            source = {"path": str(folder)}
        else:
            key, row = (place.source.path, place.column), place.row
            size = place.source.path.stat().st_size
            source = {"path": str(place.source.path), "column": place.column, "bytes": size}
        if key not in numbers:
            numbers[key] = len(sources)
            sources.append(source)
        index[name] = [numbers[key], row]
    text = json.dumps({"sources": sources, "pictures": index}, ensure_ascii=False)
    write_whole(out / INDEX, text.encode())


def write_manifest(
    out: Path,
    benchmark: str,
    sources: Sequence[Source],
    prepared: Prepared,
    pictures: Pictures,
) -> None:
    """Write manifest.json whole: that all is there which can be."""
    write_json(
        out / MANIFEST,
        {
            "benchmark": benchmark,
            "sources": [
                {"name": each.name, "folder": str(each.folder), "revision": each.revision}
                for each in sources
            ],
            "questions": dict(prepared.counts),
            "files_sha256": {
                name: hashlib.sha256(data).hexdigest() for name, data in prepared.files.items()
            },
            "pictures": len(pictures.there),
            "pictures_sha256": pictures.sha256,
            "missing_pictures": pictures.missing,
            "problems": [*prepared.problems, *pictures.problems],
        },
    )


def _check_picture(content: bytes) -> None:
    """Raise OSError for what Pillow does not know as a picture."""
    with warnings.catch_warnings(action="ignore"):
        try:
            Image.open(io.BytesIO(content)).close()
        except Image.UnidentifiedImageError:
            raise OSError("is not an image that Pillow can read") from None


def _order(place: Place | None) -> tuple[str, int]:
    if place is None:
        return "", 0
    return str(getattr(place.source, "path", place.source)), place.row
