"""Distilled sets out of anybody's data: what `load_dataset` reads, a folder of images, or a file of tensors."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import DataArguments
from ..data.images import Outline, RealImages
from ..data.pixels import Target
from ..data.preprocessing import Preprocessing
from ..data.source import Source
from ..distilled.distilled_set import DistilledSet
from .classes import match_classes
from .files import config_of
from .images import import_images
from .layouts import FILES

__all__ = ["foreign_set", "holds_tensors", "import_dataset"]

EVALUATED_WITH = {"source_known": False}  # the source is what they are evaluated with; of what they are made, who knows
# How messages about any dataset call what is said of this one otherwise.
FLAGS = {
    "--dataset_train_split and --dataset_test_split": "--distilled_split",
    "--dataset_train_split": "--distilled_split",
    "--dataset_name": "--distilled_dataset",
    "--dataset_config": "--distilled_config",
    "--dataset_revision": "--distilled_revision",
    "--image_column_name": "--distilled_image_column_name",
    "--label_column_name": "--distilled_label_column_name",
    ", or name the classes with --classes": "",
    ", or leave corrupt images out with --skip_corrupt": "",
    ": images of mixed sizes need --resolution": ": the images of a set have one size",
}


def holds_tensors(where: str | Path) -> bool:
    """True for a file, or a folder that holds files of tensors and no folders: what `import_images` reads."""
    path = Path(where)
    if not path.is_dir():
        return path.is_file()
    inside = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    return any(entry.suffix in FILES for entry in inside) and not any(entry.is_dir() for entry in inside)


def foreign_set(where: str | Path, real: RealImages, **options: Any) -> DistilledSet:
    """The distilled set in anything that can hold one, with what `real` says where it says nothing itself.

        train, test = hd.RealImages.train_and_test(hd.DataArguments(dataset_name="uoft-cs/cifar10"))
        distilled = foreign_set("somebody/cifar10-ipc10", train)
        report = hd.evaluate(distilled, train, test, protocol=["mtt", "dc"], students=["convnet_d3"])

    Args:
        where: A dataset, as for `import_dataset`, or a file or folder, as for `import_images`.
        real: The training images: class names, size, preprocessing.
        options: Of `import_dataset`, for a dataset.

    Raises:
        ValueError: As these.
    """
    if not holds_tensors(where):
        return import_dataset(where, real, **options)
    try:
        distilled = import_images(where, real=real)
    except ValueError as error:
        if re.search("--(labels|space|factor|experiment|lr|images_key|labels_key)", str(error)) is None:
            raise
        raise ValueError(f"{error} (flags of recipes/import.py: import it with them, and evaluate that)") from error
    distilled.config["imported_from"] |= EVALUATED_WITH
    return distilled


def import_dataset(
    where: str | Path,
    real: RealImages | Outline,
    *,
    config: str | None = None,
    revision: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    original_classes: Sequence[str] | None = None,
) -> DistilledSet:
    """The set of pictures that a split of a dataset is, each with a class: nothing else is taken over.

    Labels that are names, or a ClassLabel with names, are matched with the classes of `real` by these; numbers are
    places in their order.

    Args:
        where: What `load_dataset` reads: owner/name, or a folder of tables, or of class folders of images.
        real: The training images: class names, size, preprocessing and provenance. With an `Outline`, of images that
            are not decoded yet, the set has the right labels and blank images: what is wrong with it is known then.
        config, revision, split: Which images of it.
        image_column, label_column: The one column that could be it, if not given.
        original_classes: All classes of the source in its order, where `real` has only some of them: numbers count in
            these.

    Raises:
        ValueError: There is no such dataset; it has no labels, other classes or images of another size; or an image
            cannot be decoded.
    """
    args = DataArguments(
        dataset_name=str(where),
        dataset_config=config,
        dataset_revision=revision,
        dataset_train_split=split,
        image_column_name=image_column,
        label_column_name=label_column,
    )
    names, (channels, *size) = list(real.class_names), real.shape
    outlined = isinstance(real, Outline)
    target = Target(None, "gray" if channels == 1 else "rgb", resize=False)

    def called(given: list[str]) -> list[str]:
        """The names of classes as `real` has them."""
        found = match_classes(f"classes of {where}", given, list(original_classes or names), tell=not outlined)
        strange = [name for name in found.values() if name not in names]
        if strange:
            raise ValueError(
                f"{where} has images of {len(strange)} classes that the real data lack ({', '.join(strange[:10])}); "
                "expected those of --classes, or none left out"
            )
        return [found[name] for name in given]

    try:
        source = Source.open(args, split, target, names, called=called)
        every = torch.arange(len(source.labels))
        absent = [name for label, name in enumerate(names) if not (source.labels == label).any()]
        if absent:
            raise ValueError(
                f"{where} has no image of {len(absent)} of {len(names)} classes ({', '.join(absent[:10])}); name those "
                "it has with --classes"
            )
        shape = source.shape(every)
        if shape != tuple(real.shape):
            there, here = ("x".join(map(str, each)) for each in (shape[1:], size))
            raise ValueError(
                f"{where} has images of {there} pixels (height x width), and the real data {here}; they are never "
                f"resized: read the real data with --resolution {' '.join(map(str, shape[1:]))}"
            )
        if outlined:
            blank = torch.zeros(1, dtype=torch.uint8).expand(len(every), *shape)
            plain = Preprocessing(channels, tuple(size), (0.0,) * channels, (1.0,) * channels)
            return DistilledSet(blank, source.labels, names, plain)
        pixels, positions, _, _ = source.decode(every)
    except ValueError as error:
        raise ValueError(re.sub("|".join(map(re.escape, FLAGS)), lambda found: FLAGS[found[0]], str(error))) from error
    known = source.provenance
    file = {"file": known["name"], "revision": known["revision"], "images": len(every)}
    told = {key: known[key] for key in ("config", "split", "license", "gated") if known.get(key)}
    about = {"layout": "dataset", "space": "bytes", "files": [file], **told, **EVALUATED_WITH}
    return DistilledSet(
        pixels.take(positions), source.labels, names, real.preprocessing, config=config_of(real, None, about)
    )
