"""`RealImages`: any image-classification dataset that `load_dataset` reads, as uint8 tensors indexed by class.

Every image is decoded and resized once (see `pixels`). The bytes go into an Arrow file in the cache of `datasets`,
mapped into memory: what is not asked for is not read, and nothing has to fit in RAM. After that a batch is a slice.
"""

import copy
import hashlib
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader

from ..config import INTERPOLATIONS, DataArguments, check_keep_side, check_resize
from ..hub.files import atomic_write
from ..rng import generator
from .kept import Encoded, Kept, PixelsOnDemand
from .pixels import DEEPEST, LEAST_SPAN, NO_RANGE, Frame, Keep, Pixels, Target
from .preprocessing import ZCA, Preprocessing, fit_mean_std, fit_zca
from .ragged import Ragged
from .source import Source, check_head, folder_revision, one_process_at_a_time, split_names
from .upload import upload

__all__ = ["Outline", "RealImages"]

logger = logging.getLogger(__name__)

LEAST_LEFT = 128  # of the 256 bytes: below, files of more than 8 bits hold more than what is made of them
TEST_SPLITS = ("test", "validation", "valid", "val")
NAMED = 10  # classes in a message
A_FIFTH = "a fifth of"  # what the split of test images is called that were taken from train


@dataclass(frozen=True)
class Outline:
    """What is known of training images before one of them is decoded, for whoever may refuse them.

    Attributes:
        shape: (C, H, W).
        class_names: Name of each label.
        counts: Images of each class, without those that are held out.
        whitened: They are seen through ZCA.
    """

    shape: tuple[int, int, int]
    class_names: list[str]
    counts: list[int]
    whitened: bool

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def of_classes(self, names: Sequence[str]) -> "Outline":
        """As `RealImages.of_classes`; without a class that is not there."""
        counts = dict(zip(self.class_names, self.counts, strict=True))
        there = [name for name in names if name in counts]
        return replace(self, class_names=there, counts=[counts[name] for name in there])

    def require(self, counts: Sequence[int], needed_by: str, hint: str) -> None:
        """Raise a `ValueError` that names up to ten of the classes that have fewer images than is asked for.

        Args:
            counts: For each class.
            needed_by: What takes so many, such as "--ipc is 5".
            hint: What to do about it.
        """
        classes = zip(self.class_names, self.counts, counts, strict=True)
        few = [f"{name!r} has {there:,} of {count:,}" for name, there, count in classes if there < count]
        if few:
            more = f" and {len(few) - NAMED:,} more" if len(few) > NAMED else ""
            raise ValueError(
                f"{needed_by} and some classes lack training images: {', '.join(few[:NAMED])}{more}; {hint}"
            )


class RealImages(torch.utils.data.Dataset):
    """Images with one label each: uint8 pixels mapped from disk, labels in memory.

    Example:
        >>> train.shape, train.num_classes, len(train.class_rows(3))
        ((1, 8, 8), 10, 10)
        >>> rest, held_out = train.split(0.2, seed=0)
        >>> len(rest), len(held_out)
        (80, 20)

    Attributes:
        labels: (N,) int64 on the CPU.
        class_names: Name of each label.
        preprocessing: From pixels to what a network sees; computed from train, reused for test.
        provenance: Where the images come from: name, config, split, revision, license, gated, homepage, num_images;
            num_corrupt where some were left out.
        test_frame: How test and held-out images are brought to this size.
        value_range: Values in files that became 0 and 255, where they were given.
        rows: (N,) int64, their rows in the split that they were read from.
    """

    def __init__(
        self,
        pixels: Pixels,
        positions: Tensor,
        labels: Tensor,
        class_names: list[str],
        preprocessing: Preprocessing,
        provenance: dict[str, Any],
        *,
        test_frame: Frame | None = None,
        value_range: tuple[float, float] | None = None,
        encoded: Encoded | None = None,
        kept: Kept | None = None,
        rows: Tensor | None = None,
    ) -> None:
        self._pixels, self._positions = pixels, positions
        self.labels, self.class_names = labels, class_names
        self.preprocessing, self.provenance = preprocessing, provenance
        self.test_frame, self.value_range = test_frame or Frame(), value_range
        self._encoded, self._kept = encoded, kept
        self.rows = torch.arange(len(labels)) if rows is None else rows

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset | DatasetDict,
        *,
        split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        resolution: int | Sequence[int] | None = None,
        resize: int | None = None,
        interpolation: str | None = None,
        keep_side: int | str | None = None,
        like: "RealImages | None" = None,
        color: str = "auto",
        value_range: Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
        normalization: str = "mean_std",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        zca_eps: float = 0.1,
        max_samples: int | None = None,
        skip_corrupt: bool = False,
        num_proc: int | None = None,
        seed: int = 0,
    ) -> "RealImages":
        """The images of a dataset in hand: loaded, transformed or just made, never saved.

            train = RealImages.from_dataset(load_dataset("uoft-cs/cifar10", split="train"), resolution=32)
            test = RealImages.from_dataset(load_dataset("uoft-cs/cifar10", split="test"), like=train)

        It is known by its pixels, which are read once for that; what was downloaded from the Hub and not changed since
        also names its repository and commit.

        Args:
            dataset: With a column of images and one of labels.
            split: Of a `DatasetDict`; "train" if not given.
            image_column, label_column: The one column that could be it, if not given.
            resolution: Height and width in pixels, or one number for both; the size that all images have, if not given.
            resize: Shorter side in pixels of test and held-out images before their centre is cut out; without it no
                more is cut off than must be. Give it for train: `like` passes it on.
            interpolation: "bicubic" (if not given) or "bilinear".
            keep_side: Keep images for random crops too, with a shorter side of so many pixels, on disk, none enlarged;
                or "source", as they are, decoded on demand.
            like: Take class order, colour, range, resolution and preprocessing from these: how a test split is read.
            color: "rgb", "gray" or "auto" (gray only when every inspected image is gray).
            value_range: Values in files that become black and white; what lies beyond is cut off. All that 8 or 16 bits
                hold if not given.
            classes: Names of the classes to keep, in this order.
            normalization: "mean_std", "zca" or "none".
            mean, std: Per channel in [0, 1]; computed if not given.
            zca_eps: Added to the eigenvalues of the covariance of [0, 1] pixels.
            max_samples: Keep only so many, evenly from all classes; `seed` draws them.
            skip_corrupt: Leave images out that cannot be decoded, and count them, in place of an error.
            num_proc: Processes that decode.
            seed: See `max_samples`.

        Raises:
            ValueError: One line on what is wrong with the arguments or the data, and what to do.
        """
        part, name = _split_of(dataset, split)
        size = {"resolution": resolution, "resize": resize, "interpolation": interpolation, "keep_side": keep_side}
        looks = {"color": color, "value_range": value_range}
        _check_alike(like, **size, **looks, normalization=normalization, mean=mean, std=std)
        args = _arguments(
            image_column_name=image_column,
            label_column_name=label_column,
            **size,
            **looks,
            classes=classes,
            normalization=normalization,
            mean=mean,
            std=std,
            zca_eps=zca_eps,
            max_train_samples=max_samples,
            max_test_samples=max_samples,
            skip_corrupt=skip_corrupt,
            num_proc=num_proc,
        )
        if like is not None and not isinstance(like, RealImages):
            raise ValueError(f"like is a {type(like).__name__}; expected RealImages")
        source = Source.in_hand(args, part, name, _target(args, like), None if like is None else like.class_names)
        images = cls._read(source, source.args, like, seed)
        digest = images._digest()
        images.provenance["pixels"] = digest
        if images.revision is None:
            images.provenance["revision"] = f"pixels:{digest}"
        return images

    @classmethod
    def from_hub(
        cls,
        name: str | Path,
        *,
        split: str = "train",
        config: str | None = None,
        revision: str | None = None,
        streaming: bool = False,
        image_column: str | None = None,
        label_column: str | None = None,
        resolution: int | Sequence[int] | None = None,
        resize: int | None = None,
        interpolation: str | None = None,
        keep_side: int | str | None = None,
        like: "RealImages | None" = None,
        color: str = "auto",
        value_range: Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
        normalization: str = "mean_std",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        zca_eps: float = 0.1,
        max_samples: int | None = None,
        skip_corrupt: bool = False,
        num_proc: int | None = None,
        seed: int = 0,
    ) -> "RealImages":
        """The images of a dataset on the Hub or in a folder; see `from_dataset` for what is not explained here.

            train = RealImages.from_hub("uoft-cs/cifar10", normalization="zca")
            test = RealImages.from_hub("uoft-cs/cifar10", split="test", like=train)

        Args:
            name: What `load_dataset` reads: owner/name, or a folder.
            split: Which split.
            config: Configuration of the dataset, where it has several.
            revision: Branch, tag or commit.
            streaming: Read the source once, as a stream, and keep only the resized pixels on disk.

        Raises:
            ValueError: One line on what is wrong with the arguments or the data, and what to do.
        """
        size = {"resolution": resolution, "resize": resize, "interpolation": interpolation, "keep_side": keep_side}
        looks = {"color": color, "value_range": value_range}
        _check_alike(like, **size, **looks, normalization=normalization, mean=mean, std=std)
        if not isinstance(name, str | Path):
            raise ValueError(
                f"from_hub was given a {type(name).__name__}; expected owner/name or a folder (from_arguments takes "
                "DataArguments, and from_dataset a dataset in hand)"
            )
        args = _arguments(
            dataset_name=str(name),
            dataset_config=config,
            dataset_revision=revision,
            dataset_train_split=split,
            dataset_streaming=streaming,
            image_column_name=image_column,
            label_column_name=label_column,
            **size,
            **looks,
            classes=classes,
            normalization=normalization,
            mean=mean,
            std=std,
            zca_eps=zca_eps,
            max_train_samples=max_samples,
            max_test_samples=max_samples,
            skip_corrupt=skip_corrupt,
            num_proc=num_proc,
        )
        return cls.from_arguments(args, like=like, seed=seed)

    @classmethod
    def from_arguments(
        cls,
        args: DataArguments,
        split: str | None = None,
        *,
        like: "RealImages | None" = None,
        seed: int = 0,
        revision: str | None = None,
    ) -> "RealImages":
        """The images of one split, as a command line names it.

        Of processes that call this together, one decodes and the others read its cache.

        Args:
            args: What to read, and how.
            split: Train's if not given.
            like: Take class order, colour, resolution and preprocessing from these: how a test split is read.
            seed: Draws the images that `--max_train_samples` (with `like`: `--max_test_samples`) keeps: an equal share
                of each class; what a small class cannot give is shared by the others.
            revision: That of a local folder, where it is known, since listing many files takes its time.

        Raises:
            ValueError: One line on what is wrong with the arguments or the data, and what to do.
        """
        numbered = None if like is None else like.class_names
        source = Source.open(args, split or args.dataset_train_split, _target(args, like), numbered, revision)
        return cls._read(source, args, like, seed)

    @classmethod
    def _read(
        cls, source: Source, args: DataArguments, like: "RealImages | None", seed: int, *, on_demand: bool = False
    ) -> "RealImages":
        """Choose the rows of an open source, and decode them, now or on demand."""
        rows = _rows(source, args, seed, train=like is None)
        if like is None:
            _check_options(args, source.shape(rows))
        pixels, positions, encoded, rows = source.decode(rows, on_demand=on_demand)
        if like is None:
            _check_left(source, rows)
            _check_values(source, pixels, positions)
            known, options = _fit(args, pixels, positions), _options(args, pixels, encoded)
        else:
            _check_levels(source, pixels, least=0)
            known, options = like.preprocessing, {"test_frame": like.test_frame, "encoded": encoded}
            options["value_range"] = like.value_range
        about = (source.labels[rows], source.class_names, known, source.provenance)
        return cls(pixels, positions, *about, **options, rows=source.rows[rows])

    @classmethod
    def train_and_test(
        cls,
        args: DataArguments,
        *,
        seed: int = 0,
        check: Callable[[Outline], None] | None = None,
        on_demand: bool = False,
    ) -> "tuple[RealImages, RealImages]":
        """Train and test images with the same classes, size and preprocessing (fitted on train alone).

        Test is `--dataset_test_split`, or else the split called test, validation, valid or val. A dataset with none of
        them gives a fifth of train, stratified by class and drawn by `seed`. What is wrong with the columns, labels or
        sizes of either is found before an image is decoded (of a stream, in its first rows).

        Args:
            args: What to read, and how.
            seed: As in `from_arguments`.
            check: Raises for training images that are of no use to the caller, by those that `--validation_fraction`
                leaves of them. It is called before an image is decoded (of a stream, when train was read).
            on_demand: Decode each training image whenever it is asked for, and find out then that it cannot be used:
                for whoever looks at few of them. All are decoded as always where that takes what all of them tell
                (mean and deviation that are not given, ZCA, the corrupt ones that are left out, the levels of more than
                8 bits), and of a stream.

        Raises:
            ValueError: As `from_arguments` and `check`.
        """
        check = check or (lambda outline: None)
        test_split = _test_split(args)
        if test_split is not None:
            if args.dataset_streaming:
                check_head(args, args.dataset_train_split)
                check_head(args, test_split)
            revision = folder_revision(args)
            source = Source.open(args, args.dataset_train_split, _target(args, None), revision=revision)
            rows = _rows(source, args, seed, train=True)
            shape = source.shape(rows)
            _check_options(args, shape)
            check(_outline(source, rows, args, shape))
            alike = _target_like(args, shape, _test_frame(args), source.target.resize, source.target.value_range)
            show = partial(Source.open, args, test_split, alike, source.class_names, revision)
            shown = None if args.dataset_streaming else show()  # a stream is decoded as it is opened
            if shown is not None:
                shown.shape(_rows(shown, args, seed, train=False))
            given = args.normalization == "none" or (args.normalization == "mean_std" and args.mean is not None)
            on_demand = on_demand and given and not args.skip_corrupt and args.keep_side is None
            train = cls._read(source, args, None, seed, on_demand=on_demand)
            return train, cls._read(shown or show(), args, train, seed)
        source = Source.open(args, args.dataset_train_split, _target(args, None))
        rest, held_out = _stratify(source.labels, len(source.class_names), 0.2, generator(seed, "no test split"))
        train_rows = _evenly(source, rest, args.max_train_samples, generator(seed, "train"))
        test_rows = _evenly(source, held_out, args.max_test_samples, generator(seed, "test"))
        _check_every_class(source, train_rows, args.max_train_samples)
        if not len(test_rows):
            raise ValueError(
                f"{source.where} has one image per class and nothing to test on; give --dataset_test_split"
            )
        logger.warning("%s has no test split: a fifth of %r is held out for it", source.name, source.split)
        rows = torch.cat([train_rows, test_rows]).sort().values
        shape = source.shape(rows)
        _check_options(args, shape)
        check(_outline(source, train_rows, args, shape))
        pixels, positions, encoded, rows = source.decode(rows)
        at = [torch.nonzero(torch.isin(rows, part)).flatten() for part in (train_rows, test_rows)]
        _check_left(source, rows[at[0]])
        _check_values(source, pixels, positions[at[0]])
        about = (source.labels[rows], source.class_names, _fit(args, pixels, positions[at[0]]), source.provenance)
        whole = cls(pixels, positions, *about, **_options(args, pixels, encoded), rows=source.rows[rows])
        test = whole.subset(at[1])._as_test()
        test.provenance = {**test.provenance, "split": f"{A_FIFTH} {source.split}"}
        return whole.subset(at[0]), test

    @classmethod
    def outlines(cls, args: DataArguments, *, seed: int = 0) -> tuple[Outline, list[int], list[int]]:
        """What `train_and_test` and `split` would give, before an image is decoded: the outline of train, and for each
        class the images that are held out of it, and those to test on.

        Raises:
            ValueError: As `train_and_test`, as far as it is known then.
        """
        test_split, classes = _test_split(args), None
        source = Source.open(args, args.dataset_train_split, _target(args, None))
        if test_split is not None:
            rows = _rows(source, args, seed, train=True)
        else:
            rest, apart = _stratify(source.labels, len(source.class_names), 0.2, generator(seed, "no test split"))
            rows = _evenly(source, rest, args.max_train_samples, generator(seed, "train"))
            classes = source.labels[_evenly(source, apart, args.max_test_samples, generator(seed, "test"))]
        shape = source.shape(rows)
        _check_options(args, shape)
        if classes is None:
            alike = _target_like(args, shape, _test_frame(args), source.target.resize, source.target.value_range)
            shown = Source.open(args, str(test_split), alike, source.class_names)
            classes = shown.labels[_rows(shown, args, seed, train=False)]
        outline = _outline(source, rows, args, shape)
        held_out = torch.bincount(source.labels[rows], minlength=outline.num_classes) - torch.tensor(outline.counts)
        return outline, held_out.tolist(), torch.bincount(classes, minlength=outline.num_classes).tolist()

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape))
        name, split = self.provenance.get("name"), self.provenance.get("split")
        return f"RealImages({len(self):,} images of {self.num_classes:,} classes, {size}, {split} of {name})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._pixels.shape

    @property
    def is_part_of_train(self) -> bool:
        """True for test images that are a part of the split of train, which has no other beside it."""
        return str(self.provenance.get("split")).startswith(A_FIFTH)

    @property
    def resized(self) -> bool:
        """Images of other sizes were brought to this one, and not refused."""
        return self._pixels.resized

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def revision(self) -> str | None:
        """The commit of a Hub dataset; of a folder, a hash of its files."""
        return self.provenance["revision"]

    @property
    def keep_side(self) -> str | None:
        """The shorter side of the images that `kept` gives, or "source"; None where none are kept."""
        return None if self._kept is None else str(self._kept.keep.side or "source")

    def kept(self, rows: Tensor | Sequence[int]) -> Ragged:
        """The images `rows` (n,) at their own shapes, on the CPU: what random crops are taken from.

        Raises:
            ValueError: No images are kept; or one cannot be decoded.
        """
        return self._keeping().take(self._positions[torch.as_tensor(rows, dtype=torch.long)])

    def kept_sizes(self, rows: Tensor | Sequence[int]) -> Tensor:
        """Height and width of the images that `kept` gives for `rows` (n,), (n, 2) int64; `ValueError` as there."""
        return self._keeping().sizes(self._positions[torch.as_tensor(rows, dtype=torch.long)])

    def _keeping(self) -> Kept:
        if self._kept is None:
            raise ValueError("no images are kept at their own shapes; read them with --keep_side 384 or source")
        return self._kept

    def _digest(self) -> str:
        """16 hex digits that name the pixels and the labels."""
        digest = hashlib.sha256(str(self.shape).encode())
        for batch in _batches(self._pixels, self._positions):
            digest.update(batch.numpy())
        digest.update(self.labels.numpy())
        return digest.hexdigest()[:16]

    def uint8(self, rows: Tensor | Sequence[int]) -> Tensor:
        """Pixels of `rows`, (n, C, H, W) uint8 on the CPU; only these are read from disk."""
        return self._pixels.take(self._positions[torch.as_tensor(rows, dtype=torch.long)])

    def images(self, rows: Tensor | Sequence[int]) -> Tensor:
        """The images `rows` as a network sees them, (n, C, H, W) float32 on the CPU."""
        return self.preprocessing(self.uint8(rows))

    def mapped(self) -> "RealImages":
        """The same images, in a file on disk if they are decoded on demand: for whoever asks for each many times."""
        if self._encoded is None or not isinstance(self._pixels, PixelsOnDemand):
            return self
        view = copy.copy(self)
        view._encoded, view._positions = self._encoded.select(self._positions), torch.arange(len(self))
        view._pixels, _ = view._encoded.mapped(self._pixels.plan)
        return view

    def resident(self, device: torch.device | str) -> Tensor:
        """All pixels, (N, C, H, W) uint8, held on `device`; whether they fit is the caller's business."""
        images = torch.empty((len(self), *self.shape), dtype=torch.uint8, device=device)
        filled = 0
        for batch in _batches(self._pixels, self._positions):
            images[filled : filled + len(batch)] = upload(batch, device)
            filled += len(batch)
        return images

    @cached_property
    def _rows_by_class(self) -> tuple[Tensor, ...]:
        return _by_class(self.labels, self.num_classes)

    def class_rows(self, label: int) -> Tensor:
        """Rows of the images of class `label`, (m,) int64, ascending."""
        return self._rows_by_class[label]

    def sample(self, label: int, n: int, generator: torch.Generator) -> Tensor:
        """`n` different images of class `label`, (n, C, H, W) float32, preprocessed.

        Raises:
            ValueError: The class has fewer than `n`.
        """
        rows = self.class_rows(label)
        if n > len(rows):
            raise ValueError(
                f"{n} different images of class {self.class_names[label]!r} were asked for and it has {len(rows)}; "
                "ask for fewer images per class, or leave the class out with --classes"
            )
        return self.images(rows[torch.randperm(len(rows), generator=generator)[:n]])

    @property
    def outline(self) -> Outline:
        """What there would have been to know of them before they were decoded."""
        counts = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        return Outline(self.shape, self.class_names, counts, self.preprocessing.zca is not None)

    def check_alike(self, other: "RealImages", name: str) -> None:
        """Raise a one-line `ValueError` unless `other`, called `name`, are images of this size and these classes."""
        if not isinstance(other, RealImages):
            raise ValueError(f"{name} is a {type(other).__name__}; expected RealImages, read with like=train")
        if other.shape != self.shape or other.class_names != self.class_names:
            raise ValueError(
                f"{name} has {other.num_classes} classes of {'x'.join(map(str, other.shape))} images and train "
                f"{self.num_classes} of {'x'.join(map(str, self.shape))}, or others in another order; read it with "
                "like=train"
            )
        if not len(other) and name != "held_out":
            raise ValueError(f"{name} has no images; leave it out, or give some")

    def subset(self, rows: Tensor | Sequence[int]) -> "RealImages":
        """A view of `rows`, in that order; no pixel is copied."""
        rows, view = torch.as_tensor(rows, dtype=torch.long), copy.copy(self)
        view._positions, view.labels, view.rows = self._positions[rows], self.labels[rows], self.rows[rows]
        view.__dict__.pop("_rows_by_class", None)
        return view

    def of_classes(self, names: Sequence[str]) -> "RealImages":
        """The images of some classes, which take the numbers that they have among `names`; no pixel is copied.

        What draws images (`split`, a fifth for test, a number of samples) draws class after class: so images that are
        read with all classes, drawn from and narrowed last are those that others have who drew from all classes.

        Raises:
            ValueError: A class is not there, or named twice.
        """
        unknown = [name for name in names if name not in self.class_names]
        if unknown or len(set(names)) < len(names):
            said = f"{', '.join(map(repr, unknown[:NAMED]))}, which they lack" if unknown else "a name twice"
            raise ValueError(f"classes of images were asked for with {said}; expected different ones of theirs")
        place = torch.full((self.num_classes,), -1)
        place[[self.class_names.index(name) for name in names]] = torch.arange(len(names))
        view = self.subset(torch.nonzero(place[self.labels] >= 0).flatten())
        view.labels, view.class_names = place[view.labels], list(names)
        return view

    def seen_through(self, preprocessing: Preprocessing) -> "RealImages":
        """The same images with another preprocessing, for images of their size."""
        shape = (preprocessing.channels, *preprocessing.image_size)
        if shape != self.shape:
            raise ValueError(f"preprocessing for images of shape {shape}; expected {self.shape}, as these are")
        view = copy.copy(self)
        view.preprocessing = preprocessing
        return view

    def _as_test(self) -> "RealImages":
        """These images of train as test images are shown: decoded again where those are framed in another way."""
        if self.test_frame.side is None or not len(self):
            return self
        if self._encoded is None:
            logger.warning("images that are held out of a stream are cut out of train's centres, whatever --resize is")
            return self
        channels, height, width = self.shape
        color = "gray" if channels == 1 else "rgb"
        target = Target((height, width), color, True, self.test_frame, self.value_range)
        view, encoded = copy.copy(self), self._encoded.select(self._positions)
        (view._pixels, _), view._positions = encoded.framed(target), torch.arange(len(self))
        view._encoded, view._kept = encoded, None
        return view

    def split(self, fraction: float, seed: int) -> "tuple[RealImages, RealImages]":
        """The rest, and a held-out `fraction` of each class: views that depend on `seed` and the labels alone.

        A class of two or more images gives at least one and keeps at least one; a class of one image keeps it. Held-out
        images are framed as test images are.
        """
        rest, held_out = _stratify(self.labels, self.num_classes, fraction, generator(seed, "held out"))
        return self.subset(rest), self.subset(held_out)._as_test()

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([row]).items()}

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """A whole batch: `DataLoader` calls this in place of one `__getitem__` per image."""
        return {"pixel_values": self.images(rows), "labels": self.labels[torch.as_tensor(rows, dtype=torch.long)]}

    def loader(self, batch_size: int, *, train: bool, seed: int = 0) -> DataLoader:
        """Batches `{"pixel_values": (n, C, H, W) float32, "labels": (n,) int64}`; for training shuffled by `seed`."""
        return DataLoader(
            self, batch_size, shuffle=train, generator=generator(seed, "loader"), collate_fn=_already_a_batch
        )


def _already_a_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


def _arguments(**given: Any) -> DataArguments:
    """Keywords as a command line has them: plain numbers and texts, sequences as lists, one size as a square.

    Raises:
        ValueError: A value is of another type, or out of its range.
    """
    if isinstance(given["resolution"], Integral):
        given["resolution"] = [given["resolution"]]
    if isinstance(given["keep_side"], Integral) and not isinstance(given["keep_side"], bool):
        given["keep_side"] = str(given["keep_side"])
    for name in ("interpolation", "keep_side"):
        if not isinstance(given[name], str | None):
            raise ValueError(f"{name} is {given[name]!r}; expected a name{' or a number' * (name == 'keep_side')}")
    kinds = {"resolution": int, "classes": str, "mean": float, "std": float, "value_range": float}
    for name, kind in kinds.items():
        if given[name] is not None:
            if isinstance(given[name], str) or not isinstance(given[name], Iterable):
                raise ValueError(f"{name} is {given[name]!r}; expected a list, or none")
            given[name] = [_as(kind, name, value) for value in given[name]]
    numbers = {"resize": int, "zca_eps": float, "max_train_samples": int, "max_test_samples": int, "num_proc": int}
    for name, kind in numbers.items():
        if given.get(name) is not None:
            given[name] = _as(kind, name.replace("_train", "").replace("_test", ""), given[name])
    return DataArguments(**given)


def _as(kind: type, name: str, value: Any) -> Any:
    """A value, NumPy's too, as Python's own; a `ValueError` of one line where it is none of that kind."""
    takes = {int: Integral, float: Real, str: str | Integral}[kind]
    if isinstance(value, bool) or not isinstance(value, takes):
        expected = {int: "a whole number", float: "a number", str: "a name"}[kind]
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    return kind(value)


def _check_alike(like: RealImages | None, **given: Any) -> None:
    """Raise a `ValueError` for keywords whose values `like` brings."""
    without = {"color": "auto", "normalization": "mean_std"}
    for name, value in given.items():
        if like is not None and value is not None and not (name in without and value == without[name]):
            raise ValueError(f"{name}={value!r} and like= say the same in two ways; leave {name} out")


def _split_of(dataset: Dataset | DatasetDict, split: str | None) -> tuple[Dataset, str]:
    """One split of what the user has in hand, and its name; a `ValueError` of one line where it is something else."""
    if isinstance(dataset, DatasetDict):
        name = split or "train"
        if name not in dataset:
            raise ValueError(f"split {name!r} is not among those of the dataset: {', '.join(dataset)}; choose one")
        return dataset[name], name
    if not isinstance(dataset, Dataset):
        streamed = isinstance(dataset, IterableDataset | IterableDatasetDict)
        what = "a streamed dataset, which can be read once only" if streamed else f"a {type(dataset).__name__}"
        raise ValueError(
            f"from_dataset was given {what}; expected a datasets.Dataset, such as load_dataset(..., split='train') or "
            "Dataset.from_dict({'image': [...], 'label': [...]}) (from_hub(name, streaming=True) reads streams)"
        )
    if dataset.format["type"] == "custom":
        raise ValueError(
            "the dataset has a transform, which changes what is looked at and not what is stored; apply it with map(), "
            "or remove it with reset_format()"
        )
    if split is not None:
        raise ValueError(f"split={split!r} is for a DatasetDict, and this is one dataset; leave it out")
    return dataset, str(dataset.split or "in hand")


def _target(args: DataArguments, like: RealImages | None) -> Target:
    """The size and colour that images are to have: those of `like`, or else those that the arguments ask for."""
    if like is not None:
        return _target_like(args, like.shape, like.test_frame, like.resized, like.value_range)
    size = None if args.resolution is None else (args.resolution[0], args.resolution[-1])
    frame = replace(_test_frame(args), side=None)
    return Target(size, args.color, resize=size is not None, frame=frame, value_range=_value_range(args))


def _value_range(args: DataArguments) -> tuple[float, float] | None:
    return None if args.value_range is None else (args.value_range[0], args.value_range[1])


def _target_like(
    args: DataArguments,
    shape: tuple[int, int, int],
    frame: Frame,
    resized: bool,
    value_range: tuple[float, float] | None,
) -> Target:
    """What test images are to become beside train images of this shape."""
    resize = args.resolution is not None or resized or frame.side is not None
    return Target(shape[1:], "gray" if shape[0] == 1 else "rgb", resize, frame, value_range)


def _test_frame(args: DataArguments) -> Frame:
    return Frame(args.resize, args.interpolation or INTERPOLATIONS[0])


def _check_options(args: DataArguments, shape: tuple[int, int, int]) -> None:
    """Raise a one-line `ValueError` where the arguments do not fit train images of this shape."""
    check_resize(args.resize, shape[1:])
    check_keep_side(args.keep_side, shape[1:])
    if args.mean is not None and len(args.mean) != shape[0]:
        raise ValueError(
            f"--mean has {len(args.mean)} number(s) and the images {shape[0]} channel(s); give one for each"
        )


def _options(args: DataArguments, pixels: Pixels, encoded: Encoded | None) -> dict[str, Any]:
    """What train images have beside pixels: how test images are framed, and images at their own shapes if asked for."""
    frame, kept = _test_frame(args), None
    if args.keep_side is not None and encoded is not None:
        side = None if args.keep_side == "source" else int(args.keep_side)
        kept = encoded.kept(Keep(pixels.shape[0], side, frame.interpolation, _value_range(args)))
    return {"test_frame": frame, "value_range": _value_range(args), "encoded": encoded, "kept": kept}


def _by_class(labels: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """Rows of each class, ascending."""
    return labels.argsort(stable=True).split(torch.bincount(labels, minlength=num_classes).tolist())


def _rows(source: Source, args: DataArguments, seed: int, *, train: bool) -> Tensor:
    """The rows that `--max_train_samples` or `--max_test_samples` leaves, as numbers in `source.rows`."""
    limit = args.max_train_samples if train else args.max_test_samples
    draw = generator(seed, "train" if train else "test")
    rows = _evenly(source, torch.arange(len(source.labels)), limit, draw)
    if train:
        _check_every_class(source, rows, limit)
    return rows


def _evenly(source: Source, rows: Tensor, limit: int | None, draw: torch.Generator) -> Tensor:
    """At most `limit` of `rows`, ascending: an equal share of each class; small classes leave theirs to the others."""
    if limit is None or limit >= len(rows):
        return rows
    parts = _by_class(source.labels[rows], len(source.class_names))
    counts = torch.tensor([len(part) for part in parts])
    # The highest level that is not too much for `limit`.
    share = bisect_right(range(limit + 1), limit, key=lambda level: int(counts.clamp(max=level).sum())) - 1
    quota = counts.clamp(max=share)
    # What is left is less than one for each class that has more: the first of them get it.
    quota[torch.nonzero(counts > share).flatten()[: limit - int(quota.sum())]] += 1
    chosen = [
        part[torch.randperm(len(part), generator=draw)[:n]] for part, n in zip(parts, quota.tolist(), strict=True)
    ]
    return rows[torch.cat(chosen).sort().values]


def _test_split(args: DataArguments) -> str | None:
    """The split to test on; None where a part of train is."""
    if args.dataset_test_split is not None:
        return args.dataset_test_split
    splits = set(split_names(args)) - {args.dataset_train_split}
    return next((name for name in TEST_SPLITS if name in splits), None)


def _outline(source: Source, rows: Tensor, args: DataArguments, shape: tuple[int, int, int]) -> Outline:
    """Of these rows, without those that will be held out."""
    counts = torch.bincount(source.labels[rows], minlength=len(source.class_names)).tolist()
    left = [count - held_out_of(count, args.validation_fraction) for count in counts]
    return Outline(shape, source.class_names, left, args.normalization == "zca")


def _check_every_class(source: Source, rows: Tensor, limit: int | None) -> None:
    if len(rows) < len(source.class_names):
        raise ValueError(
            f"--max_train_samples is {limit}; expected at least {len(source.class_names)}, one image for each class"
        )


def _check_left(source: Source, rows: Tensor) -> None:
    """Raise a `ValueError` of one line where all images of some classes were corrupt."""
    left = torch.bincount(source.labels[rows], minlength=len(source.class_names)).tolist()
    gone = [repr(name) for name, count in zip(source.class_names, left, strict=True) if not count]
    if gone:
        more = ", ..." if len(gone) > NAMED else ""
        raise ValueError(
            f"all images of the classes {', '.join(gone[:NAMED])}{more} in {source.where} are corrupt, and "
            "--skip_corrupt leaves none; expected one at least: replace some, or leave such classes out with --classes"
        )


def _check_values(source: Source, pixels: Pixels, positions: Tensor) -> None:
    """Raise a `ValueError` of one line where next to nothing is left of train images by decoding."""
    _check_levels(source, pixels, least=LEAST_LEFT)
    low, high = 255, 0
    for batch in _batches(pixels, positions):
        low, high = min(low, int(batch.min())), max(high, int(batch.max()))
        if high - low >= LEAST_SPAN:
            return
    found = pixels.levels or (low, high)
    hint = f"give the values that are to be black and white, such as --value_range {found[0]} {found[1]}"
    if found[0] == found[1] or source.target.value_range is not None:
        hint = "look at the files, and at --value_range"
    raise ValueError(
        f"the images of {source.where} have values from {low} to {high} once they are decoded (their files from "
        f"{found[0]} to {found[1]}); expected a span of {LEAST_SPAN} of 255 at least: {hint}"
    )


def _check_levels(source: Source, pixels: Pixels, least: int) -> None:
    """Raise a `ValueError` of one line where files of more than 8 bits lose what fewer than `least` bytes tell apart,
    or what is cut off."""
    if pixels.levels is None or source.target.value_range is not None:
        return
    low, high, lost, cut = pixels.levels
    left = min(high, DEEPEST) // 257 - max(low, 0) // 257 + 1
    if low < 0 or high > DEEPEST or (lost and left < least):
        hint = f"give the values that are to be black and white, such as --value_range {low} {high}"
        raise ValueError(
            f"the images of {source.where} have values from {low} to {high} in more than 8 bits, of which 0 to "
            f"{DEEPEST} become 0 to 255, and no more than {max(left, 0)} different ones are left; "
            f"{NO_RANGE if cut else hint}"
        )


def _stratify(labels: Tensor, num_classes: int, fraction: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """(rest, held out) rows, both ascending, with `fraction` of each class held out."""
    if not 0 <= fraction < 1:
        raise ValueError(f"a fraction of {fraction} to hold out; expected 0 up to, not including, 1")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for part in _by_class(labels, num_classes):
        n = held_out_of(len(part), fraction)
        held_out[part[torch.randperm(len(part), generator=draw)[:n]]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def held_out_of(count: int, fraction: float) -> int:
    """How many of the images of a class are held out."""
    return min(max(round(fraction * count), 1), count - 1) if fraction and count else 0


def _batches(pixels: Pixels, positions: Tensor) -> Iterator[Tensor]:
    """All of `positions`, in order, as (n, C, H, W) uint8 tensors of a bounded number of bytes."""
    for part in positions.split(pixels.at_once):
        yield pixels.take(part)


def _fit(args: DataArguments, pixels: Pixels, positions: Tensor) -> Preprocessing:
    """The preprocessing that `--normalization` asks for, computed from the images at `positions` or given."""
    channels, height, width = pixels.shape
    mean, std, zca = (0.0,) * channels, (1.0,) * channels, None
    if args.normalization == "zca":
        zca = _zca(args, pixels, positions)
    elif args.mean is not None and args.std is not None:
        mean, std = tuple(args.mean), tuple(args.std)
    elif args.normalization == "mean_std":
        mean, std = fit_mean_std(_batches(pixels, positions))
    return Preprocessing(channels, (height, width), mean, std, zca)


def _zca(args: DataArguments, pixels: Pixels, positions: Tensor) -> ZCA:
    """The whitening of these images, from the cache when the same bytes were whitened before.

    A fit takes seconds to minutes, and every recipe on the same data needs the same one.
    """
    content = hashlib.sha256(str((pixels.shape, args.zca_eps)).encode())
    for batch in _batches(pixels, positions):
        content.update(batch.numpy())
    with one_process_at_a_time(args) as folder:
        path = folder / f"hf_distill-zca-{content.hexdigest()[:32]}.safetensors"
        if not path.is_file():
            zca = fit_zca(_batches(pixels, positions), args.zca_eps)
            parts = {"mean": zca.mean, "vectors": zca.vectors, "values": zca.values}
            atomic_write(path, save(parts, metadata={"digest": zca.digest}))
        with safe_open(path, "pt") as file:
            mean, vectors, values = (file.get_tensor(name) for name in ("mean", "vectors", "values"))
            return ZCA(mean, vectors, values, args.zca_eps, file.metadata()["digest"])
