"""Frames: what the images of a run look like as they form, as files that a continued run adds to."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from ..distilled.card import small_grid
from ..hub.cards import ANIMATION
from ..hub.files import whole_file
from .callbacks import Callback, RunState

__all__ = ["FRAMES", "Frames", "frames_of", "remove_frames"]

FRAMES = ANIMATION.rpartition("/")[0]
NAME = re.compile(r"step-(\d+)\.png")
SHOWN, LAST_SHOWN = 150, 2000  # milliseconds of a frame, and of the last one
MOST = 200  # frames of an animation; of more, these are evenly spaced ones
SMOOTH = 90  # quality of frames that are photographs; those of small images are kept to the bit
PHOTOGRAPH = 64  # pixels of the longer side, from which on images are photographs


class Frames(Callback):
    """Keeps a picture of the images wherever they are to be looked at, and at the end makes an animation of them.

    Args:
        run: The folder of the run, in which `frames/step-<step>.png` and the animation are written.
        side: Pixels of the longer side of the images.
    """

    def __init__(self, run: Path, side: int) -> None:
        self.folder, self.side = run / FRAMES, side

    def on_images(self, state: RunState) -> None:
        if not state.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, step in frames_of(self.folder).items():
            if step > state.shown:  # of a run that got further, and goes on from a checkpoint before that
                path.unlink()
        with whole_file(self.folder / f"step-{state.shown:07d}.png") as aside:
            small_grid(state.artifact).save(aside, "PNG", optimize=True)

    def on_end(self, state: RunState) -> None:
        if not state.is_main_process or not (paths := frames_of(self.folder)):
            return
        first, *rest = [Image.open(path).convert("RGB") for path in _some(list(paths))]
        how = {"quality": SMOOTH} if self.side >= PHOTOGRAPH else {"lossless": True}
        with whole_file(self.folder.parent / ANIMATION) as aside:
            times = [SHOWN] * len(rest) + [LAST_SHOWN]
            first.save(aside, "WEBP", save_all=True, append_images=rest, duration=times, loop=0, **how)


def _some(paths: list[Path]) -> list[Path]:
    """Some frames from the first to the last, as many as an animation shows."""
    return [paths[index] for index in np.linspace(0, len(paths) - 1, min(len(paths), MOST)).round().astype(int)]


def frames_of(folder: Path) -> dict[Path, int]:
    """The frames in a folder, in order, each with its step."""
    found = {path: NAME.fullmatch(path.name) for path in sorted(folder.glob("step-*.png"))}
    return {path: int(match[1]) for path, match in found.items() if match}


def remove_frames(run: Path) -> None:
    """Remove the frames of a run and their animation from its folder; what else lies there stays."""
    folder = run / FRAMES
    for path in (*frames_of(folder), run / ANIMATION):
        path.unlink(missing_ok=True)
