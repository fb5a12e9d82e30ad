"""A browser without a screen, for tests of pages and for their pictures.

python -m tests.helpers.browser board/index.html docs/images/board.png
"""

import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 60  # seconds, of which a machine that is not busy needs few
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--disable-extensions", "--disable-default-apps", "--force-color-profile=srgb", "about:blank"),
)


def found() -> tuple[str, str] | None:
    """The browser and its driver, where this machine has both."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def browser() -> Iterator[Chrome]:
    """A browser with a profile of its own, which notes its requests; it looks for no driver elsewhere."""
    there = found()
    if there is None:
        raise FileNotFoundError("chromium and chromedriver are not on this machine (Debian: chromium, chromium-driver)")
    options = ChromeOptions()
    options.binary_location = there[0]
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory(prefix="browser-") as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = Chrome(options=options, service=Service(there[1]))
        try:
            yield driver
        finally:
            driver.quit()


def look(driver: Chrome, *, width: int = 1280, height: int = 900, dark: bool = False, scale: float = 1) -> None:
    """Let the pages of a browser be seen on a screen of this size."""
    screen = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def until(driver: Chrome, found: Callable[[], Any], what: str) -> Any:
    """What `found` gives, which is asked again and again, once it is not empty; `what` is said where it stays so."""
    return WebDriverWait(driver, PATIENCE, poll_frequency=0.05).until(lambda _: found(), what)


def requests(driver: Chrome) -> list[str]:
    """The addresses that pages have asked for since this was last called."""
    events: list[dict[str, Any]] = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]


def picture(page: Path, target: Path, **screen: Any) -> None:
    """Save what a page shows at its top as a PNG of 256 colours."""
    with browser() as driver:
        look(driver, **screen)
        driver.get(page.resolve().as_uri())
        with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as shot:
            shot.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    picture(Path(sys.argv[1]), Path(sys.argv[2]), width=1280, height=1500)
