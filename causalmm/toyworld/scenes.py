"""Scenes: 1 to 4 objects on a cluttered ground, a function of a split's name and a number.

Biases, by design: 80 % of the training scenes keep to one co-occurrence group and 82 % of the
objects have their class's canonical colour, so that a model trained on them learns priors worth
removing.
Objects are 13 to 46 px on a ground of about 112 px, some occluded, blurred, noisy or under coloured
light. Held by tests/toyworld/test_toyworld.py.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from causalmm.toyworld.drawing import DRAWINGS, Colour, Pen, scaled
from causalmm.toyworld.vocabulary import CANONICAL, CLASSES, COLOURS, GROUPS

SPLITS = {"train": 0, "development": 1, "test": 2}
CELL = 14
"""Side in pixels of a cell of the label map: what one image token sees."""
_OVERSAMPLING = 2
_GROUND: dict[str, Colour] = {
    "kitchen": (228, 208, 178),
    "sea": (150, 200, 228),
    "street": (196, 198, 205),
    "study": (205, 188, 170),
    "garden": (190, 222, 165),
}


@dataclass(frozen=True, kw_only=True)
class SceneStyle:
    """How scenes are drawn at random. The defaults are the training distribution."""

    coherent: float = 0.8
    """Probability that all objects are of one group."""
    canonical: float = 0.82
    """Probability that an object has its canonical colour."""
    counts: tuple[float, float, float, float] = (0.15, 0.3, 0.35, 0.2)
    """Probabilities of 1, 2, 3 and 4 objects."""
    size: tuple[int, int] = (112, 112)
    """Width and height in pixels, multiples of 14."""

    def __post_init__(self) -> None:
        for name in ("coherent", "canonical"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a probability")
        if len(self.counts) != 4 or abs(sum(self.counts) - 1) > 1e-6:
            raise ValueError(f"counts={self.counts}: expected four probabilities that sum to 1")
        if any(side < 56 or side % CELL for side in self.size):
            raise ValueError(f"size={self.size}: expected multiples of {CELL}, at least 56")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One object of a scene: its class, colour, centre in pixels and size in pixels."""

    name: str
    colour: str
    x: float
    y: float
    size: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture and what is in it, objects from left to right."""

    image: Image.Image
    items: tuple[Item, ...]
    group: str
    cells: np.ndarray
    """Which item (1-based, 0 none) fills each 14-px cell, uint8 [height / 14, width / 14]."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.items)


def scene(number: int, *, split: str = "test", style: SceneStyle | None = None) -> Scene:
    """Draw scene `number` of a split ("train", "development" or "test").

    Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    style = style or SceneStyle()
    seed = number * len(SPLITS) + SPLITS[split]
    rng = random.Random(seed)
    group = rng.choice(list(GROUPS))
    count = rng.choices((1, 2, 3, 4), style.counts)[0]
    names = rng.sample(GROUPS[group] if rng.random() < style.coherent else CLASSES, count)

    width, height = (side * _OVERSAMPLING for side in style.size)
    ground = _GROUND[group if rng.random() < 0.75 else rng.choice(list(_GROUND))]
    ground = tuple(max(0, min(255, channel + rng.randint(-22, 22))) for channel in ground)
    canvas = _gradient(ground, width, height, rng)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(0, 2)):
        _clutter(draw, ground, width, height, rng)
    owner = Image.new("L", (width, height), 0)
    items: list[Item] = []
    for name in names:
        item = _place(name, items, width, height, style, rng)
        tone = tuple(
            max(0, min(255, channel + rng.randint(-18, 18))) for channel in COLOURS[item.colour]
        )
        pen = Pen(draw, (item.x, item.y), item.size, rng.gauss(0, 0.22), rng.random() < 0.5)
        DRAWINGS[name](pen, tone)
        reach = item.size * 0.45
        box = [item.x - reach, item.y - reach, item.x + reach, item.y + reach]
        ImageDraw.Draw(owner).ellipse(box, fill=len(items) + 1)
        items.append(item)
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        _clutter(draw, ground, width, height, rng)

    image = _photograph(canvas.reduce(_OVERSAMPLING), seed, rng)
    order = sorted(range(len(items)), key=lambda index: items[index].x)
    return Scene(
        image=image,
        items=tuple(_shrunk(items[index]) for index in order),
        group=group,
        cells=_cells(owner, order),
    )


def _gradient(ground: Colour, width: int, height: int, rng: random.Random) -> Image.Image:
    top = np.array(scaled(ground, rng.uniform(0.85, 1.1)), float)
    bottom = np.array(scaled(ground, rng.uniform(0.7, 1.05)), float)
    rows = top + (bottom - top) * np.linspace(0, 1, height)[:, None]
    return Image.fromarray(np.repeat(rows[:, None], width, axis=1).clip(0, 255).astype(np.uint8))


def _clutter(
    draw: ImageDraw.ImageDraw, ground: Colour, width: int, height: int, rng: random.Random
) -> None:
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    across, down = rng.uniform(0.02, 0.1) * width, rng.uniform(0.02, 0.1) * height
    if rng.random() < 0.5:
        colour = tuple(rng.randint(20, 240) for _ in range(3))
    else:
        colour = scaled(ground, rng.uniform(0.6, 1.2))
    kind = rng.random()
    box = [x - across, y - down, x + across, y + down]
    if kind < 0.4:
        draw.ellipse(box, fill=colour)
    elif kind < 0.7:
        draw.rectangle(box, fill=colour)
    else:
        draw.line(
            [x - 2 * across, y - 2 * down, x + 2 * across, y + 2 * down],
            fill=colour,
            width=rng.randint(2, 10),
        )


def _place(
    name: str,
    others: list[Item],
    width: int,
    height: int,
    style: SceneStyle,
    rng: random.Random,
) -> Item:
    """Choose a size, a place that overlaps the others as little as six tries allow, a colour."""
    size = math.exp(rng.uniform(math.log(13), math.log(46))) * _OVERSAMPLING
    tries = []
    for _ in range(6):
        x = rng.uniform(size * 0.4, width - size * 0.4)
        y = rng.uniform(size * 0.4, height - size * 0.4)
        gaps = [math.hypot(x - o.x, y - o.y) - 0.45 * (size + o.size) for o in others]
        tries.append((min(gaps, default=math.inf), x, y))
        if tries[-1][0] > -0.15 * size:
            break
    _, x, y = max(tries)
    colour = CANONICAL[name]
    if rng.random() >= style.canonical:
        colour = rng.choice([other for other in COLOURS if other != colour])
    return Item(name=name, colour=colour, x=x, y=y, size=size)


def _photograph(image: Image.Image, seed: int, rng: random.Random) -> Image.Image:
    """Blur, loss of saturation, coloured light and noise."""
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1)))
    pixels = np.asarray(image, np.float32)
    saturation = rng.choice((1, 1, rng.uniform(0.25, 1)))
    grey = pixels.mean(axis=-1, keepdims=True)
    pixels = grey * (1 - saturation) + pixels * saturation
    light = np.array([rng.uniform(0.72, 1.15) for _ in range(3)], np.float32)
    pixels = pixels * light * rng.uniform(0.6, 1.1)
    sigma = rng.choice((4, 12, 25, rng.uniform(25, 50)))
    noise = np.random.default_rng(seed).standard_normal(pixels.shape, np.float32)
    return Image.fromarray((pixels + noise * sigma).clip(0, 255).astype(np.uint8))


def _shrunk(item: Item) -> Item:
    return Item(
        name=item.name,
        colour=item.colour,
        x=item.x / _OVERSAMPLING,
        y=item.y / _OVERSAMPLING,
        size=item.size / _OVERSAMPLING,
    )


def _cells(owner: Image.Image, order: list[int]) -> np.ndarray:
    """The item that covers most of each cell, if that is over a fifth of it; renumbered by x."""
    side = CELL * _OVERSAMPLING
    pixels = np.asarray(owner)
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    blocks = (
        pixels.reshape(rows, side, columns, side).transpose(0, 2, 1, 3).reshape(rows, columns, -1)
    )
    covered = np.stack([(blocks == index + 1).sum(axis=-1) for index in order], axis=-1)
    best = covered.argmax(axis=-1) + 1
    return np.where(covered.max(axis=-1) > 0.2 * side * side, best, 0).astype(np.uint8)
