"""Pictures of accuracy: of labels against their bytes, and of all results of a set against what they cost. Drawn by
matplotlib where it is installed. No torch."""

import importlib.util
import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from .cards import human_bytes
from .results import SETS, EvalRow, LabelRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MOST_PANELS", "can_plot", "is_grid", "labels_plot", "results_plot"]

logger = logging.getLogger(__name__)

MOST_PANELS, MOST_NAMES = 4, 12
BUDGET = re.compile(r", budget of [0-9,.]+ (?:steps|[A-Za-z]*FLOP)")  # in the name of a protocol
DPI = 160  # a card shows the picture smaller, on screens of all densities
WIDTH, HEIGHT = 10.0, 4.0  # of a panel, in inches, as all lengths below
LEFT, BOTTOM, TOP = 0.8, 0.7, 3.55  # of the axes in it
FREE = 0.7  # width of the part that stands for no bytes at all
GAP, RIGHT, KEY = 0.12, 6.0, 6.3  # between the parts; right end of the axes; left end of the names
DODGE = 0.16  # between points of as many bytes
COLUMNS, BETWEEN, KEYS = 7.75, 0.25, 8.05  # of a grid: right end of its axes; between two; left end of the names
ROOM = 0.45  # beside the first and the last of its points
COLOURS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#bcbd22"),
    *("#393b79", "#637939", "#8c6d31", "#843c39", "#7b4173", "#000000"),
)
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
    panels: dict[tuple[Any, ...], list[LabelRow]] = {}
    for row in rows:
        panels.setdefault(row.context, []).append(row)
    return _drawn(list(panels.values())[:MOST_PANELS], _draw_panel)


def is_grid(rows: Sequence[EvalRow]) -> bool:
    """True for results of several protocols, or of several students."""
    return len({(_protocol(row), row.student) for row in rows}) > 1


def results_plot(rows: Sequence[EvalRow], names: Sequence[str] | None = None) -> Image.Image | None:
    """Accuracy against the number of images and, where rows say what they cost, against bytes of labels and FLOP.

    A colour is a set, a shape is a student, and hard labels are hollow where there are others; a bar is the mean plus
    and minus the standard deviation. FLOP are those of a student and of whoever labels its images.

    Args:
        rows: Those of another protocol or split get a panel of their own, `MOST_PANELS` at most: the first ones.
        names: What each row was trained on, where rows are of several sets; by which colours are given, in that order.

    Returns:
        None, with a warning, where matplotlib is not installed.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("there are no results to draw; expected at least one row")
    named = {id(row): name for row, name in zip(rows, names or [row.set for row in rows], strict=True)}
    if not can_plot():
        logger.warning("no picture of the results without matplotlib; pip install 'hf_distill[plots]' to have one")
        return None
    panels: dict[tuple[str, str], list[EvalRow]] = {}
    for row in sorted(rows, key=lambda row: (SETS.index(row.set), row.student, row.labels)):
        panels.setdefault((_protocol(row), row.split), []).append(row)
    order = list(dict.fromkeys((_protocol(row), row.split) for row in rows))
    shown = [panels[place] for place in order[:MOST_PANELS]]
    every = [row for panel in shown for row in panel]
    shown_names = {named[id(row)] for row in every}
    sets = [name for name in (SETS if names is None else dict.fromkeys(names)) if name in shown_names]
    students = list(dict.fromkeys(row.student for row in every))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(sets)}
    markers = {name: MARKERS[number % len(MARKERS)] for number, name in enumerate(students)}
    labels = sorted({row.labels for row in every})
    looks = {
        id(row): {
            "color": colours[named[id(row)]],
            "fmt": markers[row.student],
            "markerfacecolor": "white" if len(labels) > 1 and row.labels == "hard" else colours[named[id(row)]],
        }
        for row in every
    }

    def draw(figure: "Figure", bottom: float, panel: Sequence[EvalRow]) -> None:
        _draw_results(figure, bottom, panel, looks)
        there = {named[id(row)] for row in panel} if names else {*colours}
        own = {name: colour for name, colour in colours.items() if name in there}
        _draw_keys(figure, bottom, own, markers, labels)

    return _drawn(shown, draw)


def _drawn(panels: Sequence[Sequence[Any]], draw: Callable[["Figure", float, Any], None]) -> Image.Image:
    """A picture of panels one below the other, each of which `draw` draws at a height in inches."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context("default"):  # whatever style the user has; names are no formulas
        figure = Figure(figsize=(WIDTH, HEIGHT * len(panels)), dpi=DPI, facecolor="white")
        for number, panel in enumerate(panels):
            draw(figure, HEIGHT * (len(panels) - 1 - number), panel)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")


def _draw_panel(figure: "Figure", bottom: float, rows: Sequence[LabelRow]) -> None:
    """Draw rows that can be compared, `bottom` inches above the lower end of the figure."""
    best_first = sorted(rows, key=lambda row: -row.mean)
    looks = {
        id(row): {"color": COLOURS[number % len(COLOURS)], "fmt": MARKERS[number % len(MARKERS)]}
        if number < MOST_NAMES
        else {"color": REST, "fmt": "."}
        for number, row in enumerate(best_first)
    }
    _draw_against(figure, LEFT, RIGHT, bottom, rows, lambda row: row.num_bytes, _bytes, looks)
    images, student, protocol, split = rows[0].context
    title = _cut(f"{student} on the same {images:,} images, protocol {protocol}", 100)
    _write(figure, LEFT, bottom + TOP + 0.15, title, size=11)
    below = _cut(f"bytes of the labels · accuracy on {split}, mean ± standard deviation (number of seeds)", 90)
    _write(figure, (LEFT + RIGHT) / 2, bottom + 0.27, below, color=GRAY, ha="center")
    _draw_key(figure, bottom, best_first, looks)


def _protocol(row: EvalRow) -> str:
    """The name of a protocol with its budget, without what its title says of batches, tiles and labels."""
    budget = BUDGET.search(row.protocol)
    return row.protocol.partition(",")[0] + (budget[0] if budget else "")


def _bytes(size: float) -> str:
    return human_bytes(round(size)).replace(".0 ", " ")


def _draw_results(figure: "Figure", bottom: float, rows: Sequence[EvalRow], looks: dict[int, dict[str, Any]]) -> None:
    """Draw the rows of one protocol, once against each quantity that they have."""
    quantities: list[tuple[str, Callable[[EvalRow], int | None], Callable[[float], str]]] = [
        ("images", lambda row: row.images, lambda count: f"{round(count):,}"),
        ("bytes of the labels", lambda row: None if row.cost is None else row.cost.label_bytes, _bytes),
        (
            "FLOP of a student",
            lambda row: None if row.cost is None else row.cost.flop,
            lambda count: f"{count:.0e}".replace("e+", "e"),
        ),
    ]
    known = [(text, of, written) for text, of, written in quantities if any(of(row) for row in rows)]
    width = (COLUMNS - LEFT - BETWEEN * (len(known) - 1)) / len(known)
    for number, (text, of, written) in enumerate(known):
        left = LEFT + number * (width + BETWEEN)
        having = [row for row in rows if of(row) is not None]
        _draw_against(
            figure, left, left + width, bottom, having, of, written, looks, limits=_limits(rows), first=not number
        )
        _write(figure, left + width / 2, bottom + 0.27, text, color=GRAY, ha="center")
    title = f"protocol {_protocol(rows[0])}: accuracy on {rows[0].split}, mean ± standard deviation"
    _write(figure, LEFT, bottom + TOP + 0.15, _cut(title, 100), size=11)


def _draw_keys(
    figure: "Figure", bottom: float, colours: dict[str, str], markers: dict[str, str], labels: Sequence[str]
) -> None:
    """Write what colours, shapes and hollow points mean, beside the axes."""
    from matplotlib.lines import Line2D

    gap: list[tuple[str, dict[str, Any]]] = [("", {"marker": "none"})]
    entries: list[tuple[str, dict[str, Any]]] = [
        (name, {"color": colour, "marker": "o"}) for name, colour in colours.items()
    ]
    entries += gap + [(name, {"color": GRAY, "marker": marker}) for name, marker in markers.items()]
    if len(labels) > 1:
        names = {"hard": "hard labels", "soft": "method's labels"}
        faces = {"hard": "white", "soft": GRAY}
        entries += gap + [
            (names[kind], {"color": GRAY, "marker": "o", "markerfacecolor": faces[kind]}) for kind in labels
        ]
    line, height = min(0.27, (TOP - BOTTOM + 0.4) / len(entries)), figure.get_figheight()
    for number, (name, look) in enumerate(entries):
        y = bottom + TOP - line * (number + 0.5) + 0.1
        figure.add_artist(Line2D([KEYS / WIDTH], [y / height], markersize=7, linestyle="none", **look))
        _write(figure, KEYS + 0.15, y, _cut(_without_home(name), 20))


def _draw_against(
    figure: "Figure",
    left: float,
    right: float,
    bottom: float,
    rows: Sequence[Any],
    of: Callable[[Any], Any],
    written: Callable[[float], str],
    looks: dict[int, dict[str, Any]],
    *,
    limits: tuple[float, float] | None = None,
    first: bool = True,
) -> None:
    """Draw rows against a quantity `of` them on a logarithmic axis, in which 0 has a part of its own.

    Args:
        written: The quantity as a text.
        looks: Of each point, by the id of its row.
        limits: Of the vertical axis of one of several columns; what the rows need if not given.
        first: Write the percents beside it.
    """
    free, costly = [row for row in rows if not of(row)], [row for row in rows if of(row)]
    parts = []
    if free:
        parts.append((_add_axes(figure, left, bottom, FREE if costly else right - left), free))
        parts[0][0].set_xlim(-1, 1)
        parts[0][0].set_xticks([0], [written(0)])
    if costly:
        begin = left + FREE + GAP if free else left
        parts.append((_add_axes(figure, begin, bottom, right - begin), costly))
        sizes = [of(row) for row in costly]
        if limits is None:
            _scale(parts[-1][0], sizes, written)
        else:
            _scale_narrow(parts[-1][0], sizes, written, right - begin)
    low, high = _limits(rows) if limits is None else limits
    for axes, part in parts:
        axes.set_ylim(low, high)
        _draw_points(figure, axes, part, of, looks)
    if len(parts) == 2:
        _break(parts[0][0], parts[1][0])
    parts[0][0].yaxis.set_major_formatter(lambda percent, _: f"{percent:g} %")
    parts[0][0].tick_params(labelleft=first)


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


def _scale(axes: "Axes", sizes: Sequence[float], written: Callable[[float], str]) -> None:
    """Give the horizontal axis whole powers of ten around all `sizes`."""
    first = math.floor(math.log10(min(sizes)))
    last = max(math.ceil(math.log10(max(sizes))), first + 1)
    axes.set_xlim(10.0 ** (first - 0.08 * (last - first)), 10.0 ** (last + 0.08 * (last - first)))
    _tick(axes, range(first, last + 1, max(1, math.ceil((last - first) / 7))), written)


def _scale_narrow(axes: "Axes", sizes: Sequence[float], written: Callable[[float], str], width: float) -> None:
    """The same for axes `width` inches wide: what stands side by side has its room in them, and few powers a text."""
    low, high = math.log10(min(sizes)), math.log10(max(sizes))
    low, high = (low, high) if high - low > 0.1 else (low - 0.5, high + 0.5)
    room = min(ROOM, 0.3 * width) * (high - low) / (width - 2 * min(ROOM, 0.3 * width))
    axes.set_xlim(10.0 ** (low - room), 10.0 ** (high + room))
    powers = range(math.ceil(low - room), math.floor(high + room) + 1)
    shown: Sequence[float] = powers[:: max(1, math.ceil(len(powers) / (width / 0.75)))]
    ends = sorted({math.log10(min(sizes)), math.log10(max(sizes))})
    _tick(axes, shown if len(shown) > 1 else ends if len(ends) > 1 and width > 1.4 else ends[:1], written)


def _tick(axes: "Axes", powers: Sequence[float], written: Callable[[float], str]) -> None:
    """Mark some powers of ten on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, NullLocator

    limits = axes.get_xlim()
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in powers]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda size, _: written(size))


def _limits(rows: Sequence[EvalRow | LabelRow]) -> tuple[float, float]:
    """The ends of the vertical axis in percent, a little beyond all bars."""
    ends = [100 * (row.mean + sign * _deviation(row)) for row in rows for sign in (-1, 1)]
    room = max(0.08 * (max(ends) - min(ends)), 0.5)
    return max(-1.0, min(ends) - room), min(101.0, max(ends) + room)


def _draw_points(
    figure: "Figure", axes: "Axes", rows: Sequence[Any], of: Callable[[Any], Any], looks: dict[int, dict[str, Any]]
) -> None:
    """Draw a point and a bar for each row; those of which as much is known stand side by side."""
    from matplotlib.transforms import ScaledTranslation

    for row in rows:
        beside = [other for other in rows if of(other) == of(row)]
        place = next(index for index, other in enumerate(beside) if other is row) - (len(beside) - 1) / 2
        step = min(DODGE, 0.8 * FREE / len(beside))
        aside = ScaledTranslation(step * place, 0, figure.dpi_scale_trans)
        axes.errorbar(
            of(row),
            100 * row.mean,
            yerr=100 * _deviation(row) or None,
            **looks[id(row)],
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
    figure: "Figure", bottom: float, best_first: Sequence[LabelRow], looks: dict[int, dict[str, Any]]
) -> None:
    """Write the name of each point, and its numbers, beside the axes; the best one comes first."""
    from matplotlib.lines import Line2D

    line = min(0.3, (TOP - BOTTOM) / (min(len(best_first), MOST_NAMES) + 1))
    height = figure.get_figheight()
    for number, row in enumerate(best_first[:MOST_NAMES]):
        y = bottom + TOP - line * (number + 0.5)
        look = {"marker": looks[id(row)]["fmt"], "color": looks[id(row)]["color"]}
        figure.add_artist(Line2D([KEY / WIDTH], [y / height], markersize=7, markeredgewidth=0, **look))
        _write(figure, KEY + 0.15, y, _cut(row.labels, 30))
        _write(figure, WIDTH - 0.15, y, row.percent(), ha="right")
    if len(best_first) > MOST_NAMES:
        y = bottom + TOP - line * (MOST_NAMES + 0.5)
        _write(figure, KEY + 0.15, y, f"and {len(best_first) - MOST_NAMES:,} more, in gray", color=GRAY)


def _write(figure: "Figure", x: float, y: float, text: str, size: float = 9.5, **look: Any) -> None:
    """Write a text at a place in inches; what looks like a formula in it is none."""
    figure.text(x / WIDTH, y / figure.get_figheight(), text, fontsize=size, va="center", parse_math=False, **look)


def _without_home(name: str) -> str:
    """The name of a network of a probe without what many of them begin with: `probe:`, and whose it is."""
    return name.rpartition("/")[2] if name.startswith("probe:") and "/" in name else name.removeprefix("probe:")


def _cut(text: str, most: int) -> str:
    """`text` in one line, cut with an ellipsis where it is longer than `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _deviation(row: EvalRow | LabelRow) -> float:
    return row.std if row.n > 1 else 0.0
