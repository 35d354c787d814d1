"""`diagnose --center`: what the contrast with each branch of one configuration is on average.

Questions need no right answers. Each is answered plainly, with the branches looking on: at the
token that decides a two-way answer, or at every token of free text, the difference between factual
and branch logits is added up. The mean over all of them is the file that the setting `center`
names, and how much they differ from it says whether a branch is a constant one (lean.py). The token
after the first follows the plain answer, not the adjusted one. Sums are kept in FILE.partial as it
goes: the same command again goes on after an interruption. Exit codes are those of `diagnose`.
Tests: tests/evaluation/test_diagnose_center.py.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalmm.cli import flags
from causalmm.cli.request import Request, find_model
from causalmm.cli.session import Session, memory_guard
from causalmm.cli.sole_writer import sole_writer
from causalmm.cli.terminal import exit_code, tell
from causalmm.config import CENTERING, CONFIG_NAME, CausalMMConfig
from causalmm.errors import FailureError, RequestError
from causalmm.evaluation import run_record
from causalmm.evaluation.benchmarks.pope import SUFFIX
from causalmm.evaluation.benchmarks.yes_no import CHOICES
from causalmm.evaluation.question_files import check_images, field, limited, with_pictures
from causalmm.evaluation.question_flags import BATCH_SIZE
from causalmm.evaluation.records import Question
from causalmm.evaluation.report import text_table
from causalmm.inputs.json_lines import read_bytes, read_json_lines, write_whole

if TYPE_CHECKING:  # it loads torch
    from causalmm.evaluation.diagnosis.lean import Lean

FLAG = "--center"
_NEVER_SURE = 1e-12
"""No best token of a vocabulary is so improbable: `confident` at this keeps every branch from
acting, so that the answer is the plain one."""


def main(argv: Sequence[str], *, prog: str | None = None) -> int:
    """Run the command and return its exit code; `prog` is its name in messages."""
    return exit_code(lambda: run(parse_args(argv, prog)))


def asks_for_center(argv: Sequence[str]) -> bool:
    """Whether a command line of `diagnose` is one of these."""
    return any(each == FLAG or each.startswith(f"{FLAG}=") for each in argv)


def parse_args(argv: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Flags as given. Raises RequestError for flags that cannot be read."""
    parser = flags.Parser(
        prog=prog,
        description="What does a branch do whatever the picture? Estimates the mean contrast with "
        "each branch of one configuration, for the setting `center`, and tells constant branches.",
        epilog=flags.SETTINGS_EPILOG + " The same command again goes on after an interruption.",
    )
    parser.add_argument(FLAG, dest="file", type=Path, required=True, metavar="FILE",
                        help="the .safetensors file to write")  # fmt: skip
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FOLDER",
        help=f"write the configuration with this center as {CONFIG_NAME} into it",
    )
    flags.add_model(parser)
    flags.add_pixel_limits(parser)
    group = parser.add_argument_group("questions, without right answers")
    group.add_argument("--questions", type=Path, nargs="+", required=True, metavar="FILE",
                       help="JSON lines with image and text (or prompt)")  # fmt: skip
    group.add_argument("--images", type=Path, default=Path("."), metavar="FOLDER",
                       help="where the images lie")  # fmt: skip
    group.add_argument("--suffix", metavar="TEXT",
                       help=f'put after every question (default: "{SUFFIX}", none with '
                       "--free-text)")  # fmt: skip
    kind = group.add_mutually_exclusive_group()
    kind.add_argument("--choices", nargs=2, default=CHOICES, metavar=("FIRST", "SECOND"),
                      help=f"the two answers (default: {' '.join(CHOICES)})")  # fmt: skip
    kind.add_argument("--free-text", action="store_true",
                      help="answers are free text: the mean over all of their tokens")  # fmt: skip
    group.add_argument("--limit", type=flags.at_least(1), metavar="N",
                       help="ask about the first N images only")  # fmt: skip
    flags.add_settings(parser, without=CENTERING)
    parser.set_defaults(**dict.fromkeys(CENTERING))  # a checkpoint's are not what is looked at
    flags.add_max_new_tokens(parser, 64, "of a plain answer")
    flags.add_running(parser)
    flags.add_batch_size(parser, **BATCH_SIZE)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Estimate, write the file and, if asked, a configuration, and print how branches lean.

    Raises RequestError for what cannot be estimated, FailureError where something goes wrong.
    """
    if args.file.suffix != ".safetensors":
        raise RequestError(f"--center {args.file}: expected a .safetensors file")
    folder = [] if args.write is None else [args.write / CONFIG_NAME]
    for there in (args.file, *folder):
        if there.exists():
            raise RequestError(f"{there} is there already: give another name")
    questions = limited(read_questions(args), args.limit)
    check_images(questions)
    request = find_model(args)
    config = request.config
    if config is None:
        raise RequestError("--center needs a mode other than plain")
    request = request._replace(config=watching(config), sampling={"do_sample": False})
    settings = run_record.common_settings("center", questions, request, args)
    settings |= run_record.decoding_settings(request, args.batch_size)
    settings["batch_size"] = args.batch_size
    with sole_writer(args.file), memory_guard():
        about = _estimate(args, questions, request, settings)
    if args.write is not None:
        config = replace(
            config,
            center=args.file,
            center_sha256=sha256(read_bytes(args.file)).hexdigest(),
            constant_branch=about["constant_branch"],
        )
        tell(f"wrote {config.save_pretrained(args.write)}")


def read_questions(args: argparse.Namespace) -> list[Question]:
    """Those of the files; raises RequestError for one that cannot be read or holds none."""
    choices = None if args.free_text else tuple(each.lower() for each in args.choices)
    suffix = args.suffix
    if suffix is None:
        suffix = "" if args.free_text else SUFFIX
    found = []
    for file in dict.fromkeys(args.questions):
        for number, row in read_json_lines(file):
            where = f"{file} line {number}"
            image = field(row, "image", where)
            found.append(
                Question(
                    id=f"{file}:{number}",
                    image=image,
                    path=str(args.images / image),
                    prompt=field(row, "text" if "text" in row else "prompt", where) + suffix,
                    choices=choices,
                )
            )
    if not found:
        raise RequestError(f"{args.questions[0]} holds no questions")
    return with_pictures(found, [args.images])


def watching(config: CausalMMConfig) -> CausalMMConfig:
    """The same branches, which never act: the answer is the plain model's, logit by logit."""
    return replace(
        config,
        schedule="constant",
        confident=_NEVER_SURE,
        epsilon=0,
        **dict.fromkeys(CENTERING),
    )


def _estimate(
    args: argparse.Namespace,
    questions: Sequence[Question],
    request: Request,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Ask what is not asked yet, write the file and print; returns what the file says of itself."""
    from causalmm.decoding.center import branch_settings, center_bytes
    from causalmm.evaluation.diagnosis.center_progress import Progress

    partial = args.file.with_name(f"{args.file.name}.partial")
    progress = Progress.read(partial, settings)
    session = Session.start(args, request)
    plan = session.model.causalmm_plan(request.config)
    if plan is None or plan.branches == 1:
        raise RequestError("gamma 0 leaves no branch to look at: expected a number > 0")
    progress.ask(session, questions, args.batch_size)
    if not progress.contrasts.steps:
        first = next(iter(progress.failed.values()))
        raise FailureError(f"no question could be asked (first: {first})")
    branches = branch_settings(plan)
    leans = {name: progress.contrasts.lean(name) for name in branches}
    constant = min(leans, key=lambda name: leans[name].ratio)
    about = {
        "settings": branches,
        "run": settings,
        **run_record.surroundings(args.questions, session.model),
        "answers": "free text" if args.free_text else "two-way",
        "questions": len(progress.done) - len(progress.failed),
        "steps": progress.contrasts.steps,
        "leans": {name: {"mean": each.mean, "spread": each.spread} for name, each in leans.items()},
        "constant_branch": constant if leans[constant].constant else None,
    }
    means = {name: progress.contrasts.mean(name) for name in branches}
    write_whole(args.file, center_bytes(means, about))
    partial.unlink(missing_ok=True)
    print(_table(about, leans, progress.failed), flush=True)
    tell(f"wrote {args.file}")
    return about


def _table(about: Mapping[str, Any], leans: "Mapping[str, Lean]", failed: Mapping[str, str]) -> str:
    rows = [
        [name, f"{lean.mean:+.3f}", f"{lean.spread:.3f}", f"{lean.ratio:.2f}"]
        for name, lean in leans.items()
    ]
    what = "log-odds of the first answer" if about["answers"] == "two-way" else "logits"
    blocks = [
        f"{about['questions']} questions, {about['steps']} tokens: what the contrast with a branch "
        f"adds to the {what}, and how much of it only this picture and question tell",
        text_table(["branch", "mean", "spread", "spread / mean"], rows),
    ]
    for name, lean in leans.items():
        if lean.constant:
            blocks.append(
                f"the {name} branch is a constant one: the contrast with it does little but lean, "
                "whatever the picture and the question"
            )
    if failed:
        name, error = next(iter(failed.items()))
        blocks.append(f"{len(failed)} questions failed (first: {name}, {error!r})")
    return "\n\n".join(blocks)
