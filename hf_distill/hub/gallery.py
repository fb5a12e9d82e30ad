"""A gallery as a folder: the pictures of many sets, random real images beside them, and what students reach. No torch.

`index.html` needs no server, `README.md` makes the folder a static Space and shows the same in Markdown, and `images/`
holds the pictures under the names of the sets. These hold no dots, so `digits.real.png` is of no set `digits-real`.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .board import BoardSet
from .board_page import drawn_anew, rendered
from .cards import markdown_table, render_card
from .checks import check_values
from .comparisons import schedule
from .edits import with_edits
from .files import atomic_write, check_target, load_json, naming, save_json, whole_file
from .plots import can_plot, results_plot
from .repository import CARD
from .results import EvalRow

__all__ = ["INDEX", "PAGE", "RealPicture", "check_gallery", "save_gallery"]

PAGE, IMAGES = "index.html", "images"
INDEX = "gallery.json"  # by which a folder is known to hold a gallery; it names the files that are the gallery's


@dataclass(frozen=True)
class RealPicture:
    """Random real images, in a picture as that of the set that they stand beside.

    Attributes:
        picture: Of them.
        licence: Of their source, in words.
        gated: Access to their source is conditional.
    """

    picture: Image.Image
    licence: str
    gated: bool


def check_gallery(folder: Path) -> None:
    """Raise a `ValueError` where no gallery can be saved into a folder: it is a file, somebody else's, or damaged."""
    check_target(folder, (PAGE, CARD, f"{IMAGES}/*"), INDEX)
    _known(folder)


def save_gallery(
    folder: str | Path,
    sets: Sequence[BoardSet],
    real: Mapping[str, RealPicture],
    *,
    title: str = "Distilled images",
) -> Path:
    """Write a gallery of some sets into a folder, in place of the one that it may hold, and give its path.

    Args:
        folder: What people wrote into its README.md stays.
        sets: As `read_sets` gives them.
        real: Pictures of real images by the name of the set that they stand beside.
        title: Of the page.

    Raises:
        ValueError: The folder is a file, or holds something else.
        OSError: The files cannot be written.
    """
    folder = Path(folder)
    check_gallery(folder)
    with naming(folder):
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        known = _known(folder)
        slugs = _slugs([each.name for each in sets])
        files: list[str] = []
        save_json(folder / INDEX, {"files": known})  # first: from here on the folder is known to be a gallery's
        tasks: dict[str, dict[str, Any]] = {}
        for each in sets:
            shown = _shown(folder, files, each, slugs[each.name], real.get(each.name))
            tasks.setdefault(each.rows[0].task, {"sets": [], "plot": None})["sets"].append(shown)
        for number, task in enumerate(tasks):
            of_task = [each for each in sets if each.rows[0].task == task]
            tasks[task]["plot"] = _plot(folder, files, of_task, f"accuracy-{number + 1}.plot.png")
        save_json(folder / INDEX, {"title": title, "files": files})
        for name in {*known} - {*files}:
            if re.fullmatch(rf"{IMAGES}/\w[\w.-]*", name):
                (folder / name).unlink(missing_ok=True)
        atomic_write(
            folder / PAGE, rendered("gallery.html", style=["board.css", "gallery.css"], title=title, tasks=tasks)
        )
        card = render_card("gallery.md", title=title, tasks=tasks)
        if (folder / CARD).exists():
            card = with_edits(card, (folder / CARD).read_text(encoding="utf-8", errors="replace"), ours=True)
        atomic_write(folder / CARD, card)
    return folder


def _known(folder: Path) -> list[str]:
    """The files of the gallery in a folder, by its index; none where there is no gallery."""
    if not (folder / INDEX).exists():
        return []
    index = load_json(folder / INDEX)
    check_values(folder / INDEX, index, {"files": ("a list of the gallery's files", _are_paths)})
    return index["files"]


def _are_paths(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(path, str) for path in value)


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """A name for the files of each of some sets: letters, digits and dashes, no two alike."""
    slugs: dict[str, str] = {}
    for name in names:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "set"
        taken = {*slugs.values()}
        slugs[name] = next(s for s in (slug, *(f"{slug}-{n}" for n in range(2, len(names) + 2))) if s not in taken)
    return slugs


def _save(folder: Path, files: list[str], name: str, picture: Image.Image) -> str:
    """Write a picture, note its file, and give its path in the folder."""
    path = f"{IMAGES}/{name}"
    with whole_file(folder / path) as aside:
        picture.save(aside, "PNG", optimize=True)
    files.append(path)
    return path


def _shown(folder: Path, files: list[str], each: BoardSet, slug: str, real: RealPicture | None) -> dict[str, Any]:
    """A set for the templates, with its files written."""
    picture = None if each.picture is None else drawn_anew(each.picture)
    paths: dict[str, str | None] = {
        "picture": None if picture is None else _save(folder, files, f"{slug}.png", picture),
        "beside": None if real is None else _save(folder, files, f"{slug}.real.png", real.picture),
        "animation": None,
    }
    if each.animation is not None and _is_animation(each.animation):
        name = f"{IMAGES}/{slug}.webp"
        with whole_file(folder / name) as aside:
            shutil.copyfile(each.animation, aside)
        files.append(name)
        paths["animation"] = name
    cells, caption = each.report.short_lines()
    papers = each.config.get("paper") or []
    papers = [paper for paper in (papers if isinstance(papers, list) else [papers]) if isinstance(paper, dict)]
    return {
        **paths,
        "of": each,
        "slug": slug,
        "method": each.rows[0].method,
        "images": each.config.get("images"),
        "ipc": each.config.get("ipc"),
        "papers": [paper for paper in papers if isinstance(paper.get("arxiv_id"), str) and paper.get("title")],
        "cells": cells,
        "caption": caption,
        "table": markdown_table(cells, caption),
        "real": real,
    }


def _is_animation(path: Path) -> bool:
    try:
        with Image.open(path, formats=["WEBP"]):
            return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _plot(folder: Path, files: list[str], sets: Sequence[BoardSet], file: str) -> str | None:
    """Accuracy of some sets of one task against images, label bytes and FLOP; None for one set, or without matplotlib.

    Random images and full data of all their reports that are one measurement are one point. Protocols that most sets
    share come first.
    """
    points: dict[Any, tuple[str, EvalRow]] = {}
    for each in sets:
        for row in each.report.rows:
            if row.set == "distilled":
                points[each.name, row.key] = each.name, row
            elif row.set in ("random", "full data"):
                points.setdefault((*row.key, *row.accuracies), (row.set, row))
    if len(sets) < 2 or not can_plot():
        return None
    under: dict[str, set[str]] = {}
    for name, row in points.values():
        under.setdefault(schedule(row.protocol), set()).add(name)
    ordered = sorted(points.values(), key=lambda point: -len(under[schedule(point[1].protocol)]))
    ordered.sort(key=lambda point: point[1].set != "distilled")
    plot = results_plot([row for _, row in ordered], [point for point, _ in ordered])
    return None if plot is None else _save(folder, files, file, plot)
