"""`making.json`: what it took to make an artifact, as the runs measured it.

Times are no function of a seed, so that they have a file of their own: beside it, and what the card shows of it, the
files of an artifact are the same bytes whenever, and however often interrupted, it is made. For the same reason it is
not in SHA256SUMS, and has a checksum of its own. An artifact without it is one whose making was not measured.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .cards import human_flop, human_seconds, markdown_table, text_table
from .checks import is_number, is_whole
from .files import load_json, save_json

__all__ = ["MAKING", "Making", "Work", "add_up", "making_markdown", "making_table", "read_making", "save_making"]

MAKING = "making.json"


@dataclass(frozen=True)
class Work:
    """One part of the making of an artifact.

    Attributes:
        steps: Of an optimizer, or whatever the part is counted in: blocks of images where these are made at once.
        seconds: Of all processes together, in all sessions of the run as far as something is left of them; None where
            a part was not measured.
        device: What it ran on.
        flop: Of the networks that were trained, by arithmetic; None where nobody counted.
    """

    steps: int
    seconds: float | None
    device: str
    flop: int | None = None

    def __post_init__(self) -> None:
        seconds = self.seconds is None or (is_number(self.seconds) and self.seconds >= 0)
        flop = self.flop is None or is_whole(self.flop, 0, 10**40)
        if not (is_whole(self.steps, 0) and seconds and isinstance(self.device, str) and flop):
            raise ValueError(f"{asdict(self)} is no measurement; expected steps, seconds, a device and FLOP")


Making = Mapping[str, Work | None]  # by the name of the part; None for one that was not measured


def add_up(parts: Sequence[Work | None]) -> Work | None:
    """Parts of one work, done apart, as a whole; None where there are none, or one was not measured."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    seconds = [part.seconds for part in known if part.seconds is not None]
    flop = [part.flop for part in known if part.flop is not None]
    return Work(
        sum(part.steps for part in known),
        sum(seconds) if len(seconds) == len(known) else None,
        ", ".join(dict.fromkeys(part.device for part in known)),
        sum(flop) if len(flop) == len(known) else None,
    )


def save_making(path: Path, making: Making) -> None:
    """Write what is known of the making of something into its file; nothing where nothing is."""
    if making:
        parts = {name: work and asdict(work) for name, work in making.items()}
        save_json(path, {"parts": parts, "sha256": _sha256(parts)})


def read_making(path: Path) -> Making:
    """What a file says of the making of something: nothing where it is not there; a `ValueError` for a damaged one."""
    if not path.is_file():
        return {}
    try:
        content = load_json(path)
        if content.get("sha256") != _sha256(content.get("parts")) or len(content) != 2:
            raise ValueError("its checksum is not that of what it says")
        return {name: None if work is None else Work(**work) for name, work in content["parts"].items()}
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); fetch it again, or delete it where what the making took may be forgotten"
        ) from error


def _sha256(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _lines(making: Making) -> list[list[str]]:
    lines = [["made", "steps", "time", "FLOP", "device"]]
    for name, work in making.items():
        if work is None:
            lines.append([name, "", "not measured", "", ""])
        else:
            time = "not measured" if work.seconds is None else human_seconds(work.seconds)
            flop = "not counted" if work.flop is None else human_flop(work.flop)
            lines.append([name, f"{work.steps:,}", time, flop, work.device])
    return lines


CAPTION = "time of all processes together"
NOT_MEASURED = "What the making of the set took was not measured."


def making_table(making: Making) -> str:
    """What the making took as aligned plain text for a terminal."""
    return text_table(_lines(making), CAPTION, to_left=("made", "device")) if making else NOT_MEASURED


def making_markdown(making: Making) -> str:
    """What the making took as a table for a card."""
    return markdown_table(_lines(making), CAPTION) if making else NOT_MEASURED
