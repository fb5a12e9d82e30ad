"""`Outlines`: how many images of which size a dataset has, without one of them being decoded or fetched."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import datasets
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError

from ..config import DataArguments
from .images import TEST_SPLITS, Outline, RealImages, held_out_of

__all__ = ["KNOWN", "Outlines", "outlines_of"]

COLORS, GRAY = 3, 1


class Known(NamedTuple):
    """A dataset that many know: images to train and to test on, classes, and the size that all images have, if any."""

    train: int
    test: int
    classes: int
    shape: tuple[int, int, int] | None = None


# By the last part of their names, in small letters.
KNOWN = {
    "cifar10": Known(50_000, 10_000, 10, (COLORS, 32, 32)),
    "cifar100": Known(50_000, 10_000, 100, (COLORS, 32, 32)),
    "mnist": Known(60_000, 10_000, 10, (GRAY, 28, 28)),
    "fashion_mnist": Known(60_000, 10_000, 10, (GRAY, 28, 28)),
    "tiny-imagenet": Known(100_000, 10_000, 200, (COLORS, 64, 64)),
    "imagenette": Known(9_469, 3_925, 10),
    "imagenet-1k": Known(1_281_167, 50_000, 1_000),
    "imagenet-w21-p": Known(11_060_223, 522_500, 10_450),
}


@dataclass(frozen=True)
class Outlines:
    """What is known of all images of a dataset before one of them is decoded.

    Example:
        >>> known = hd.Outlines.of(train, validation_fraction=0.1)
        >>> len(known.train), sum(known.held_out)
        (90, 10)

    Attributes:
        train: Of the images to distil, without those that are held out.
        held_out: Images of each class that are.
        test: Images of each class to test on.
        here: They need not be fetched.
        download: Bytes to fetch, where they are known.
    """

    train: Outline
    held_out: list[int]
    test: list[int]
    here: bool = True
    download: int | None = None

    @classmethod
    def of(cls, images: RealImages, validation_fraction: float, test: RealImages | None = None) -> "Outlines":
        """Those of images at hand, of which a part is still to be held out."""
        whole = images.outline
        held_out = [held_out_of(count, validation_fraction) for count in whole.counts]
        left = [count - out for count, out in zip(whole.counts, held_out, strict=True)]
        return cls(replace(whole, counts=left), held_out, [0] * len(left) if test is None else test.outline.counts)

    def of_classes(self, names: Sequence[str]) -> "Outlines":
        """Those of some classes; one whose name is not known stands in the place that it has among `names`."""
        known = self.train.class_names
        places = [known.index(name) if name in known else place % len(known) for place, name in enumerate(names)]
        train, held_out, test = ([of[i] for i in places] for of in (self.train.counts, self.held_out, self.test))
        return replace(
            self, train=replace(self.train, class_names=[*names], counts=train), held_out=held_out, test=test
        )


def outlines_of(args: DataArguments, images: Sequence[int] | None = None, num_classes: int | None = None) -> Outlines:
    """The outlines of the images that a command line names.

    Args:
        args: As for `RealImages.train_and_test`.
        images: How many there are to train on, and to test on, where nobody can look: of a dataset that is not there.
        num_classes: The classes that they are spread over evenly.

    Raises:
        ValueError: As `RealImages.train_and_test`, of a folder; or nobody knows the dataset.
    """
    name = args.dataset_name
    if images is None and (name is None or Path(name).expanduser().is_dir()):
        train, held_out, test = RealImages.outlines(replace(args, dataset_streaming=False))
        return Outlines(train, held_out, test)
    if (images is None) != (num_classes is None):
        raise ValueError("--plan_images and --plan_classes go together: give both, or neither")
    known, download = KNOWN.get(args.short_name.lower()), None
    if images is not None and num_classes is not None:
        if len(images) != 2 or not 0 < num_classes <= min(images):
            raise ValueError(
                f"--plan_images is {list(images)} for --plan_classes {num_classes}; expected how many images there are "
                "to train on and to test on, one of each class at least"
            )
        known = Known(images[0], images[1], num_classes, known.shape if known else None)
    elif known is None:
        known, download = _told(args)
    shape = known.shape or (COLORS, 0, 0)
    if args.resolution is not None:
        shape = (shape[0], args.resolution[0], args.resolution[-1])
    if args.color != "auto":
        shape = (GRAY if args.color == "gray" else COLORS, *shape[1:])
    if not min(shape):
        raise ValueError(f"images of {name} have sizes of their own, and no --resolution says which; give one")
    classes = known.classes if args.classes is None else len(args.classes)
    if classes > known.classes:
        raise ValueError(f"--classes names {classes} classes, and {name} has {known.classes}; name some of these")
    names = args.classes or [str(label) for label in range(classes)]
    counts = _evenly(known.train * classes // known.classes, classes, args.max_train_samples)
    test = _evenly(known.test * classes // known.classes, classes, args.max_test_samples)
    held_out = [held_out_of(count, args.validation_fraction) for count in counts]
    left = [count - out for count, out in zip(counts, held_out, strict=True)]
    outline = Outline(shape, list(names), left, args.normalization == "zca")
    return Outlines(outline, held_out, test, here=False, download=download)


def _evenly(count: int, classes: int, limit: int | None) -> list[int]:
    count = count if limit is None else min(count, limit)
    return [count * (label + 1) // classes - count * label // classes for label in range(classes)]


def _told(args: DataArguments) -> tuple[Known, int | None]:
    """What the card of a dataset says of it, and how many bytes there are to fetch.

    Raises:
        ValueError: Nothing, or there is nobody to ask.
    """
    name, found = str(args.dataset_name), ""
    try:
        builder = datasets.load_dataset_builder(name, args.dataset_config, revision=args.dataset_revision)
        info = builder.info
        labels = [each for each in (info.features or {}).values() if isinstance(each, datasets.ClassLabel)]
        sizes = {split: each.num_examples for split, each in (info.splits or {}).items()}
        tests = [args.dataset_test_split, *TEST_SPLITS]
        test = next((sizes[split] for split in tests if split in sizes), None)
        train = sizes.get(args.dataset_train_split)
        if train and labels:
            held = train // 5 if test is None else 0
            return Known(train - held, test or held, labels[0].num_classes), info.download_size
        found = "its card names no splits and classes"
    except (DatasetsError, HTTPError, OSError, ValueError) as error:
        found = " ".join(str(error).split())
    raise ValueError(
        f"--plan knows no sizes of {name}; give them, such as --plan_images 50000 10000 --plan_classes 10 ({found})"
    )
