"""The picture of accuracy against the bytes of labels, drawn by matplotlib where it is installed. No torch."""

import importlib.util
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from .cards import human_bytes
from .results import LabelRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MOST_PANELS", "can_plot", "labels_plot"]

logger = logging.getLogger(__name__)

MOST_PANELS, MOST_NAMES = 4, 12
DPI = 160  # a card shows the picture smaller, on screens of all densities
WIDTH, HEIGHT = 10.0, 4.0  # of a panel, in inches, as all lengths below
LEFT, BOTTOM, TOP = 0.8, 0.7, 3.55  # of the axes in it
FREE = 0.7  # width of the part that stands for no bytes at all
GAP, RIGHT, KEY = 0.12, 6.0, 6.3  # between the parts; right end of the axes; left end of the names
DODGE = 0.16  # between points of as many bytes
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
MARKERS = ("o", "s", "D", "^", "v", "P")
REST = "#9e9e9e"  # of the points that are not named
GRID, GRAY = "#e2e2e2", "#5f5f5f"


def can_plot() -> bool:
    """True where matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def labels_plot(rows: Sequence[LabelRow]) -> Image.Image | None:
    """Accuracy against the bytes of the labels, on a logarithmic axis, with the name and numbers of each point.

    A bar is the mean plus and minus the standard deviation. Labels without bytes have a part of the axis of their own.

    Args:
        rows: Those with another student, protocol, split or number of images get a panel of their own, `MOST_PANELS`
            at most: the first ones. Of each panel the `MOST_NAMES` best are named.

    Returns:
        None, with a warning, where matplotlib is not installed.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("there are no labels to draw; expected at least one row")
    if not can_plot():
        logger.warning("no picture of the labels without matplotlib; pip install 'hf_distill[plots]' to have one")
        return None
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[tuple[Any, ...], list[LabelRow]] = {}
    for row in rows:
        panels.setdefault(row.context, []).append(row)
    shown = list(panels.values())[:MOST_PANELS]
    with style.context("default"):  # whatever style the user has; names are no formulas
        figure = Figure(figsize=(WIDTH, HEIGHT * len(shown)), dpi=DPI, facecolor="white")
        for number, panel in enumerate(shown):
            _draw_panel(figure, HEIGHT * (len(shown) - 1 - number), panel)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")


def _draw_panel(figure: "Figure", bottom: float, rows: Sequence[LabelRow]) -> None:
    """Draw rows that can be compared, `bottom` inches above the lower end of the figure."""
    best_first = sorted(rows, key=lambda row: -row.mean)
    looks = {
        id(row): (COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        if number < MOST_NAMES
        else (REST, ".")
        for number, row in enumerate(best_first)
    }
    free, costly = [row for row in rows if not row.num_bytes], [row for row in rows if row.num_bytes]
    parts = []
    if free:
        parts.append((_add_axes(figure, LEFT, bottom, FREE if costly else RIGHT - LEFT), free))
        parts[0][0].set_xlim(-1, 1)
        parts[0][0].set_xticks([0], ["0 B"])
    if costly:
        left = LEFT + FREE + GAP if free else LEFT
        parts.append((_add_axes(figure, left, bottom, RIGHT - left), costly))
        _scale_bytes(parts[-1][0], costly)
    low, high = _limits(rows)
    for axes, part in parts:
        axes.set_ylim(low, high)
        _draw_points(figure, axes, part, looks)
    if len(parts) == 2:
        _break(parts[0][0], parts[1][0])
    parts[0][0].yaxis.set_major_formatter(lambda percent, _: f"{percent:g} %")
    images, student, protocol, split = rows[0].context
    title = _cut(f"{student} on the same {images:,} images, protocol {protocol}", 100)
    _write(figure, LEFT, bottom + TOP + 0.15, title, size=11)
    below = _cut(f"bytes of the labels · accuracy on {split}, mean ± standard deviation (number of seeds)", 90)
    _write(figure, (LEFT + RIGHT) / 2, bottom + 0.27, below, color=GRAY, ha="center")
    _draw_key(figure, bottom, best_first, looks)


def _add_axes(figure: "Figure", left: float, bottom: float, width: float) -> "Axes":
    """Axes at a place in inches."""
    height = figure.get_figheight()
    axes = figure.add_axes((left / WIDTH, (bottom + BOTTOM) / height, width / WIDTH, (TOP - BOTTOM) / height))
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GRAY, labelsize=9.5, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRAY)
    return axes


def _scale_bytes(axes: "Axes", rows: Sequence[LabelRow]) -> None:
    """Give the horizontal axis whole powers of ten around the bytes of all rows."""
    from matplotlib.ticker import FixedLocator, NullLocator

    sizes = [row.num_bytes for row in rows]
    first = math.floor(math.log10(min(sizes)))
    last = max(math.ceil(math.log10(max(sizes))), first + 1)
    axes.set_xscale("log")
    axes.set_xlim(10.0 ** (first - 0.08 * (last - first)), 10.0 ** (last + 0.08 * (last - first)))
    powers = range(first, last + 1, max(1, math.ceil((last - first) / 7)))
    axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in powers]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda size, _: human_bytes(round(size)).replace(".0 ", " "))


def _limits(rows: Sequence[LabelRow]) -> tuple[float, float]:
    """The ends of the vertical axis in percent, a little beyond all bars."""
    ends = [100 * (row.mean + sign * _deviation(row)) for row in rows for sign in (-1, 1)]
    room = max(0.08 * (max(ends) - min(ends)), 0.5)
    return max(-1.0, min(ends) - room), min(101.0, max(ends) + room)


def _draw_points(figure: "Figure", axes: "Axes", rows: Sequence[LabelRow], looks: dict[int, tuple[str, str]]) -> None:
    """Draw a point and a bar for each row; those of as many bytes stand side by side."""
    from matplotlib.transforms import ScaledTranslation

    for row in rows:
        beside = [other for other in rows if other.num_bytes == row.num_bytes]
        place = next(index for index, other in enumerate(beside) if other is row) - (len(beside) - 1) / 2
        step = min(DODGE, 0.8 * FREE / len(beside))
        aside = ScaledTranslation(step * place, 0, figure.dpi_scale_trans)
        colour, marker = looks[id(row)]
        axes.errorbar(
            row.num_bytes,
            100 * row.mean,
            yerr=100 * _deviation(row) or None,
            fmt=marker,
            color=colour,
            markersize=7,
            elinewidth=1.6,
            capsize=3.5,
            capthick=1.6,
            clip_on=False,
            transform=axes.transData + aside,
        )


def _break(free: "Axes", costly: "Axes") -> None:
    """Mark that the horizontal axis is broken: no logarithm leads to nothing."""
    costly.tick_params(labelleft=False)
    mark: dict[str, Any] = {"marker": [(-0.5, -1), (0.5, 1)], "markersize": 9, "color": GRAY}
    mark |= {"linestyle": "none", "clip_on": False}
    free.plot([1], [0], transform=free.transAxes, **mark)
    costly.plot([0], [0], transform=costly.transAxes, **mark)


def _draw_key(
    figure: "Figure", bottom: float, best_first: Sequence[LabelRow], looks: dict[int, tuple[str, str]]
) -> None:
    """Write the name of each point, and its numbers, beside the axes; the best one comes first."""
    from matplotlib.lines import Line2D

    line = min(0.3, (TOP - BOTTOM) / (min(len(best_first), MOST_NAMES) + 1))
    height = figure.get_figheight()
    for number, row in enumerate(best_first[:MOST_NAMES]):
        y = bottom + TOP - line * (number + 0.5)
        colour, marker = looks[id(row)]
        figure.add_artist(
            Line2D([KEY / WIDTH], [y / height], marker=marker, color=colour, markersize=7, markeredgewidth=0)
        )
        _write(figure, KEY + 0.15, y, _cut(row.labels, 30))
        _write(figure, WIDTH - 0.15, y, row.percent(), ha="right")
    if len(best_first) > MOST_NAMES:
        y = bottom + TOP - line * (MOST_NAMES + 0.5)
        _write(figure, KEY + 0.15, y, f"and {len(best_first) - MOST_NAMES:,} more, in gray", color=GRAY)


def _write(figure: "Figure", x: float, y: float, text: str, size: float = 9.5, **look: Any) -> None:
    """Write a text at a place in inches; what looks like a formula in it is none."""
    figure.text(x / WIDTH, y / figure.get_figheight(), text, fontsize=size, va="center", parse_math=False, **look)


def _cut(text: str, most: int) -> str:
    """`text` in one line, cut with an ellipsis where it is longer than `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _deviation(row: LabelRow) -> float:
    return row.std if row.n > 1 else 0.0
