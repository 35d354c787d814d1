"""The `diagnose` command: which layers should I edit?

It asks two-way questions under every tower, method, scope, choice of heads and layer window wanted,
ranks them and writes a table, two figures and, if asked, a configuration. Exit codes: 0, 2 for a
wrong request, 1 for a failure, 130 when interrupted. What was measured before an interruption is
not measured again.
Tests: tests/evaluation/test_diagnose.py.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from causalmm import extras
from causalmm.cli import flags
from causalmm.cli.request import Request, find_model
from causalmm.cli.session import Session, memory_guard
from causalmm.cli.sole_writer import sole_writer
from causalmm.cli.terminal import exit_code, tell
from causalmm.config import CENTERING, CONFIG_NAME, CausalMMConfig
from causalmm.counterfactual.methods import SCOPES
from causalmm.errors import FailureError, RequestError
from causalmm.evaluation import run_record
from causalmm.evaluation.benchmarks import pope, vlind
from causalmm.evaluation.benchmarks.yes_no import CHOICES
from causalmm.evaluation.diagnosis import center
from causalmm.evaluation.diagnosis.fluency import ANSWER_TOKENS, PROMPT, spread
from causalmm.evaluation.diagnosis.measurement import (
    DEFAULT_WINDOWS,
    MEASUREMENTS,
    METHODS,
    PLAIN,
    Candidate,
    Configuration,
    Measurement,
    candidates,
    measure,
    measurement_line,
    read_heads,
    read_kinds,
    read_measurements,
)
from causalmm.evaluation.diagnosis.report import ALL, RANKS, SETS, Diagnosis, diagnose, split
from causalmm.evaluation.question_files import check_images, check_unique, limited, with_pictures
from causalmm.evaluation.question_flags import BATCH_SIZE
from causalmm.evaluation.records import Question
from causalmm.heads import ALL as ALL_HEADS
from causalmm.heads import resolve_heads
from causalmm.inputs.json_lines import cut_torn_line, write_json

TABLE, PICTURE, SCOPES_PICTURE = "table.json", "heatmap.png", "scopes.png"
SHOWN = 12
"""How many windows are printed; all are in the table's file."""
_VARIED = (
    *("mode", "site", "gamma_vision", "gamma_language", "language_scope", "language_heads"),
    *(f"{tower}_{what}" for tower in METHODS for what in ("method", "layers")),
    *CENTERING,
)
"""Settings that a measurement has of its own."""
_UNUSED = ("noise_step", "preset")
"""What no measurement depends on."""
_BASE = tuple(each.name for each in fields(CausalMMConfig) if each.name not in (*_VARIED, *_UNUSED))


def main(argv: list[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command and return its exit code; `prog` is its name in messages."""
    argv = sys.argv[1:] if argv is None else argv
    if center.asks_for_center(argv):
        return center.main(argv, prog=prog)
    return exit_code(lambda: run(parse_args(argv, prog)))


def parse_args(argv: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Flags as given. Raises RequestError for flags that cannot be read."""
    parser = flags.Parser(
        prog=prog,
        description="Which layers should I edit? For each tower, method, scope, choice of heads "
        "and window of layers: what the counterfactual branch says alone at the first token, how "
        "fluent it is, how much of the image it reads, and what the adjusted model says with it. "
        "Windows are ranked on half of the images and reported on the other half.",
        epilog=f"The questions are asked {_default_number()} times by default, once for the plain "
        "model and once for each configuration. "
        f"--out gets {MEASUREMENTS}, {TABLE}, {PICTURE}, {SCOPES_PICTURE} and run.json. The same "
        "command again goes on after an interruption, and other towers, methods, scopes, heads and "
        "windows are added to what is there.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        center.FLAG,
        metavar="FILE",
        help="something else: estimate what the contrasts of one configuration are on average, "
        "from unlabelled questions; its flags: diagnose --center FILE --help",
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FOLDER",
        help=f"write the best configuration as {CONFIG_NAME} into it, if it gains on the half of "
        "the images that windows are ranked on",
    )
    flags.add_model(parser)
    flags.add_pixel_limits(parser)
    group = parser.add_argument_group("questions")
    pope.BENCHMARK.add_flags(group)
    group.add_argument(
        "--contradicting",
        type=Path,
        metavar="PATH",
        help="questions whose right answer contradicts the prior, the others being consistent with "
        "it: a file of POPE's form about --images, or VLind-Bench's data.json or its folder, of "
        "which the language-prior questions (LP) are taken",
    )
    group.add_argument(
        "--contradicting-label",
        choices=CHOICES,
        help="take only those with this right answer, as no of POPE's adversarial split; the rest "
        "counts as consistent if --questions has it",
    )
    group.add_argument(
        "--limit",
        type=flags.at_least(2),
        metavar="N",
        help="ask about the first N images of each set only",
    )
    edits = parser.add_argument_group("what is compared")
    every = dict.fromkeys(method for methods in METHODS.values() for method in methods)
    for flag, known, which in (
        ("towers", METHODS, ""),
        ("methods", every, "those that a tower has of "),
    ):
        edits.add_argument(
            f"--{flag}",
            nargs="+",
            choices=tuple(known),
            default=list(known),
            metavar=flag.removesuffix("s").upper(),
            help=f"(default: {which}{' '.join(known)})",
        )
    edits.add_argument(
        "--scopes",
        nargs="+",
        choices=SCOPES,
        default=list(SCOPES),
        metavar="SCOPE",
        help="of the decoder's methods, see language_scope; a method is left out under a scope "
        f"that it has no formula for (default: {' '.join(SCOPES)})",
    )
    edits.add_argument(
        "--heads",
        default=ALL_HEADS,
        metavar="LIST",
        help="of the decoder, with commas: all, or image:K, see language_heads "
        "(default: %(default)s)",
    )
    edits.add_argument(
        "--windows",
        default=",".join(DEFAULT_WINDOWS),
        metavar="LIST",
        help="with commas: all, halves, thirds, sliding:W (W layers at a time, from every layer "
        'on), sliding:W:S (from every S-th on), or slices such as "half:" and 10:20 '
        "(default: %(default)s)",
    )
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--rank",
        choices=tuple(RANKS),
        default="auc",
        help="what configurations are ranked by: AUC gained, which no lean can change, or accuracy "
        "gained (default: %(default)s)",
    )
    shown.add_argument(
        "--fluency",
        type=flags.at_least(0),
        default=16,
        metavar="N",
        help=f"perplexity, under each branch, of the plain model's {PROMPT!r} answers about N of "
        f"the images ({ANSWER_TOKENS} tokens at most) and of the texts of N questions without "
        "image, and the attention on image tokens meanwhile; 0: none (default: %(default)s)",
    )
    flags.add_settings(parser, without=(*_VARIED, *_UNUSED))
    parser.set_defaults(max_new_tokens=1, **dict.fromkeys(CENTERING))
    flags.add_running(parser)
    flags.add_batch_size(parser, **BATCH_SIZE)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measure what is not measured yet, then rank and report.

    Raises RequestError for what cannot be compared, FailureError where something goes wrong.
    """
    kinds, heads = read_kinds(args.windows), read_heads(args.heads)
    questions = asked(args)
    split(questions)  # what cannot be split is better told before it is measured
    request = find_model(args)
    base = request.config
    if base.gamma == 0:
        raise RequestError("gamma 0 leaves no branch to look at: expected a number > 0")
    if args.write is not None and (there := args.write / CONFIG_NAME).exists():
        raise RequestError(f"{there} is there already: give --write another folder")
    settings = run_record.common_settings("diagnose", questions, request, args)
    settings["base"] = {name: getattr(base, name) for name in _BASE}
    if args.fluency:  # runs of before there was any have none
        settings["fluency"] = args.fluency
    options = (args.towers, args.methods, kinds, args.scopes, heads, base.normalization)
    run_record.check_record(args.out, settings)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / MEASUREMENTS
    with sole_writer(file):
        run_record.check_record(args.out, settings)  # again: now no other process can begin
        cut_torn_line(file)
        measured = read_measurements(file, len(questions))
        # An earlier run of the command has left how many layers there are.
        record = run_record.read_record(args.out)
        layers = record.get("layers")
        full = record.get("full_vision_layers")
        wanted = layers and candidates(layers, *options, full_vision_layers=full)
        if not wanted or not {PLAIN, *(each.configuration for each in wanted)} <= measured.keys():
            with memory_guard():
                wanted = _measure(args, questions, request, settings, options, measured)
        found = diagnose(questions, measured, wanted, base.seed, args.rank)
        _report(args, found, wanted, request)
    if args.write is not None:
        _write_configuration(args.write, found, base)


def asked(args: argparse.Namespace) -> list[Question]:
    """The questions, each with its set in `facts`. Raises RequestError where there are none."""
    questions = limited(pope.BENCHMARK.questions(args), args.limit)
    if args.contradicting is None:
        questions = [_in_set(each, ALL) for each in questions]
    else:
        contradicting = limited(_contradicting(args), args.limit)
        if not contradicting:
            raise RequestError(f"{args.contradicting} has no question to be marked")
        # The file may be a part of the other one, which so marks its questions.
        marked = {(each.path, each.prompt) for each in contradicting}
        consistent = [each for each in questions if (each.path, each.prompt) not in marked]
        if not consistent:
            raise RequestError("--contradicting holds all of --questions: no other one is left")
        questions = [_in_set(each, SETS[0]) for each in consistent]
        questions += [_in_set(each, SETS[1]) for each in contradicting]
    check_unique(questions)
    check_images(questions)
    return questions


def _in_set(question: Question, name: str) -> Question:
    """Ids of the two files may be the same; those of one set stay as they are."""
    id = question.id if name == ALL else f"{name}/{question.id}"
    text = question.facts.get("text", question.prompt)
    return replace(question, id=id, facts={"set": name, "text": text})


def _contradicting(args: argparse.Namespace) -> list[Question]:
    path = args.contradicting
    if path.is_dir() or path.name == "data.json":
        folder = path if path.is_dir() else path.parent
        every = with_pictures(vlind.read(folder), [folder])
        return [each for each in every if each.facts["stage"] == "LP"]
    named = {"dataset": args.dataset or "given", "split": args.split or "given"}
    every = pope.read([path], images=args.images, suffix=args.suffix, **named)
    every = with_pictures(every, [args.images])
    return [each for each in every if args.contradicting_label in (None, each.label)]


def _measure(
    args: argparse.Namespace,
    questions: Sequence[Question],
    request: Request,
    settings: Mapping[str, Any],
    options: Sequence[Any],
    measured: dict[Configuration, Measurement],
) -> list[Candidate]:
    """Add to the file and to `measured` what is not there; returns all that is wanted.

    `options` are those of `candidates`. Raises RequestError for heads that the model does not have.
    """
    from causalmm.evaluation.probabilities import every_choice_token  # loads torch

    session = Session.start(args, request)
    towers = session.model.causalmm_towers()
    layers = {"vision": towers.vision_layers, "language": towers.language_layers}
    full = towers.full_vision_layers
    wanted = candidates(layers, *options, full_vision_layers=full)
    for spec in dict.fromkeys(each.configuration.heads for each in wanted):
        try:
            resolve_heads("--heads", spec, (), towers.language_heads)
        except ValueError as error:
            raise RequestError(str(error)) from error
    words = every_choice_token(session.processor.tokenizer, questions)
    sources = [*args.questions, *([] if args.contradicting is None else [args.contradicting])]
    files = [each / "data.json" if each.is_dir() else each for each in sources]
    run_record.write_record(
        args.out,
        settings,
        run_record.surroundings(files, session.model)
        | {"layers": layers, "full_vision_layers": full and list(full)},
    )
    every = dict.fromkeys([PLAIN, *(each.configuration for each in wanted)])
    left = [each for each in every if each not in measured]
    probe = _fluency_probe(session, questions, args)
    with (
        open(args.out / MEASUREMENTS, "ab") as file,
        tqdm(
            total=len(every) * len(questions),
            initial=(len(every) - len(left)) * len(questions),
            unit="question",
            file=sys.stderr,
        ) as progress,
    ):
        for each in left:
            progress.set_description(" ".join(filter(None, [each.tower, each.name, each.spec])))
            measured[each] = measure(
                session,
                questions,
                each,
                request.config,
                words,
                batch_size=args.batch_size,
                tick=progress.update,
                probe=probe,
            )
            file.write(measurement_line(measured[each]))
            file.flush()
    return wanted


def _fluency_probe(
    session: Session, questions: Sequence[Question], args: argparse.Namespace
) -> Any:
    """What branches are given to read; None where it is not asked for."""
    if not args.fluency:
        return None
    from causalmm.evaluation.diagnosis.teacher_forcing import FluencyProbe  # loads torch

    paths = spread([each.path for each in questions], args.fluency)
    texts = spread([each.facts["text"] for each in questions], args.fluency)
    return FluencyProbe.of(session, paths, texts, args.batch_size)


def _default_number() -> int:
    """Of measurements with default flags, in towers deep enough to have three thirds."""
    layers = dict.fromkeys(METHODS, 6)
    every = dict.fromkeys(method for methods in METHODS.values() for method in methods)
    return 1 + len(candidates(layers, list(METHODS), list(every), DEFAULT_WINDOWS, SCOPES))


def _report(
    args: argparse.Namespace, found: Diagnosis, wanted: Sequence[Candidate], request: Request
) -> None:
    record = run_record.read_record(args.out)
    write_json(args.out / TABLE, found.to_dict() | {"run": record})
    print(found.table(SHOWN), flush=True)
    if extras.missing("figures"):
        tell(extras.how_to_install("no heat map: drawing", "figures"))
    else:
        name = request.model.rstrip("/").rpartition("/")[2]
        _draw(args.out, found, wanted, record["layers"], name)
    tell(f"wrote {args.out / TABLE}")


def _draw(folder: Path, *drawn: Any) -> None:
    from causalmm.evaluation.diagnosis.figure import diagnosis_figure
    from causalmm.evaluation.diagnosis.scope_figure import scope_figure

    for name, draw in ((PICTURE, diagnosis_figure), (SCOPES_PICTURE, scope_figure)):
        draw(*drawn).savefig(folder / name, format="png", metadata={"Software": None})


def _write_configuration(folder: Path, found: Diagnosis, base: CausalMMConfig) -> None:
    """Raises FailureError where no window gains."""
    if found.best is None:
        raise FailureError(
            f"no window gains {found.rank} over the plain model on the half that windows are "
            f"ranked on: no {CONFIG_NAME} is written"
        )
    path = found.best.configuration.over(base).save_pretrained(folder)
    tell(f"wrote {path}")
