"""The picture of accuracy against the bytes of labels. No torch, so that it can be drawn wherever cards are."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .cards import fitted, human_bytes
from .results import LabelRow

__all__ = ["MOST_PANELS", "labels_plot"]

MOST_PANELS, MOST_NAMES = 4, 40
SCALE = 2  # pixels for each of the lengths below: a card shows the picture smaller, on screens of all densities
WIDTH, HEIGHT = 800, 400  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 780, 44, 346  # of the axes in it
FREE_END = 116  # of the part of the horizontal axis that stands for no bytes at all
INK, GRAY, LIGHT, POINT = (40, 40, 40), (110, 110, 110), (226, 226, 226), (33, 102, 172)
RADIUS, CAP, TEXT, NAME_WIDTH = 5, 4, 14, 240

_Box = tuple[float, float, float, float]  # left, top, right, bottom


def labels_plot(rows: Sequence[LabelRow]) -> Image.Image:
    """Accuracy against the bytes of the labels, on a logarithmic axis, with the name of each point beside it.

    A bar is the mean plus and minus the standard deviation. Labels without bytes are at the left edge.

    Args:
        rows: Those with another student, protocol, split or number of images get a panel of their own, `MOST_PANELS`
            at most: the first ones. Of each panel the first `MOST_NAMES` are named.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("there are no labels to draw; expected at least one row")
    panels: dict[tuple[Any, ...], list[LabelRow]] = {}
    for row in rows:
        panels.setdefault(row.context, []).append(row)
    shown = list(panels.values())[:MOST_PANELS]
    picture = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT * len(shown)), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for number, panel in enumerate(shown):
        _Panel(draw, number * HEIGHT, panel).draw()
    return picture


class _Panel:
    """The axes of rows that can be compared, in a picture whose lengths are in units of `SCALE` pixels."""

    def __init__(self, draw: ImageDraw.ImageDraw, top: float, rows: Sequence[LabelRow]) -> None:
        self.canvas, self.top, self.rows = draw, top, rows
        self.font = ImageFont.load_default(size=SCALE * TEXT)
        sizes = [row.num_bytes for row in rows if row.num_bytes]
        self.first = math.floor(math.log10(min(sizes))) if sizes else 3
        self.last = max(math.ceil(math.log10(max(sizes))), self.first + 1) if sizes else 6
        ends = [100 * (row.mean + sign * _deviation(row)) for row in rows for sign in (-1, 1)]
        room = max(0.12 * (max(ends) - min(ends)), 0.5)
        self.step = _step(max(ends) - min(ends) + 2 * room)
        self.low = max(0.0, self.step * math.floor((min(ends) - room) / self.step))
        self.high = min(100.0, self.step * math.ceil((max(ends) + room) / self.step))

    def x(self, num_bytes: float) -> float:
        """Where so many bytes are."""
        if not num_bytes:
            return (LEFT + FREE_END) / 2
        start = FREE_END + 24
        return start + (RIGHT - 16 - start) * (math.log10(num_bytes) - self.first) / (self.last - self.first)

    def y(self, percent: float) -> float:
        """Where an accuracy is."""
        share = (min(max(percent, self.low), self.high) - self.low) / (self.high - self.low)
        return self.top + BOTTOM - (BOTTOM - TOP) * share

    def draw(self) -> list[_Box]:
        """Draw everything, and say where the names are."""
        self._axes()
        points = [box for row in self.rows for box in self._point(row)]
        names: list[_Box] = []
        for row in sorted(self.rows[:MOST_NAMES], key=lambda row: (row.num_bytes, -row.mean)):
            names.append(self._name(row, [*points, *names]))
        return names

    def _axes(self) -> None:
        images, student, protocol, split = self.rows[0].context
        title = f"{student} on the same {images:,} images, protocol {protocol}"
        self._text(LEFT, self.top + 20, fitted(title, self.font, SCALE * (RIGHT - LEFT)), "lm", INK)
        for number in range(round((self.high - self.low) / self.step) + 1):
            percent = self.low + number * self.step
            self._line((LEFT, self.y(percent), RIGHT, self.y(percent)), LIGHT)
            self._text(LEFT - 8, self.y(percent), f"{percent:g} %", "rm", GRAY)
        every = max(1, math.ceil((self.last - self.first) / 9))
        for power in range(self.first, self.last + 1):
            x = self.x(10.0**power)
            self._line((x, self.top + TOP, x, self.top + BOTTOM), LIGHT)
            if (power - self.first) % every == 0:
                self._text(x, self.top + BOTTOM + 8, human_bytes(10**power).replace(".0 ", " "), "mt", GRAY)
        self._text(self.x(0), self.top + BOTTOM + 8, "0 B", "mt", GRAY)
        # The axis is broken: no logarithm leads to nothing.
        for start, end in ((LEFT, FREE_END - 3), (FREE_END + 3, RIGHT)):
            self._line((start, self.top + BOTTOM, end, self.top + BOTTOM), GRAY)
        for x in (FREE_END - 3, FREE_END + 3):
            self._line((x - 3, self.top + BOTTOM + 6, x + 3, self.top + BOTTOM - 6), GRAY)
        what = fitted(f"bytes of the labels · accuracy on {split}", self.font, SCALE * (RIGHT - LEFT))
        self._text((LEFT + RIGHT) / 2, self.top + BOTTOM + 30, what, "mt", GRAY)

    def _point(self, row: LabelRow) -> list[_Box]:
        """Draw a point and its bar, and say what room they take."""
        x, y = self.x(row.num_bytes), self.y(100 * row.mean)
        low, high = (self.y(100 * (row.mean + sign * _deviation(row))) for sign in (-1, 1))
        if low > high:
            self._line((x, high, x, low), POINT, 1.5)
            for end in (low, high):
                self._line((x - CAP, end, x + CAP, end), POINT, 1.5)
        dot = (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)
        self.canvas.ellipse([SCALE * side for side in dot], fill=POINT)
        return [dot, (x - CAP, high - 1, x + CAP, low + 1)]

    def _name(self, row: LabelRow, taken: Sequence[_Box]) -> _Box:
        """Write the name of a point where there is room for it, and a line to the point where that is far from it."""
        x, y = self.x(row.num_bytes), self.y(100 * row.mean)
        name = fitted(" ".join(row.labels.split()), self.font, SCALE * NAME_WIDTH)
        width, height = self.font.getlength(name) / SCALE, TEXT + 2
        axes: _Box = (LEFT, self.top + TOP, RIGHT, self.top + BOTTOM)
        best, far, least = axes, 0.0, math.inf
        for distance, box in _places(x, y, width, height):
            overlap = sum(_overlap(box, other) for other in taken) + 10 * (width * height - _overlap(box, axes))
            if overlap < least:
                best, least, far = box, overlap, distance
            if overlap < 1e-6:
                break
        left, top, right, bottom = best
        if far > 0:
            end = (min(max(x, left), right), min(max(y, top), bottom))
            self._line((x, y, *end), GRAY)
        self._text(left, (top + bottom) / 2, name, "lm", INK)
        return best

    def _line(self, ends: _Box, colour: tuple[int, int, int], width: float = 1) -> None:
        self.canvas.line([SCALE * end for end in ends], fill=colour, width=round(SCALE * width))

    def _text(self, x: float, y: float, text: str, anchor: str, colour: tuple[int, int, int]) -> None:
        self.canvas.text((SCALE * x, SCALE * y), text, fill=colour, font=self.font, anchor=anchor)


def _deviation(row: LabelRow) -> float:
    return row.std if row.n > 1 else 0.0


def _step(span: float) -> float:
    """A round number that divides `span` into about six parts."""
    power = 10.0 ** math.floor(math.log10(span / 6))
    return next(step * power for step in (1, 2, 5, 10) if span / (step * power) <= 7)


def _places(x: float, y: float, width: float, height: float) -> Iterator[tuple[int, _Box]]:
    """Where the name of a point could stand, the best place first: how far away that is, and the room it takes."""
    for distance in range(12):
        away = 9 + 12 * distance
        across, down = (away, 0.0) if distance == 0 else (9 + 6 * distance, 12.0 * distance)
        for left, middle in (
            (x + across, y - down),
            (x + across, y + down),
            (x - across - width, y - down),
            (x - across - width, y + down),
            (x - width / 2, y - away - height / 2),
            (x - width / 2, y + away + height / 2),
        ):
            yield distance, (left, middle - height / 2, left + width, middle + height / 2)


def _overlap(one: _Box, other: _Box) -> float:
    """The area that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)
