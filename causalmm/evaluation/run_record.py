"""run.json: what the answers beside it were made with, so that a run is repeated, or refused.

Settings decide the answers: a run goes on only with the same ones. The rest is for the reader.
Held by tests/evaluation/test_evaluation_run.py.
"""

import argparse
import hashlib
import json
import subprocess
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from causalmm.cli.json_lines import difference, read_bytes, to_object, write_whole
from causalmm.cli.request import Request
from causalmm.cli.sole_writer import SUFFIX
from causalmm.errors import RequestError
from causalmm.evaluation.records import Question
from causalmm.families import checkpoints
from causalmm.inputs.messages import LIMITS

RECORD = "run.json"
_VERSIONS = ("causalmm", "torch", "torchvision", "transformers", "pillow")


def common_settings(
    benchmark: str,
    questions: Sequence[Question],
    request: Request,
    args: argparse.Namespace,
    device: str,
) -> dict[str, Any]:
    """What answers depend on and all ways of answering share. `device` is its kind: cpu, cuda."""
    return {
        "benchmark": benchmark,
        "questions": len(questions),
        "questions_sha256": _digest(
            json.dumps([each.id, each.image, each.prompt, each.choices]) for each in questions
        ),
        "model": request.model,
        "revision": checkpoints.revision(request.source),
        "asked_dtype": args.dtype,
        "device": device,
        "attn": args.attn,
        **{name: request.limits.get(name) for name in LIMITS},
        "versions": {name: metadata.version(name) for name in _VERSIONS},
        "patched_files_sha256": _patched_files(request.family),
    }


def way_settings(request: Request, batch_size: int) -> dict[str, Any]:
    """What answers depend on besides."""
    config = request.config
    generation = {**request.sampling, "max_new_tokens": request.max_new_tokens}
    if request.sampling["do_sample"]:
        # What is drawn for a question depends on those that are asked with it.
        generation["batch_size"] = batch_size
    return {
        "causalmm": None if config is None else config.to_dict(),
        "generation": generation,
        "seed": request.seed,
    }


def surroundings(sources: Sequence[Path], model: Any) -> dict[str, Any]:
    """What else a reader may want to know."""
    import torch

    device = model.device
    return {
        "question_files": [str(path) for path in sources],
        "question_files_sha256": _files_digest(sources),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "git_commits": [commit] if (commit := git_commit()) else [],
    }


def check_record(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise RequestError where a folder holds another run's answers, or anything else."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file, expected a folder")
    path = folder / RECORD
    if not path.exists():
        # A process killed before it began has left its lock.
        if folder.exists() and any(each.suffix != SUFFIX for each in folder.iterdir()):
            raise RequestError(
                f"{folder} holds files but no {RECORD}: give a new folder or one of this command's"
            )
        return
    if (what := difference(to_object(read_bytes(path)), wanted)) is not None:
        raise RequestError(f"{folder} was begun with other settings ({what}): give another folder")


def write_record(folder: Path, wanted: dict[str, Any], others: dict[str, Any]) -> None:
    """Write run.json; where it is there, only a commit that is new is added to it."""
    path = folder / RECORD
    record = to_object(read_bytes(path)) if path.exists() else {**wanted, **others}
    known = record.setdefault("git_commits", [])
    known += [commit for commit in others["git_commits"] if commit not in known]
    data = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
    if not path.exists() or path.read_bytes() != data:
        write_whole(path, data)


def git_commit() -> str | None:
    """The commit of this checkout, "-dirty" behind it where files differ; None outside of one."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # Installed somewhere inside another project, the commit would be that one's.
    if git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return None
    return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def _patched_files(family: str) -> str:
    """Of the modeling files as they are run: upstream's with the patches."""
    package = import_module(checkpoints.FAMILIES[family].package)
    return _files_digest(sorted(Path(package.__file__).parent.glob("modeling_*.py")))


def _files_digest(files: Sequence[Path]) -> str:
    """SHA-256 of a file, or of a list of the names of several with theirs."""
    digests = [hashlib.sha256(read_bytes(file)).hexdigest() for file in files]
    if len(files) == 1:
        return digests[0]
    return _digest(f"{digest}  {file.name}" for digest, file in zip(digests, files, strict=True))


def _digest(lines: Any) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
