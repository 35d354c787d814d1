"""Write POPE-, MME-, VLind-Bench- and CHAIR-format folders of held-out toy scenes.

    python scripts/make_toybench.py OUT [--model-family llava|qwen2_vl] [--images N]

OUT/README.md says how to ask and score them. Tests: tests/toyworld/test_toybench.py.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from causalmm.cli.flags import Parser, number
from causalmm.cli.terminal import exit_code, tell
from causalmm.errors import RequestError
from causalmm.families.registry import find
from causalmm.toyworld.benchmarks import (
    MOST_IMAGES,
    MOST_VOTES,
    SPLITS,
    BenchmarkSettings,
    write_benchmarks,
)
from causalmm.toyworld.recipes import RECIPES

README = """# Benchmarks of the toy world

Held-out scenes ({split} split, sizes of {family}) in the formats of real benchmarks, written by
`python scripts/make_toybench.py FOLDER --model-family {family} --images {images} --split {split}`.
Counts are in manifest.json. With FOLDER for this folder:

    python scripts/evaluate.py pope run --questions FOLDER/pope/toy_pope_random.json \\
        FOLDER/pope/toy_pope_popular.json FOLDER/pope/toy_pope_adversarial.json \\
        --images FOLDER/pope/images --model {demo} --out runs/toy-pope
    python scripts/evaluate.py mme run --data FOLDER/mme --model {demo} --out runs/toy-mme
    python scripts/evaluate.py vlind run --data FOLDER/vlind --model {demo} \\
        --out runs/toy-vlind
    python scripts/evaluate.py chair run --annotations FOLDER/chair/annotations.json \\
        --vocabulary FOLDER/chair/vocabulary.json --images FOLDER/chair/images \\
        --model {demo} --out runs/toy-chair
    python scripts/diagnose.py --questions FOLDER/prior/toy_pope_canonical.json \\
        --contradicting FOLDER/prior/toy_pope_odd.json --images FOLDER/prior/images \\
        --suffix " Please answer yes or no." --model {demo} --out runs/toy-diagnosis
    python scripts/diagnose.py --questions FOLDER/pope/toy_pope_adversarial.json \\
        --contradicting FOLDER/pope/toy_pope_adversarial.json --contradicting-label no \\
        --images FOLDER/pope/images --model {demo} --out runs/toy-diagnosis-pope

- pope: two objects a scene, of one group; each file asks for both and for two absent classes.
  Adversarial: the two that would fit the scene. Popular: the most frequent of all others in
  training, though classes of the toy world differ in that by chance alone. Random: others still.
- vlind: "votes" are no people's; they count how many patches the object fills, at most {votes}.
- prior: questions on colours, of objects in their usual colour, which the prior answers right, and
  in other colours, where it is wrong.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def act() -> None:
        args = parse_args(argv)
        make(
            args.out,
            BenchmarkSettings(family=args.model_family, split=args.split, images=args.images),
        )

    return exit_code(act)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])
    defaults = BenchmarkSettings()
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    parser.add_argument(
        "--model-family",
        choices=RECIPES,
        default=defaults.family,
        help="whose sizes of pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        type=number(f"from 1 to {MOST_IMAGES}", lambda value: 1 <= value <= MOST_IMAGES, int),
        default=defaults.images,
        metavar="N",
        help="scenes a set, and instances of VLind-Bench (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default=defaults.split,
        help="development: to choose settings on (default: %(default)s)",
    )
    return parser.parse_args(sys.argv[1:] if argv is None else argv)


def make(out: Path, settings: BenchmarkSettings) -> None:
    """Write `out`, whole or not at all. Raises RequestError where something is there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} is there already and is not an empty folder: give another one")
    if not out.absolute().parent.is_dir():
        raise RequestError(f"{out}: there is no folder {out.parent}")
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".toybench-") as scratch:
        folder = Path(scratch) / "folder"
        folder.mkdir()
        write_benchmarks(folder, settings)
        readme = README.format(
            family=settings.family,
            demo=find(settings.family).demo,
            split=settings.split,
            images=settings.images,
            votes=MOST_VOTES,
        )
        (folder / "README.md").write_text(readme, encoding="utf-8")
        if out.exists():
            out.rmdir()
        folder.rename(out)
    tell(f"wrote {out}: {out / 'README.md'} says how to ask and score it")
