"""`find_sets`: the sets that a demo shows, with their reports and their lessons."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..distilled.distilled_set import DistilledSet
from ..hub.board import BoardRow, read_sets
from .lessons import Lesson, test_images

__all__ = ["DemoSet", "find_sets"]


@dataclass(frozen=True)
class DemoSet:
    """A set of a demo.

    Attributes:
        name: One in this demo.
        place: Its folder, or its repository as `owner/name@commit`.
        distilled: The set.
        rows: What its report says, with the regime of each row; empty for a set that was not evaluated.
        lesson: How students of it are trained.
    """

    name: str
    place: str
    distilled: DistilledSet
    rows: list[BoardRow]
    lesson: Lesson


def find_sets(places: Sequence[str | Path]) -> list[DemoSet]:
    """The sets at some places, in their order.

    Args:
        places: Folders of a set, folders that contain such, and repositories as `owner/name` or `owner/name@revision`.

    Raises:
        ValueError: A place is no set and contains none, or a set is damaged.
        OSError: The Hub does not answer.
    """
    found = [(each, *_read(each)) for place in places for each in _folders(str(place))]
    names = [os.path.basename(os.path.abspath(each)) if os.path.isdir(each) else each for each, _, _ in found]
    sets = []
    for (each, distilled, rows), name in zip(found, names, strict=True):
        lesson = Lesson.of(distilled, test_images(distilled))
        origin = distilled.origin
        place = each if origin is None else f"{origin.repo_id}@{origin.revision}"
        sets.append(DemoSet(each if names.count(name) > 1 else name, place, distilled, rows, lesson))
    return sets


def _folders(place: str) -> list[str]:
    """The folders of sets at a place, or the repository."""
    if not os.path.exists(place):
        return [place]
    if os.path.isfile(os.path.join(place, DistilledSet.config_name)):
        return [place]
    inside = sorted(str(path.parent) for path in Path(place).glob(f"*/{DistilledSet.config_name}"))
    if not inside:
        raise ValueError(
            f"{place} is no distilled set and contains none; expected a folder with a {DistilledSet.config_name}, such "
            "as hf-distill dm leaves in outputs/"
        )
    return inside


def _read(place: str) -> tuple[DistilledSet, list[BoardRow]]:
    """The set at a place, and the rows of its report."""
    repo_id, _, revision = (place, "", "") if os.path.isdir(place) else place.partition("@")
    distilled = DistilledSet.from_pretrained(repo_id, revision=revision or None)
    if distilled.report is None or not distilled.report.rows:
        return distilled, []
    return distilled, read_sets([place])[0].rows
