"""The benchmarks' own file formats, filled with held-out scenes.

    pope/    POPE: two present and two absent classes an image, in three splits
    mme/     MME's tasks existence, count, position and color
    vlind/   VLind-Bench: objects in colours that are not theirs
    chair/   CHAIR: what is in each image, and what a caption may call it
    prior/   POPE's format again: is a thing of a colour, its usual one or another one

So everything that reads a real benchmark can be tried on a demonstration model. The questions are
those of training (questions.py), the scenes are in no other set. All files are a function of the
settings. Held by tests/toyworld/test_toybench.py.
"""

import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from causalmm.evaluation.benchmarks.vlind import GOOD_VOTES
from causalmm.toyworld import questions as ask
from causalmm.toyworld.questions import SceneQuestion
from causalmm.toyworld.recipes import RECIPES
from causalmm.toyworld.scenes import Item, Scene, SceneStyle, scene
from causalmm.toyworld.vocabulary import CANONICAL, CLASSES, GROUP_OF, SYNONYMS

SPLITS = ("test", "development")
POPE_SPLITS = ("random", "popular", "adversarial")
MOST_IMAGES = 1000
MOST_VOTES = 3
IMAGES_AN_INSTANCE = 4
"""Counterfactual images of VLind-Bench's instances."""
# Each set draws from a block of scene numbers of its own; evaluation.py has the first eight.
_SPACING = 100_000
_BLOCKS = {
    name: 10 + place
    for place, name in enumerate(
        (
            *("pope", "existence", "count", "position", "color", "vlind odd", "vlind usual"),
            *("chair", "canonical", "odd"),
        )
    )
}
# A group has four classes: with two of them there, two are absent that would fit.
_TWO_OF_A_GROUP = SceneStyle(coherent=1.0, counts=(0.0, 1.0, 0.0, 0.0))
_ONE_GROUP = SceneStyle(coherent=1.0, counts=(0.33, 0.33, 0.34, 0.0))
_USUAL, _ODD = replace(_ONE_GROUP, canonical=1.0), replace(_ONE_GROUP, canonical=0.0)


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """All that the files depend on. Checked at construction."""

    family: str = "llava"
    """Sizes of pictures: those that this family was trained on."""
    split: str = "test"
    images: int = 100
    """Scenes of POPE, of each MME task, of CHAIR and of each file of prior/; VLind-Bench has so
    many instances."""
    training_scenes: int = 1000
    """So many are looked at to find the most frequent classes."""

    def __post_init__(self) -> None:
        for name, allowed in (("family", RECIPES), ("split", SPLITS)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(allowed)}")
        for name, most in (("images", MOST_IMAGES), ("training_scenes", _SPACING)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 to {most}")

    def scenes(self, block: str, style: SceneStyle) -> Iterator[tuple[int, Scene]]:
        """The scenes of a set with their numbers, in the family's sizes by turns."""
        sizes = RECIPES[self.family].sizes
        for index in count():
            number = _BLOCKS[block] * _SPACING + index
            sized = replace(style, size=sizes[index % len(sizes)])
            yield number, scene(number, split=self.split, style=sized)

    def rng(self, block: str, number: int) -> random.Random:
        """What is drawn at random for a scene."""
        return random.Random(f"benchmark {block} {self.split} {number}")

    def file(self, number: int) -> str:
        """The name of a scene's picture."""
        return f"toy_{self.split}_{number}.png"


def write_benchmarks(folder: Path, settings: BenchmarkSettings) -> dict[str, Any]:
    """Write all of them into a folder that is there, and a manifest.json; returns the latter."""
    manifest = {
        "settings": asdict(settings),
        "questions": {name: write(folder / name, settings) for name, write in WRITERS.items()},
    }
    _write_json(folder / "manifest.json", manifest)
    return manifest


# -- POPE


def write_pope(folder: Path, settings: BenchmarkSettings) -> dict[str, int]:
    """Question files toy_pope_SPLIT.json, and images/. Returns the questions of each split."""
    popular = frequent_classes(settings.training_scenes)
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in POPE_SPLITS}
    for number, drawn in _first(settings, "pope", _TWO_OF_A_GROUP):
        file = settings.file(number)
        _save(drawn, folder / "images" / file)
        asked = pope_questions(drawn, popular, settings.rng("pope", number))
        for split, questions in asked.items():
            rows[split] += [_pope_row(file, question) for question in questions]
    return _write_pope_files(folder, rows)


def frequent_classes(scenes: int) -> list[str]:
    """All classes, those first that are most often in the first training scenes.

    The toy world draws its classes equally often: what makes one of them popular is chance.
    """
    numbers = tqdm(range(scenes), desc="training scenes", file=sys.stderr)
    seen = Counter(name for number in numbers for name in scene(number, split="train").names)
    return sorted(CLASSES, key=lambda name: -seen[name])


def pope_questions(
    drawn: Scene, popular: Sequence[str], rng: random.Random
) -> dict[str, list[SceneQuestion]]:
    """By split: what is there and what is not, by turns, as many of either.

    Absent are, adversarial: classes that would fit the scene; popular: the first of `popular`
    among the others; random: what neither asks for.
    """
    groups = {GROUP_OF[name] for name in drawn.names}
    near = [name for name in CLASSES if GROUP_OF[name] in groups and name not in drawn.names]
    far = [name for name in popular if GROUP_OF[name] not in groups]
    size = len(drawn.names)
    absent = {
        "random": rng.sample(sorted(far[size:]), size),
        "popular": far[:size],
        "adversarial": rng.sample(near, size),
    }
    return {
        split: [
            ask.existence(name, present)
            for pair in zip(drawn.names, absent[split], strict=True)
            for name, present in zip(pair, (True, False), strict=True)
        ]
        for split in POPE_SPLITS
    }


# -- MME


def write_mme(folder: Path, settings: BenchmarkSettings) -> dict[str, int]:
    """A folder a task with TASK.txt and its images. Returns the questions of each task."""
    questions = {}
    for task, (style, questions_of) in MME_TASKS.items():
        lines = []
        for number, drawn in _first(settings, task, style):
            file = settings.file(number)
            _save(drawn, folder / task / file)
            for each in questions_of(drawn, settings.rng(task, number)):
                lines.append(f"{file}\t{each.text}\t{each.answer}\n")
        _write(folder / task / f"{task}.txt", "".join(lines))
        questions[task] = len(lines)
    return questions


def _existence(drawn: Scene, rng: random.Random) -> tuple[SceneQuestion, SceneQuestion]:
    absent = ask.absent_name(drawn.names, 0.25, rng)
    return (
        ask.existence(rng.choice(drawn.names), True, ask.YES_OR_NO),
        ask.existence(absent, False, ask.YES_OR_NO),
    )


def _count(drawn: Scene, rng: random.Random) -> tuple[SceneQuestion, SceneQuestion]:
    right = len(drawn.items)
    wrong = rng.choice([number for number in range(1, 5) if number != right])
    return ask.count_check(right, right), ask.count_check(wrong, right)


def _position(drawn: Scene, rng: random.Random) -> tuple[SceneQuestion, SceneQuestion]:
    first, second = rng.sample(range(len(drawn.items)), 2)
    left = first < second
    names = drawn.names[first], drawn.names[second]
    return ask.position_check(*names, left, left), ask.position_check(*names, not left, left)


def _color(drawn: Scene, rng: random.Random) -> tuple[SceneQuestion, SceneQuestion]:
    item = rng.choice(drawn.items)
    wrong = ask.other_colour(item.colour, item.name, rng)
    return tuple(ask.colour_check(item.name, asked, item.colour) for asked in (item.colour, wrong))


MME_TASKS: dict[str, tuple[SceneStyle, Callable[..., tuple[SceneQuestion, SceneQuestion]]]] = {
    "existence": (SceneStyle(), _existence),
    "count": (SceneStyle(), _count),
    "position": (SceneStyle(counts=(0.0, 0.4, 0.4, 0.2)), _position),
    "color": (SceneStyle(), _color),
}
"""The scenes of each task, and its question to be answered yes and that to be answered no."""


# -- VLind-Bench


class Instance(NamedTuple):
    """An object in a colour that is not its own: pictures of it, and one in its own colour."""

    name: str
    colour: str
    usual: Scene
    odd: tuple[Scene, ...]
    votes: tuple[int, ...]
    """How well the object shows in each of them, 1 to MOST_VOTES."""


def write_vlind(folder: Path, settings: BenchmarkSettings) -> dict[str, int]:
    """data.json and images/. Returns how many instances there are."""
    rows = []
    found = islice(instances(settings), settings.images)
    for number, each in enumerate(_watched(found, "vlind", settings), 1):
        row = vlind_row(number, each, settings.rng("vlind odd", number))
        rows.append(row)
        for kind, context, scenes in (
            ("factual", row["factual_context"], [each.usual]),
            ("counterfactual", row["context"], each.odd),
        ):
            place = folder / "images" / kind / row["concept"] / f"{number}_{context}"
            for image, drawn in enumerate(scenes):
                _save(drawn, place / f"{image}.jpg")
    _write_json(folder / "data.json", rows)
    return {"instances": len(rows)}


def instances(settings: BenchmarkSettings) -> Iterator[Instance]:
    """Without end. Every scene is in one instance only, and every instance has a good picture."""
    usual = _usual_scenes(settings)
    gathered: dict[tuple[str, str], list[tuple[Scene, int]]] = defaultdict(list)
    for number, drawn in settings.scenes("vlind odd", _ODD):
        index = settings.rng("vlind odd", number).randrange(len(drawn.items))
        name, colour = drawn.items[index].name, drawn.items[index].colour
        votes, pictures = _votes(drawn, index), gathered[name, colour]
        if votes >= (1 if pictures else GOOD_VOTES):
            pictures.append((drawn, votes))
        if len(pictures) == IMAGES_AN_INSTANCE:
            odd, counted = zip(*gathered.pop((name, colour)), strict=True)
            yield Instance(name, colour, usual(name), odd, counted)


def vlind_row(number: int, each: Instance, rng: random.Random) -> dict[str, Any]:
    """An instance as data.json has it."""
    shown = {name for drawn in (each.usual, *each.odd) for name in drawn.names}
    return {
        "concept": "color",
        "context_id": number,
        "context": ask.world(each.name, each.colour),
        "factual_context": ask.colour_rule(each.name, CANONICAL[each.name]),
        "true_statement": ask.colour_rule(each.name, each.colour),
        "false_statement": ask.colour_rule(each.name, CANONICAL[each.name]),
        "existent_noun": each.name,
        "non-existent_noun": rng.choice([name for name in CLASSES if name not in shown]),
        "best_img_id": str(each.votes.index(max(each.votes))),
        "aggregated_human_label_good_images": {
            str(image): votes for image, votes in enumerate(each.votes)
        },
    }


def _votes(drawn: Scene, index: int) -> int:
    """In the place of people's: how many cells of the picture an item fills."""
    return min(MOST_VOTES, int((drawn.cells == index + 1).sum()))


def _usual_scenes(settings: BenchmarkSettings) -> Callable[[str], Scene]:
    """Gives a scene that shows a class well, in its own colour; another one each time."""
    scenes = settings.scenes("vlind usual", _USUAL)
    waiting: dict[str, list[Scene]] = defaultdict(list)

    def next_of(name: str) -> Scene:
        while not waiting[name]:
            _, drawn = next(scenes)
            shown = [i for i in range(len(drawn.items)) if _votes(drawn, i) >= GOOD_VOTES]
            if shown:
                # For the class that waits longest for a picture, as far as it can be known.
                index = min(shown, key=lambda i: len(waiting[drawn.names[i]]))
                waiting[drawn.names[index]].append(drawn)
        return waiting[name].pop(0)

    return next_of


# -- CHAIR


def write_chair(folder: Path, settings: BenchmarkSettings) -> dict[str, int]:
    """annotations.json, vocabulary.json and images/. Returns how many captions are asked for."""
    objects = {}
    for number, drawn in _first(settings, "chair", SceneStyle()):
        _save(drawn, folder / "images" / settings.file(number))
        objects[settings.file(number)] = sorted(drawn.names)
    _write_json(folder / "annotations.json", objects)
    _write_json(folder / "vocabulary.json", SYNONYMS)
    return {"captions": len(objects)}


# -- What agrees with the prior and what contradicts it


def write_prior(folder: Path, settings: BenchmarkSettings) -> dict[str, int]:
    """Question files toy_pope_canonical.json and toy_pope_odd.json, and images/.

    Of what has its usual colour the prior gives the right answers, of what has not the wrong ones.
    """
    rows: dict[str, list[dict[str, str]]] = {"canonical": [], "odd": []}
    for name, style in (("canonical", _USUAL), ("odd", _ODD)):
        for number, drawn in _first(settings, name, style):
            file, rng = settings.file(number), settings.rng(name, number)
            _save(drawn, folder / "images" / file)
            asked = colour_questions(rng.choice(drawn.items), rng)
            rows[name] += [_pope_row(file, question) for question in asked]
    return _write_pope_files(folder, rows)


def colour_questions(item: Item, rng: random.Random) -> list[SceneQuestion]:
    """Is it what it is, and is it the colour that it might be thought to be? Without suffixes."""
    wrong = CANONICAL[item.name]
    if item.colour == wrong:
        wrong = ask.other_colour(item.colour, item.name, rng)
    asked = [ask.colour_check(item.name, colour, item.colour) for colour in (item.colour, wrong)]
    return [replace(each, text=each.text.removesuffix(ask.YES_OR_NO)) for each in asked]


WRITERS: dict[str, Callable[[Path, BenchmarkSettings], dict[str, int]]] = {
    "pope": write_pope,
    "mme": write_mme,
    "vlind": write_vlind,
    "chair": write_chair,
    "prior": write_prior,
}
"""By the folder that each writes."""


# -- files


def _first(
    settings: BenchmarkSettings, block: str, style: SceneStyle
) -> Iterator[tuple[int, Scene]]:
    """As many scenes of a set as there are to be, with a progress bar."""
    return _watched(islice(settings.scenes(block, style), settings.images), block, settings)


def _watched(each: Iterable[Any], name: str, settings: BenchmarkSettings) -> Iterator[Any]:
    return iter(tqdm(each, total=settings.images, desc=name, file=sys.stderr))


def _pope_row(file: str, question: SceneQuestion) -> dict[str, str]:
    return {"image": file, "text": question.text, "label": question.answer.lower()}


def _write_pope_files(folder: Path, rows: Mapping[str, list[dict[str, str]]]) -> dict[str, int]:
    for split, each in rows.items():
        lines = [json.dumps({"question_id": number} | row) for number, row in enumerate(each, 1)]
        _write(folder / f"toy_pope_{split}.json", "\n".join([*lines, ""]))
    return {split: len(each) for split, each in rows.items()}


def _save(drawn: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A JPEG's colours as fine as its shapes: objects are small, and many questions are of colours.
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    drawn.image.save(path, **options)


def _write_json(path: Path, content: Any) -> None:
    _write(path, json.dumps(content, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
