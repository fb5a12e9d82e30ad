"""The page of a demo in a real browser, from its own server: what a visitor sees, trains, draws and is told.

`make demo-test` runs it in an environment of its own, with gradio. Where no browser is installed it is skipped, with
TEST_BROWSER=required in the environment it fails.
"""

import math
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By

from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.networks.architectures import StudentSpec
from tests.helpers import ROOT
from tests.helpers.boards import HOSTILE
from tests.helpers.sets import pictures

STARTED = 180  # seconds in which a server that imports torch and gradio is there, on a busy machine
STILL = 6  # looks in a row that find an element where it was


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sets: the means of the digits of each class, and noise in colour that takes long to learn."""
    folder = tmp_path_factory.mktemp("sets")
    train, _ = RealImages.train_and_test(DataArguments())
    means = torch.stack([train.uint8(train.class_rows(label)).float().mean(0) for label in range(10)]).round().byte()
    spec = StudentSpec("convnet_d2", 10, 1, (8, 8), {"width": 32, "norm": "instance"})
    config = {
        "student": spec.to_dict(),
        "hyperparameters": {"eval_protocol": "quick"},
        "dsa_strategy": "color_crop_cutout_scale_rotate",
        "source": {"name": "digits"},
    }
    DistilledSet(means, torch.arange(10), train.class_names, train.preprocessing, config=config).save_pretrained(
        folder / "digits"
    )
    names = [HOSTILE, "Hund", "犬", "a/b | c"]
    config = {"method": HOSTILE, "hyperparameters": {"eval_protocol": "mtt"}, "source": {"name": HOSTILE}}
    pictures(50, 3, (16, 16), names=names, config=config).save_pretrained(folder / "noise")
    return folder


SERVER = """
from types import SimpleNamespace
from hf_distill.demo import page
page.secrets = SimpleNamespace(randbits=lambda bits: 6)  # every student has the same seed,
page.PATIENCE = 1e9  # and all epochs of its protocol, however busy this machine is
page.launch({places!r}, title={title!r}, port={port})
"""


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[str]:
    """The address of the page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = SERVER.format(places=[str(place)], title=f"Try {HOSTILE}", port=port)
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as server:
        try:
            until = time.monotonic() + STARTED
            while server.poll() is None and time.monotonic() < until:
                with socket.socket() as probe:
                    probe.settimeout(1)
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            assert server.poll() is None, "the server ended"
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.kill()


class Visitor:
    """A tab of a browser, and what somebody does in it."""

    def __init__(self, browsers: Any, driver: Any) -> None:
        self.browsers, self.driver = browsers, driver

    def until(self, found: Callable[[], Any], what: str) -> Any:
        """What `found` gives once it is not empty."""
        return self.browsers.until(self.driver, found, what)

    def open(self, address: str) -> None:
        self.driver.get(address)
        self.until(self.canvases, "the page")
        self.until(lambda: self.driver.find_elements(By.CSS_SELECTOR, "#curve canvas, #curve svg"), "the curve")

    def canvases(self) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, "#canvas canvas")

    def text(self, name: str) -> str:
        return self.driver.execute_script("return document.getElementById(arguments[0])?.innerText ?? ''", name)

    def says(self, name: str, words: str) -> str:
        return self.until(lambda: words in (text := self.text(name)) and text, f"{words!r} in {name}")

    def press(self, css: str) -> None:
        button = self.driver.find_element(By.CSS_SELECTOR, css)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def choose(self, name: str) -> None:
        self.press("#set input")
        option = f"//*[@id='set']//*[@role='option' and contains(., '{name}')]"
        self.until(lambda: self.driver.find_elements(By.XPATH, option), name)[0].click()

    def draw(self, *points: tuple[float, float]) -> None:
        """A stroke through some points, as shares of the canvas, with the mouse."""
        (canvas,) = self.canvases()
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        self.until_still(canvas)
        size = canvas.size
        offsets = [(round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])) for x, y in points]
        mouse = ActionChains(self.driver, duration=10)
        mouse.move_to_element_with_offset(canvas, *offsets[0]).click_and_hold()
        for x, y in offsets[1:]:
            mouse.move_to_element_with_offset(canvas, x, y)
        mouse.release().perform()

    def until_still(self, element: Any) -> None:
        """Wait until nothing that still loads moves an element any more."""
        where = "return JSON.stringify(arguments[0].getBoundingClientRect())"
        places: list[str] = []

        def still() -> bool:
            places.append(self.driver.execute_script(where, element))
            return len(places) >= STILL and len({*places[-STILL:]}) == 1

        self.until(still, "a page that stands still")

    def draw_one(self) -> None:
        self.draw((0.5, 0.1), (0.5, 0.5), (0.5, 0.9))

    def draw_zero(self) -> None:
        turn = [2 * math.pi * step / 24 for step in range(25)]
        self.draw(*((0.5 + 0.28 * math.sin(angle), 0.5 - 0.4 * math.cos(angle)) for angle in turn))

    def answers(self, name: str | None = None) -> dict[str, float]:
        """The classes that are named, the likeliest first, once there are some, or once `name` is the first."""

        def found() -> dict[str, float]:
            lines = self.text("answer").split("\n")
            shares = [float(line.removesuffix("%")) for line in lines if line.endswith("%")]
            names = [line for line in lines[1:] if line and not line.endswith("%")]
            right = len(shares) == len(names) > 0 and (name is None or names[0] == name)
            return dict(zip(names, shares, strict=True)) if right else {}

        return self.until(found, f"{name} in {self.text('answer')!r}")


@pytest.fixture
def visitor(browsers: Any, served: str) -> Iterator[Visitor]:
    with browsers.browser() as driver:
        browsers.look(driver, width=1280, height=1900)
        visitor = Visitor(browsers, driver)
        visitor.open(served)
        yield visitor
        hosts = {address.split("/")[2] for address in browsers.requests(driver) if address.startswith("http")}
        assert hosts == {served.split("/")[2]}, "the page asks nobody but its own server"
        assert driver.execute_script("return window.pwned") is None


def test_a_visitor_trains_a_student_draws_digits_and_has_them_named_and_another_visitor_has_none(visitor, served):
    assert "10 images of 10 classes, 8×8 pixels, gray" in visitor.text("report")
    assert "not evaluated yet" in visitor.text("report")
    assert "360 real test images, which it never learns from" in visitor.text("notes")
    visitor.draw_one()
    visitor.says("said", "Train a student first.")
    visitor.press("#train")
    reached = visitor.says("progress", "Epoch 200 of 200")
    assert float(reached.split(":")[1].split("%")[0]) > 80
    visitor.press("#canvas button")
    visitor.says("said", "Nothing is drawn; draw something first.")
    visitor.draw_zero()
    zero = visitor.answers("0")
    visitor.press("#canvas button")
    visitor.says("said", "Nothing is drawn")
    visitor.draw_one()
    one = visitor.answers("1")
    for shares in (zero, one):
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert 0 < sum(shares.values()) <= 102.5  # the likeliest five, rounded
    mine = visitor.driver.current_window_handle
    visitor.driver.switch_to.new_window("tab")
    visitor.open(served)
    visitor.draw_one()
    visitor.says("said", "Train a student first.")
    visitor.driver.close()
    visitor.driver.switch_to.window(mine)
    visitor.press("#canvas button")
    visitor.says("said", "Nothing is drawn")
    visitor.draw_zero()
    visitor.answers("0")


def test_a_training_is_stopped_and_its_student_names_an_upload_of_a_set_in_colour(visitor, tmp_path):
    visitor.choose("noise")
    visitor.says("report", "200 images of 4 classes, 16×16 pixels, in colour")
    assert "students here are convnet_d2" in visitor.text("notes")
    assert "says little of how well it names others" in visitor.text("notes")
    visitor.until(lambda: not visitor.canvases(), "no canvas")
    visitor.press("#train")
    visitor.says("progress", "of 1,001")
    visitor.press("#stop")
    visitor.says("progress", "Stopped")
    Image.new("RGBA", (50, 30), (200, 30, 30, 90)).save(tmp_path / "clear.png")
    visitor.driver.find_element(By.CSS_SELECTOR, "#upload input[type=file]").send_keys(str(tmp_path / "clear.png"))
    assert sum(visitor.answers().values()) == pytest.approx(100, abs=2)
    assert "Stopped" in visitor.text("progress")
    visitor.choose("digits")
    visitor.says("progress", "No student yet.")
    visitor.until(visitor.canvases, "a canvas")
    visitor.draw_one()
    visitor.says("said", "Train a student first.")
