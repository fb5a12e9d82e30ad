"""The picture of a grid of results: points stand where numbers say, and panels are those that there are data of."""

import numpy as np
import pytest

from hf_distill.hub import plots
from hf_distill.hub.plots import COLOURS, DPI, HEIGHT, WIDTH, is_grid, results_plot
from hf_distill.hub.results import EvalReport, EvalRow, RowCost
from tests.helpers.sets import pictures


def row(
    name: str, accuracy: float, protocol: str = "mtt", student: str = "resnet18", images: int = 10, **more
) -> EvalRow:
    return EvalRow(name, "soft", student, protocol, images, [accuracy], "cpu", **more)


def cost(label_bytes: int, flop: int) -> RowCost:
    return RowCost("stored", 10, 100, 10, flop - 5, 5, 300, label_bytes)


def centres(picture, colour: str) -> list[tuple[float, float]]:
    """Where the points of a colour are in the axes of a picture, from left to right: (x, y) in pixels."""
    pixels = np.asarray(picture).astype(int)[:, : int(plots.COLUMNS * DPI) + 10]
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    ys, xs = np.nonzero(np.abs(pixels - wanted).sum(2) < 12)
    found = []
    for start in (order := np.sort(np.unique(xs)))[np.diff(order, prepend=-99) > 3]:
        here = (xs >= start) & (xs < min([x for x in order if x > start and x - 1 not in order], default=10**9))
        found.append((xs[here].mean(), ys[here].mean()))
    return found


def test_points_stand_where_their_accuracies_say():
    rows = [row("random", 0.2), row("distilled", 0.35), row("full data", 0.8, images=1000)]
    picture = results_plot(rows)
    assert picture.size == (WIDTH * DPI, HEIGHT * DPI)
    (_, low), (_, middle), (_, high) = (centres(picture, COLOURS[number])[0] for number in range(3))
    assert (low - middle) / (low - high) == pytest.approx((0.35 - 0.2) / (0.8 - 0.2), abs=0.01)
    xs = [centres(picture, COLOURS[number])[0][0] for number in range(3)]
    assert xs[0] < xs[1] < xs[2]


def test_quantities_that_rows_do_not_have_are_left_out():
    plain = [row("distilled", 0.4), row("random", 0.3)]
    assert len(centres(results_plot(plain), COLOURS[1])) == 1
    free = [row("distilled", 0.4, cost=cost(0, 10**9)), row("random", 0.3, cost=cost(0, 10**9))]
    assert len(centres(results_plot(free), COLOURS[1])) == 2, "no bytes of labels, so no axis of them"
    costly = [row("distilled", 0.4, cost=cost(2000, 10**9)), row("random", 0.3, cost=cost(0, 10**8))]
    assert len(centres(results_plot(costly), COLOURS[1])) == 3
    some = [row("distilled", 0.4, cost=cost(2000, 10**9)), row("random", 0.3)]
    assert [len(centres(results_plot(some), colour)) for colour in COLOURS[:2]] == [1, 3]


def test_protocols_have_panels_whatever_their_titles_add():
    titles = ("rded, batches of 10, 2x2 tiles", "rded, batches of 10", "mtt", "dc")
    rows = [row("distilled", 0.1 * number + 0.1, title) for number, title in enumerate(titles)]
    assert results_plot(rows).size == (WIDTH * DPI, 3 * HEIGHT * DPI)
    equal = [row("distilled", 0.5, f"mtt{of}") for of in ("", ", budget of 1,001 steps", ", budget of 1.23 TFLOP")]
    assert results_plot(equal).size == (WIDTH * DPI, 3 * HEIGHT * DPI)
    assert is_grid(equal[:2])
    many = [row("random", 0.5, f"p{number}", images=1) for number in range(9)]
    assert results_plot(many).size == (WIDTH * DPI, plots.MOST_PANELS * HEIGHT * DPI)
    assert [is_grid(some) for some in ([], rows[:2], rows, [rows[0], row("random", 0.1, titles[0], "vit")])] == [
        False,
        False,
        True,
        True,
    ]
    with pytest.raises(ValueError, match="there are no results to draw"):
        results_plot([])


def test_the_set_keeps_the_picture_of_a_grid_as_long_as_there_is_one(tmp_path, monkeypatch):
    rows = [EvalRow("distilled", "hard", "resnet18", name, 12, [0.5], "cpu") for name in ("mtt", "dc")]
    distilled = pictures(report=EvalReport(rows))
    picture = distilled.save_pretrained(tmp_path) / "assets" / "results.png"
    assert "(assets/results.png)" in (tmp_path / "README.md").read_text()
    with monkeypatch.context() as patch:  # where matplotlib is not installed
        for module in ("hub.plots", "distilled.card", "distilled.distilled_set"):
            patch.setattr(f"hf_distill.{module}.can_plot", lambda: False)
        distilled.save_pretrained(tmp_path)
        assert picture.exists()
        assert results_plot(rows) is None
    distilled.report = EvalReport(rows[:1])
    distilled.save_pretrained(tmp_path)
    assert not picture.exists()
    assert "results.png" not in (tmp_path / "README.md").read_text()


def test_the_key_tells_backbones_apart_whose_names_begin_alike():
    def drawn(backbone: str) -> np.ndarray:
        names = ("probe:vit (89abcdef)", f"probe:facebook/dinov2-{backbone} (01234567)")
        return np.asarray(results_plot([row("distilled", 0.5, student=name) for name in names]))

    assert not np.array_equal(drawn("base"), drawn("large"))
