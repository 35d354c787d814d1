"""Own drawing code: each class is a few shapes on a unit square, turned and scaled to size."""

import math
from collections.abc import Callable, Sequence

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

INK: Colour = (45, 40, 40)


def scaled(colour: Colour, factor: float) -> Colour:
    """A colour made darker (factor < 1) or lighter."""
    return tuple(int(max(0, min(255, channel * factor))) for channel in colour)  # type: ignore


def pale(colour: Colour) -> Colour:
    return tuple(int(channel + (255 - channel) * 0.55) for channel in colour)  # type: ignore


class Pen:
    """Draws unit-square shapes at a place, size, rotation and mirroring of a canvas."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, centre: Point, size: float, angle: float, mirrored: bool
    ) -> None:
        self._draw = draw
        self._centre = centre
        self._size = size
        self._cos, self._sin = math.cos(angle), math.sin(angle)
        self._side = -1 if mirrored else 1

    def place(self, x: float, y: float) -> Point:
        across, down = (x - 0.5) * self._size * self._side, (y - 0.5) * self._size
        return (
            self._centre[0] + across * self._cos - down * self._sin,
            self._centre[1] + across * self._sin + down * self._cos,
        )

    def shape(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon([self.place(*point) for point in points], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def oval(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: Colour,
        arc: tuple[float, float] = (0.0, 2 * math.pi),
    ) -> None:
        start, stop = arc
        angles = [start + (stop - start) * step / 20 for step in range(21)]
        self.shape([(x + width * math.cos(a), y + height * math.sin(a)) for a in angles], colour)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        thick = max(1, int(width * self._size))
        self._draw.line([self.place(*point) for point in points], fill=colour, width=thick)


def _table(pen: Pen, colour: Colour) -> None:
    pen.box(0, 0.3, 1, 0.45, colour)
    for left in (0.08, 0.8):
        pen.box(left, 0.45, left + 0.12, 1, scaled(colour, 0.6))


def _chair(pen: Pen, colour: Colour) -> None:
    pen.box(0.15, 0, 0.3, 1, colour)
    pen.box(0.15, 0.5, 0.85, 0.65, colour)
    pen.box(0.72, 0.65, 0.85, 1, scaled(colour, 0.6))
    pen.box(0.15, 0.1, 0.5, 0.2, scaled(colour, 0.6))


def _cup(pen: Pen, colour: Colour) -> None:
    pen.oval(0.8, 0.5, 0.2, 0.22, scaled(colour, 0.6))
    pen.oval(0.8, 0.5, 0.1, 0.12, pale(colour))
    pen.shape([(0.1, 0.15), (0.8, 0.15), (0.7, 0.95), (0.2, 0.95)], colour)
    pen.oval(0.45, 0.15, 0.35, 0.08, scaled(colour, 0.6))


def _apple(pen: Pen, colour: Colour) -> None:
    for x in (0.36, 0.64):
        pen.oval(x, 0.6, 0.34, 0.38, colour)
    pen.stroke([(0.5, 0.3), (0.55, 0.05)], 0.07, INK)
    pen.oval(0.7, 0.12, 0.14, 0.07, (60, 150, 60))


def _banana(pen: Pen, colour: Colour) -> None:
    steps = [index / 12 for index in range(13)]
    outer = [(0.05 + 0.9 * t, 0.35 + 0.5 * math.sin(math.pi * t)) for t in steps]
    inner = [(0.05 + 0.9 * t, 0.3 + 0.2 * math.sin(math.pi * t)) for t in reversed(steps)]
    pen.shape(outer + inner, colour)
    pen.box(0, 0.22, 0.1, 0.36, scaled(colour, 0.6))


def _boat(pen: Pen, colour: Colour) -> None:
    pen.shape([(0, 0.65), (1, 0.65), (0.8, 0.95), (0.2, 0.95)], colour)
    pen.box(0.47, 0.05, 0.53, 0.65, INK)
    pen.shape([(0.56, 0.08), (0.95, 0.58), (0.56, 0.58)], pale(colour))


def _fish(pen: Pen, colour: Colour) -> None:
    pen.oval(0.4, 0.5, 0.4, 0.26, colour)
    pen.shape([(0.7, 0.5), (1, 0.22), (1, 0.78)], colour)
    pen.oval(0.2, 0.44, 0.05, 0.05, INK)
    pen.shape([(0.35, 0.3), (0.55, 0.1), (0.6, 0.32)], scaled(colour, 0.6))


def _anchor(pen: Pen, colour: Colour) -> None:
    pen.oval(0.5, 0.12, 0.12, 0.12, colour)
    pen.box(0.44, 0.2, 0.56, 0.95, colour)
    pen.box(0.25, 0.3, 0.75, 0.4, colour)
    arms = [(0.08, 0.6), (0.2, 0.85), (0.5, 0.95), (0.8, 0.85), (0.92, 0.6)]
    pen.stroke(arms, 0.12, colour)


def _sun(pen: Pen, colour: Colour) -> None:
    for ray in range(8):
        angle = ray * math.pi / 4
        tip, left, right = (
            (0.5 + reach * math.cos(angle + turn), 0.5 + reach * math.sin(angle + turn))
            for reach, turn in ((0.5, 0.0), (0.25, 0.3), (0.25, -0.3))
        )
        pen.shape([tip, left, right], colour)
    pen.oval(0.5, 0.5, 0.28, 0.28, colour)


def _house(pen: Pen, colour: Colour) -> None:
    pen.box(0.12, 0.45, 0.88, 1, colour)
    pen.shape([(0, 0.47), (0.5, 0), (1, 0.47)], scaled(colour, 0.6))
    pen.box(0.42, 0.65, 0.6, 1, INK)
    pen.box(0.2, 0.55, 0.34, 0.7, (235, 235, 190))


def _tree(pen: Pen, colour: Colour) -> None:
    pen.box(0.43, 0.6, 0.57, 1, (105, 70, 40))
    pen.oval(0.5, 0.3, 0.32, 0.3, colour)
    for x in (0.3, 0.7):
        pen.oval(x, 0.45, 0.25, 0.2, colour)


def _car(pen: Pen, colour: Colour) -> None:
    pen.shape([(0.2, 0.5), (0.32, 0.22), (0.7, 0.22), (0.82, 0.5)], scaled(colour, 0.6))
    pen.box(0, 0.48, 1, 0.76, colour)
    for x in (0.24, 0.76):
        pen.oval(x, 0.78, 0.14, 0.14, INK)
    pen.box(0.38, 0.28, 0.64, 0.46, (210, 230, 240))


def _lamp(pen: Pen, colour: Colour) -> None:
    pen.box(0.45, 0.3, 0.55, 0.95, colour)
    pen.box(0.25, 0.92, 0.75, 1, colour)
    pen.shape([(0.35, 0), (0.65, 0), (0.85, 0.35), (0.15, 0.35)], colour)
    pen.oval(0.5, 0.38, 0.12, 0.07, (255, 240, 150))


def _book(pen: Pen, colour: Colour) -> None:
    pen.box(0.05, 0.15, 0.95, 0.85, colour)
    pen.box(0.05, 0.15, 0.17, 0.85, scaled(colour, 0.6))
    pen.box(0.3, 0.3, 0.8, 0.38, pale(colour))
    pen.box(0.3, 0.48, 0.7, 0.54, pale(colour))


def _key(pen: Pen, colour: Colour) -> None:
    pen.oval(0.2, 0.5, 0.2, 0.22, colour)
    pen.oval(0.2, 0.5, 0.09, 0.1, scaled(colour, 0.6))
    pen.box(0.35, 0.43, 1, 0.57, colour)
    pen.box(0.75, 0.55, 0.83, 0.75, colour)
    pen.box(0.9, 0.55, 0.98, 0.78, colour)


def _clock(pen: Pen, colour: Colour) -> None:
    pen.oval(0.5, 0.5, 0.5, 0.5, scaled(colour, 0.6))
    pen.oval(0.5, 0.5, 0.42, 0.42, colour)
    pen.stroke([(0.5, 0.5), (0.5, 0.18)], 0.07, INK)
    pen.stroke([(0.5, 0.5), (0.75, 0.58)], 0.07, INK)


def _flower(pen: Pen, colour: Colour) -> None:
    pen.box(0.47, 0.5, 0.53, 1, (60, 140, 60))
    for petal in range(5):
        angle = petal * 2 * math.pi / 5 - math.pi / 2
        pen.oval(0.5 + 0.24 * math.cos(angle), 0.34 + 0.24 * math.sin(angle), 0.17, 0.17, colour)
    pen.oval(0.5, 0.34, 0.12, 0.12, (250, 225, 90))


def _butterfly(pen: Pen, colour: Colour) -> None:
    for x in (0.25, 0.75):
        pen.oval(x, 0.32, 0.25, 0.26, colour)
    for x in (0.3, 0.7):
        pen.oval(x, 0.72, 0.18, 0.2, scaled(colour, 0.6))
    pen.box(0.46, 0.15, 0.54, 0.9, INK)


def _mushroom(pen: Pen, colour: Colour) -> None:
    pen.box(0.38, 0.5, 0.62, 0.98, (235, 225, 205))
    pen.oval(0.5, 0.5, 0.48, 0.45, colour, arc=(math.pi, 2 * math.pi))
    pen.oval(0.35, 0.32, 0.07, 0.06, pale(colour))
    pen.oval(0.62, 0.25, 0.07, 0.06, pale(colour))


def _leaf(pen: Pen, colour: Colour) -> None:
    outline = [(0, 1), (0.05, 0.45), (0.4, 0.08), (1, 0), (0.92, 0.6), (0.55, 0.95)]
    pen.shape(outline, colour)
    pen.stroke([(0, 1), (0.9, 0.1)], 0.05, scaled(colour, 0.6))


DRAWINGS: dict[str, Callable[[Pen, Colour], None]] = {
    "table": _table,
    "cup": _cup,
    "apple": _apple,
    "banana": _banana,
    "boat": _boat,
    "fish": _fish,
    "anchor": _anchor,
    "sun": _sun,
    "house": _house,
    "tree": _tree,
    "car": _car,
    "lamp": _lamp,
    "book": _book,
    "key": _key,
    "clock": _clock,
    "chair": _chair,
    "flower": _flower,
    "butterfly": _butterfly,
    "mushroom": _mushroom,
    "leaf": _leaf,
}
