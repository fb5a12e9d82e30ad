"""Random real images in the same picture as a distilled set: what a gallery shows beside it."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..config import DataArguments, check_at_least
from ..data.images import RealImages
from ..distilled.card import grid, room_in_grid
from ..distilled.distilled_set import DistilledSet
from ..hub.board import BoardSet
from ..hub.cards import LARGEST_CELL
from ..hub.gallery import RealPicture
from .start import arguments_of

__all__ = ["real_beside"]

logger = logging.getLogger(__name__)

DIGITS = "digits"


def real_beside(sets: Sequence[BoardSet], places: Sequence[str], *, seed: int = 0) -> dict[str, RealPicture]:
    """Pictures of random real images, of the classes and in the places of the images of each set, by its name.

    Nothing is read but scikit-learn's digits, which come with it, and what is named; what cannot be had is said in a
    line of the log and left out. Only images that are shown are decoded.

    Args:
        sets: On the gallery.
        places: Datasets that sets were made of: folders, or repositories. One is that of a set where the last part of
            its name is that of the set's source.
        seed: Draws the images.

    Raises:
        ValueError: A place is that of no set, or the seed is negative.
    """
    check_at_least("seed", seed, 0)
    by_name = {Path(place).name: place for place in places}
    made_of = {each.name: str((each.config.get("source") or {}).get("name")) for each in sets}
    for name, given in by_name.items():
        if name not in (known := {Path(source).name for source in made_of.values()}):
            raise ValueError(f"--dataset_name {given}: no set here was made of it, but of {', '.join(sorted(known))}")
    found: dict[str, RealPicture] = {}
    drawn: dict[str, RealPicture] = {}
    for each in sets:
        source = made_of[each.name]
        place = by_name.get(Path(source).name)
        if place is None and source != DIGITS:
            called = Path(source).name
            logger.warning("no real images beside %s: give --dataset_name with the place of %s", each.name, called)
            continue
        try:
            arguments, ipc = _arguments(each.config, place)
            key = repr((arguments, ipc))  # sets of one source and size share a picture
            if key not in drawn:
                drawn[key] = _drawn(arguments, ipc, seed)
        except (ValueError, TypeError, OSError) as error:  # what a set says of its source may be of any kind
            logger.warning("no real images beside %s: %s", each.name, error)
        else:
            found[each.name] = drawn[key]
    return found


def _arguments(config: dict[str, Any], place: str | None) -> tuple[DataArguments, int]:
    """What to read for a picture of real images beside a set, and how many of each class."""
    names, ipc = config.get("class_names"), config.get("ipc")
    about = config.get("preprocessing") or {}
    channels, size = about.get("channels"), about.get("image_size")
    if not (names and ipc and size and channels):
        raise ValueError("its distill_config.json does not say its classes, their images, and the size of these")
    given = DataArguments(dataset_name=place)
    classes, per_class = room_in_grid(ipc)
    names = names[:classes]
    scale = min(1, LARGEST_CELL / max(size))  # whatever a set says of its size: more is not shown
    shape = (channels, *(max(1, round(side * scale)) for side in size))
    source = config.get("source") or {}
    told = {key: value for key, value in (source.get("arguments") or {}).items() if key not in ("resize", "keep_side")}
    arguments = arguments_of({**source, "arguments": told}, names, shape, given)
    return replace(arguments, max_train_samples=per_class * len(names), validation_fraction=0.0), per_class


def _drawn(arguments: DataArguments, ipc: int, seed: int) -> RealPicture:
    real = RealImages.from_arguments(arguments, seed=seed)
    rows = [real.class_rows(label)[:ipc] for label in range(real.num_classes)]
    images = real.uint8(torch.cat(rows)).cpu()
    labels = torch.cat([torch.full((len(own),), label) for label, own in enumerate(rows)])
    source = real.provenance
    picture = grid(DistilledSet(images, labels, real.class_names, real.preprocessing))
    return RealPicture(picture, str(source.get("license") or "unknown"), bool(source.get("gated")))
