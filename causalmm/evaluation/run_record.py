"""run.json: what the answers beside it were made with, so that a run is repeated, or refused.

Settings decide the answers: a run goes on only with the same ones. The rest is for the reader.
Tests: tests/evaluation/test_evaluation_run.py.
"""

import argparse
import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from causalmm.cli.request import Request, describe_preset
from causalmm.cli.sole_writer import SUFFIX
from causalmm.errors import RequestError
from causalmm.evaluation.records import Question
from causalmm.families import checkpoints
from causalmm.families.registry import find
from causalmm.inputs.json_lines import difference, read_bytes, to_object, write_json
from causalmm.inputs.messages import LIMITS

RECORD = "run.json"
_VERSIONS = ("causalmm", "torch", "torchvision", "transformers", "pillow")


def common_settings(
    benchmark: str, questions: Sequence[Question], request: Request, args: argparse.Namespace
) -> dict[str, Any]:
    """What answers depend on, the decoding apart. Raises RequestError for a device that is not
    there."""
    from causalmm.families.loading import find_device  # loads torch

    return {
        "benchmark": benchmark,
        "questions": len(questions),
        "questions_sha256": _digest(
            json.dumps([each.id, each.image, each.prompt, each.choices]) for each in questions
        ),
        "model": request.model,
        "revision": checkpoints.revision(request.source),
        "asked_dtype": args.dtype,
        "device": find_device(args.device).type,
        "attn": args.attn,
        **{name: request.limits.get(name) for name in LIMITS},
        "versions": {name: metadata.version(name) for name in _VERSIONS},
        "patched_files_sha256": _files_digest(find(request.family).patched_files()),
    }


def decoding_settings(request: Request, batch_size: int) -> dict[str, Any]:
    """What answers depend on besides."""
    config = request.config
    generation = {**request.sampling, "max_new_tokens": request.max_new_tokens}
    if request.sampling["do_sample"]:
        # What is drawn for a question depends on those that are asked with it.
        generation["batch_size"] = batch_size
    if request.logits_processor is not None:
        generation["logits_processor"] = request.logits_processor
    return {
        "causalmm": None if config is None else config.to_dict(),
        "preset": describe_preset(request),
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
        # What `generate` follows where the settings say nothing else.
        "generation_config": model.generation_config.to_diff_dict(),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "git_commits": [commit] if (commit := git_commit()) else [],
    }


def read_record(folder: Path) -> dict[str, Any]:
    """What a run was made with; empty where there is no run.json."""
    path = folder / RECORD
    return to_object(read_bytes(path)) if path.is_file() else {}


def check_record(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Raise RequestError where a folder holds another run's answers, or anything else."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file, expected a folder")
    if not (folder / RECORD).exists():
        # A process killed before it began has left its lock.
        if folder.exists() and any(each.suffix != SUFFIX for each in folder.iterdir()):
            raise RequestError(
                f"{folder} holds files but no {RECORD}: give a new folder or one of this command's"
            )
    elif (what := difference(read_record(folder), wanted)) is not None:
        raise RequestError(f"{folder} was begun with other settings ({what}): give another folder")


def write_record(folder: Path, wanted: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Write run.json; where it is there, only a commit that is new is added to it."""
    there = read_record(folder)
    record = there or {**wanted, **others}
    known = record.get("git_commits", [])
    new = [commit for commit in others["git_commits"] if commit not in known]
    if new or not there:
        write_json(folder / RECORD, record | {"git_commits": [*known, *new]})


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


def _files_digest(files: Sequence[Path]) -> str:
    """SHA-256 of a file, or of a list of the names of several with theirs."""
    digests = [hashlib.sha256(read_bytes(file)).hexdigest() for file in files]
    if len(files) == 1:
        return digests[0]
    return _digest(f"{digest}  {file.name}" for digest, file in zip(digests, files, strict=True))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
