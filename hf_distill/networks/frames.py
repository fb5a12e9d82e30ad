"""How the test images of a network were framed, as timm's description of it says: `crop_pct` and `interpolation`."""

import math
from pathlib import Path
from typing import Any

from ..config import INTERPOLATIONS, MOST_RESIZED
from ..data.pixels import Frame
from ..hub.checks import is_whole


def frame_in_timm(description: dict[str, Any], size: tuple[int, int]) -> Frame:
    """The frame in timm's description of a network for images of that height and width; else the usual one.

    The shorter side is ⌊S / crop_pct⌋, as timm has it. Where whole images are squeezed into a square (`crop_mode`), or
    the filter is none of ours, that part is passed over.
    """
    share, mode, name = (description.get(key) for key in ("crop_pct", "crop_mode", "interpolation"))
    side = None
    if isinstance(share, float) and 1 / MOST_RESIZED <= share < 1 and mode in (None, "center"):
        side = math.floor(min(size) / share)
    return Frame(side, name) if name in INTERPOLATIONS else Frame(side)


def frame_to_timm(frame: Frame, size: tuple[int, int]) -> dict[str, Any]:
    """The same in timm's words: a share from which timm computes the same side again."""
    side = frame.side or min(size)
    share = min(size) / side
    if math.floor(min(size) / share) < side:  # the division was rounded down
        share = math.nextafter(share, 0)
    return {"crop_pct": share, "interpolation": frame.interpolation, "crop_mode": "center"}


def is_frame(value: Any) -> bool:
    """True where a value of a JSON file can be a `Frame`, or is null."""
    if value is None:
        return True
    known = isinstance(value, dict) and value.keys() == {"side", "interpolation"}
    return known and (value["side"] is None or is_whole(value["side"])) and value["interpolation"] in INTERPOLATIONS


def check_frame(path: Path, about: dict[str, Any], size: Any) -> None:
    """Raise a `ValueError` where the frame in a file is more than `MOST_RESIZED` times the size of the images."""
    side = (about.get("test_frame") or {}).get("side")
    sides = size if isinstance(size, list) and size and all(map(is_whole, size)) else []
    if side is not None and sides and side > MOST_RESIZED * min(sides):
        raise ValueError(
            f"{path} has test images with a shorter side of {side:,} pixels for a crop of {min(sides)}; expected at "
            f"most {MOST_RESIZED} times as many: fetch or train it again"
        )
