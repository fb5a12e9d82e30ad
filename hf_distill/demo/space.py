"""A demo as a folder that is a Space: its page, what it needs, and the sets that are on no Hub."""

import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path

from .. import _version
from ..distilled.distilled_set import DistilledSet
from ..hub.cards import render_card
from ..hub.files import atomic_write, naming
from .sets import DemoSet

__all__ = ["check_space", "save_space"]

APP, CARD, NEEDS, SETS = "app.py", "README.md", "requirements.txt", "sets"
OURS = "from hf_distill.demo.page import launch\n"


def check_space(folder: Path) -> None:
    """Look whether a Space can be saved into a folder, before anything is read or written.

    Raises:
        ValueError: The folder is a file, or holds something else.
        ModuleNotFoundError: gradio, whose version a Space names, is not installed.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--space {folder} is a file; expected a folder, or a path where one can be made")
    app = folder / APP
    ours = app.is_file() and OURS in app.read_text(encoding="utf-8", errors="replace")
    if folder.is_dir() and not ours and any(folder.iterdir()):
        raise ValueError(f"--space {folder} holds something else; give another folder, or move that away")
    importlib.metadata.version("gradio")


def save_space(folder: str | Path, sets: Sequence[DemoSet], *, title: str) -> Path:
    """Write a Space that shows some sets into a folder, in place of the one that it may hold, and give its path.

    Sets that come from the Hub are named at their commits; others are saved into its `sets/`, and those that its page
    showed before are removed.

    Raises:
        ValueError: The folder is a file, or holds something else.
        ModuleNotFoundError: gradio is not installed.
        OSError: The files cannot be written.
    """
    folder = Path(folder)
    check_space(folder)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        places = [each.place if each.distilled.origin is not None else _save(folder, each) for each in sets]
        before = (folder / APP).read_text(encoding="utf-8", errors="replace") if (folder / APP).exists() else ""
        call = f"launch({places!r}, title={title!r})"
        atomic_write(
            folder / APP, f'"""Distilled sets to try, by hf_distill {_version.__version__}."""\n\n{OURS}\n{call}\n'
        )
        atomic_write(folder / NEEDS, f"hf_distill[demo]=={_version.__version__}\n")
        card = render_card("space.md", title=title, places=places, gradio=importlib.metadata.version("gradio"))
        atomic_write(folder / CARD, card)
        for config in (folder / SETS).glob(f"*/{DistilledSet.config_name}"):
            place = f"{SETS}/{config.parent.name}"
            if place not in places and repr(place) in before:
                shutil.rmtree(config.parent)
    return folder


def _save(folder: Path, each: DemoSet) -> str:
    """Save a set into a Space; its place there."""
    place = f"{SETS}/{each.name.strip('/').replace('/', '-')}"
    each.distilled.save_pretrained(folder / place)
    return place
