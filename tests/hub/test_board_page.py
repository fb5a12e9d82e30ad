"""The page of a board in a real browser, from a file and without a network: what a reader sees, and can do.

Where no browser is installed the tests are skipped, with TEST_BROWSER=required in the environment they fail.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_distill.hub.board import read_sets
from hf_distill.hub.board_page import save_board
from tests.helpers.boards import HOSTILE, a_row, a_set

pytestmark = pytest.mark.slow

COST = {"regime": "stored", "steps": 7, "images_seen": 70, "teacher_images": 70, "image_bytes": 640, "label_bytes": 400}


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board of three sets, one of them hostile; all accuracies differ, and so do orders by text and by number."""
    folder = tmp_path_factory.mktemp("sets")
    a_set(
        folder / "one",
        [
            a_row(accuracies=[0.912]),
            a_row("random", accuracies=[0.6, 0.64]),
            a_row("full data", accuracies=[0.99], images=1295),
            a_row("random", labels="soft", accuracies=[0.7]),
            a_row(labels="soft", accuracies=[0.83, 0.87], cost={**COST, "student_flop": 5_000_000, "teacher_flop": 0}),
        ],
        version=2,
        scores=[{"name": "label robust score", "values": [0.4], "mean": 0.4321, "components": {"HLR": {"mean": 0.2}}}],
        differences=[{"against": "random", "mean": 0.147, "interval": [0.05, 0.244], "verdict": "better"}],
        hyperparameters={"lr_img": 0.125},
        card="# A card\n\nof two lines\n",
    )
    a_set(folder / "two", [a_row(accuracies=[0.095], images=100), a_row(student="convnet_d3", accuracies=[0.5])])
    row = a_row(student=HOSTILE, protocol=HOSTILE, device=HOSTILE, labels="soft", accuracies=[0.3])
    a_set(folder / "zzz", [row], card=HOSTILE, method=HOSTILE, source={"name": f"x{HOSTILE}"})
    return save_board(folder / "board", read_sets([folder]), title=f"All {HOSTILE}") / "index.html"


@pytest.fixture(scope="module")
def driver(browsers: Any) -> Iterator[Any]:
    with browsers.browser() as driver:
        yield driver


@pytest.fixture
def page(browsers: Any, driver: Any, board: Path) -> Iterator[Any]:
    """The page, freshly opened; in the end nothing of a set ran, nothing was asked for, and nothing complained."""
    browsers.look(driver)
    driver.get("about:blank")
    browsers.requests(driver)
    driver.get(board.as_uri())
    yield driver
    assert driver.execute_script("return window.pwned") is None
    asked = [url for url in browsers.requests(driver) if not url.startswith("data:")]
    assert asked == [board.as_uri()]
    assert not driver.get_log("browser")


def rows(page: Any) -> list[tuple[str, list[str]]]:
    """The rows that are seen: of each the regime of its block, and the texts of its cells that are seen."""
    script = """
    const seen = (node) => node.getClientRects().length > 0;
    const texts = (row) => [...row.cells].filter(seen).map((cell) => cell.innerText);
    return [...document.querySelectorAll("#results tr.row")].filter(seen)
      .map((row) => [row.closest("tbody").querySelector(".regime").innerText, texts(row)]);
    """
    return [(regime, cells) for regime, cells in page.execute_script(script)]


def blocks(page: Any) -> list[list[str]]:
    """The accuracies of each block that is seen, from top to bottom."""
    script = """
    return [...document.querySelectorAll("#results tbody")].filter((body) => body.getClientRects().length)
      .map((body) => [...body.querySelectorAll("tr.row")].map((row) => row.querySelector(".accuracy").innerText));
    """
    return page.execute_script(script)


def click(page: Any, selector: str, text: str = "") -> Any:
    """Click on the first element that is seen and has such a text, as somebody with a mouse would."""
    script = """
    const fits = (node) => node.getClientRects().length && node.innerText.includes(arguments[1]);
    return [...document.querySelectorAll(arguments[0])].find(fits);
    """
    found = page.execute_script(script, selector, text)
    found.click()
    return found


def choose(page: Any, name: str, value: str) -> None:
    """Choose from a list."""
    page.find_element("css selector", f"select[name={name}] option[value='{value}']").click()


HARD, OTHER, STORED, HOSTILES = ["99.0 (1)", "91.2 (1)", "62.0 ± 2.8 (2)", "9.5 (1)"], ["50.0 (1)"], [], ["30.0 (1)"]
STORED = ["85.0 ± 2.8 (2)", "70.0 (1)"]


def test_sorting_goes_both_ways_and_never_leaves_a_block(page):
    assert blocks(page) == [HARD, OTHER, STORED, HOSTILES]  # best first, by number: 9.5 is below 62.0
    click(page, "thead button", "accuracy")
    assert blocks(page) == [HARD[::-1], OTHER, STORED[::-1], HOSTILES]
    click(page, "thead button", "accuracy")
    assert blocks(page) == [HARD, OTHER, STORED, HOSTILES]
    sorts = "return [...document.querySelectorAll('[aria-sort]')].map((e) => [e.innerText, e.ariaSort])"
    assert page.execute_script(sorts) == [["accuracy", "descending"]]
    images = click(page, "thead button", "images")
    assert [cells[2] for _, cells in rows(page)[:4]] == ["1,295", "100", "20", "20"]
    images.send_keys("\ue007")  # Enter: no mouse is needed
    assert [cells[2] for _, cells in rows(page)[:4]] == ["20", "20", "100", "1,295"]
    click(page, "thead button", "trained on")
    assert [cells[0].split("\n")[0] for _, cells in rows(page)[:4]] == [
        "full data beside one",
        "one",
        "random beside one",
        "two",
    ]


def test_filters_leave_what_they_say_and_the_page_counts_it(page):
    count = page.find_element("id", "count")
    assert count.text == "8 rows"
    click(page, ".regimes label", "stored labels")
    assert {regime for regime, _ in rows(page)} == {"stored labels"}
    assert count.text == "3 of 8 rows"
    click(page, ".check", "real images beside")
    assert blocks(page) == [STORED, HOSTILES]
    assert [cells[0] for _, cells in rows(page)] == ["one", "zzz"]
    choose(page, "student", "convnet_d3")
    assert rows(page) == []
    click(page, "#reset")
    assert count.text == "8 rows"
    choose(page, "student", "convnet_d3")
    assert [cells[0] for _, cells in rows(page)] == ["two"]
    assert not page.find_elements("css selector", ".panel")  # one row is no plot


def test_costs_are_shown_where_they_are_asked_for(page):
    before = len(rows(page)[0][1])
    click(page, ".check", "costs")
    (cells,) = [cells for _, cells in rows(page) if cells[6] == STORED[0]]
    assert len(cells) == before + 7
    assert {"7", "640", "400 B", "5 M"} <= set(cells)


def test_plots_have_a_point_for_each_row_that_differs_and_against_bytes_all_labels_of_as_many_images(page):
    shown = (
        "return [...document.querySelectorAll('.panel')].map((p) => [p.querySelector('figcaption').innerText,"
        "[...p.querySelectorAll('a')].map((a) => a.getAttribute('aria-label'))])"
    )
    ((caption, points),) = page.execute_script(shown)
    assert caption == "digits (10 classes, 8×8) hard labels · quick · convnet_d2"
    assert sorted(points) == [
        "full data, beside one: 99.0 ± 0.0 %, 1,295",
        "one: 91.2 ± 0.0 %, 20",
        "random, beside one: 62.0 ± 2.8 %, 20",
        "two: 9.5 ± 0.0 %, 100",
    ]
    page.find_element("css selector", "#axis option[value=bytes]").click()
    ((caption, points),) = page.execute_script(shown)
    assert caption == "digits (10 classes, 8×8) 20 images · quick · convnet_d2"
    assert "one: 85.0 ± 2.8 %, 400 B" in points
    assert "one: 91.2 ± 0.0 %, 0 B" in points


def test_a_set_is_opened_shown_and_closed(page, browsers):
    click(page, ".row a", "one")
    # A dialog opens and closes, and a picture is decoded, in events of their own.
    (dialog,) = browsers.until(page, lambda: page.find_elements("css selector", "dialog[open]"), "a dialog")
    for words in (
        "some-method",
        "digits (10 classes, 8×8)",
        "stored labels",
        "85.0 ± 2.8 (2)",
        "label robust score 43.2 HLR 20.0",
        "random 14.7 5.0 to 24.4 better",
    ):
        assert words in dialog.text
    picture = (
        "const i = document.querySelector('dialog[open] img'); return [i.complete, i.naturalWidth, i.naturalHeight]"
    )
    browsers.until(page, lambda: page.execute_script(picture)[0], "a picture")
    assert page.execute_script(picture) == [True, 60, 30]
    assert "0.125" not in dialog.text
    click(page, "dialog[open] summary", "Settings")
    assert "0.125" in dialog.text
    click(page, "dialog[open] summary", "Card")
    assert "# A card\n\nof two lines" in dialog.text
    assert page.current_url.endswith("#set-0")  # a link to the set itself
    page.switch_to.active_element.send_keys("\ue00c")  # Escape
    browsers.until(page, lambda: not page.find_elements("css selector", "dialog[open]"), "no dialog")
    click(page, ".cards a", "two")
    (heading,) = browsers.until(page, lambda: page.find_elements("css selector", "dialog[open] h2"), "a dialog")
    assert heading.text == "two"
    click(page, "dialog[open] form button")
    browsers.until(page, lambda: "#" not in page.current_url, "the address of the board")


def test_what_a_hostile_set_says_is_text(page):
    assert page.find_element("tag name", "h1").text.startswith("All </script></style></pre><script>")
    click(page, ".row a", "zzz")
    assert "<script>window.pwned = 1</script><img src=x" in page.find_element("css selector", "dialog[open]").text
    click(page, "dialog[open] summary", "Card")
    assert "<!--" in page.find_element("css selector", "dialog[open] pre").text
    count = "return document.querySelectorAll('script').length + document.querySelectorAll('style').length"
    assert page.execute_script(count) == 2
    page.execute_script("document.body.append(Object.assign(document.createElement('script'), {text: 'pwned = 1'}))")
    assert "violates" in page.get_log("browser")[0]["message"]  # so the policy holds


@pytest.mark.parametrize(("width", "dark"), [(360, True), (360, False), (1280, True)])
def test_the_page_is_legible_in_light_and_dark_on_a_phone_and_on_a_desk(page, browsers, width, dark):
    browsers.look(page, width=width, height=800, dark=dark)
    wide = "return [document.documentElement.scrollWidth, innerWidth, document.querySelector('#results').offsetWidth]"
    scrolled, inner, table = page.execute_script(wide)
    assert scrolled <= inner == width
    assert table <= width
    colours = page.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in colours)
    assert (ink > 200, paper < 60) == (dark, dark)
    assert abs(ink - paper) > 180
    accuracies = [text for block in blocks(page) for text in block]
    assert accuracies == [*HARD, *OTHER, *STORED, *HOSTILES]
    ends = (
        "return new Set([...document.querySelectorAll('.accuracy')].map((c) => c.getBoundingClientRect().right)).size"
    )
    assert page.execute_script(ends) == 1  # numbers end at one line
