"""What methods share that tile crops of real images: crops are drawn, scored by a teacher, and put together.

RDED (`rded`) defines them, and HeLlO (`hello`) begins with them; their symbols are in `rded`. What FADRM (`fadrm`)
starts from is made by the functions. A change here changes all three.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from ..augmentation.crops import CROP_DRAWS, MIN_SCALE, draw_crops, edges, uniform
from ..augmentation.shrinking import take_crops
from ..config import DistillConfig, HfArg, check_at_least
from ..data.images import Outline, RealImages
from ..data.preprocessing import Preprocessing
from ..data.ragged import Ragged
from ..data.upload import upload
from ..engine.blocks import Block, BlockDistiller
from ..engine.method import Preparation
from ..evaluation.protocols import PROTOCOLS, TrainingProtocol
from ..networks.compiling import in_precision
from ..networks.teachers import Teacher
from ..rng import derive_seed, generator
from ..runs.rehearsal import Ledger, Stage
from ..training.teachers import NamedTeachers, TeacherConfig, check_teachers, find_teachers


def centred(crops: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The `crops` (n, C, h, w) uint8 as a network sees them in the middle of an image of the usual size.

    Around them it sees zeros, the mean colour.
    """
    (height, width), (tall, wide) = preprocessing.image_size, crops.shape[2:]
    top, left = (height - tall) // 2, (width - wide) // 2
    return F.pad(preprocessing(crops), (left, width - wide - left, top, height - tall - top))


def boxes_of(train: RealImages, rows: Tensor, seed: int, number: int, min_scale: float = MIN_SCALE) -> Tensor:
    """The box of crop `number` of each of the images `rows` (n,), (n, 4) int64: it has the shape of a distilled image.

    It is a function of the seed, the number, the image's row and its shape.
    """
    height, width = train.shape[1:]
    sizes = (height, width) if train.keep_side is None else train.kept_sizes(rows)
    u, ratio = uniform(derive_seed(seed, "crops"), (number,), rows, CROP_DRAWS), (width / height, width / height)
    return draw_crops(u, sizes, (min_scale, 1.0), ratio, flip=0.0).boxes


def images_to_cut(train: RealImages, rows: Tensor, device: torch.device) -> Tensor | Ragged:
    """The images `rows` (n,) that crops are cut from, on the device: at their own shapes where train keeps them."""
    return train.kept(rows).to(device) if train.keep_side is not None else upload(train.uint8(rows), device)


def mosaic(shape: Sequence[int], factor: int, count: int, tiles: Callable[[Tensor, tuple[int, int]], Tensor]) -> Tensor:
    """Images of `factor` x `factor` tiles, (count, C, H, W) uint8 on the CPU: tile k of image i is crop k count + i.

    Tiles of one size are made together, whatever their images and their places are.

    Args:
        shape: (C, H, W).
        factor, count: Tiles along a side, and images.
        tiles: Gives the crops of these numbers (m,) in this size, (m, C, *size) uint8.
    """
    canvas = torch.empty((count, *shape), dtype=torch.uint8)
    down, across = (list(pairwise(edges(side, factor))) for side in shape[1:])
    places: dict[tuple[int, int], list[tuple[int, slice, slice]]] = {}  # by the size of the tile there
    for number, ((top, bottom), (left, right)) in enumerate(product(down, across)):
        there = (number * count, slice(top, bottom), slice(left, right))
        places.setdefault((bottom - top, right - left), []).append(there)
    for size, alike in places.items():
        crops = torch.cat([torch.arange(first, first + count) for first, _, _ in alike])
        for (_, y, x), own in zip(alike, tiles(crops, size).cpu().split(count), strict=True):
            canvas[:, :, y, x] = own
    return canvas


def check_factor(factor: int, train: Outline) -> None:
    """Raise a `ValueError` unless an image has room for its tiles."""
    if factor > min(train.shape[1:]):
        raise ValueError(
            f"--factor is {factor} for images of {train.shape[1]}x{train.shape[2]} pixels; expected at most "
            f"{min(train.shape[1:])}"
        )


def choose(losses: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` crops to keep, best first: their images and their numbers within the image, both (count,).

    The best crops of all images come first, by loss, then all second-best ones, and so on; of equals the first.

    Args:
        losses: (M, m), of m crops of M images.
    """
    ordered, numbers = losses.sort(dim=1, stable=True)
    place = torch.cat([rank * len(losses) + ordered[:, rank].argsort(stable=True) for rank in range(losses.shape[1])])
    place = place[:count]
    images, ranks = place % len(losses), place // len(losses)
    return images, numbers[images, ranks]


@dataclass
class PatchConfig(NamedTeachers, DistillConfig):
    """Which crops are drawn, and what becomes of them; the defaults are those of RDED's ImageNet-1K run."""

    num_candidates: int = HfArg(default=300, help="Images of a class that are looked at; all where it has fewer.")
    num_crops: int = HfArg(default=5, help="Random crops of each of them.")
    min_scale: float = HfArg(default=MIN_SCALE, help="Smallest area of a crop, as a share of the image.")
    factor: int = HfArg(default=2, help="Crops along each side of a distilled image; 1 for small images.")
    batch_score: int = HfArg(default=100, help="Crops that go through the teacher at once, and tiles through CLIP.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag in ("num_candidates", "num_crops", "factor", "batch_score"):
            check_at_least(flag, getattr(self, flag), 1)
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"--min_scale is {self.min_scale}; expected above 0, and at most 1")
        if self.num_candidates * self.num_crops < self.per_class:
            raise ValueError(
                f"--num_crops {self.num_crops} of --num_candidates {self.num_candidates} are fewer than the "
                f"{self.per_class} crops that --ipc {self.ipc} with --factor {self.factor} takes; raise one of the "
                "two, or lower --ipc or --factor"
            )

    @property
    def per_class(self) -> int:
        """Crops that the images of a class are made of."""
        return self.ipc * self.factor**2

    def check_fits(self, train: Outline) -> None:
        """Raise a `ValueError` unless every class has enough crops, and an image room for its tiles."""
        check_factor(self.factor, train)
        images = math.ceil(self.per_class / self.num_crops)
        takes = (
            f"--ipc {self.ipc} with --factor {self.factor} takes {self.per_class} crops, {self.num_crops} of an image,"
        )
        train.require([images] * train.num_classes, takes, "raise --num_crops, or lower --ipc or --factor")


class PatchMethod(BlockDistiller):
    """Crops (by chance), scored (by a teacher), tiled.

    Args:
        config: A `PatchConfig`.
        train: The images to distil.
        teachers: Networks that know their classes; the last one scores. One of more classes is narrowed to these.
        kwargs: See `Method`.

    Raises:
        ValueError: The teacher lacks a class of `train` or takes other images; or as `check`.
    """

    learns_from: ClassVar[tuple[type, ...]] = (TeacherConfig,)
    takes_images = False  # an image gives several crops
    labelled_by = -1
    saving = ("batch_score",)
    cuts_crops = True
    uncompiled = "the scoring of crops"
    config: PatchConfig

    def __init__(self, config: PatchConfig, train: RealImages, *, teachers: Sequence[Teacher], **kwargs: Any) -> None:
        if not teachers:
            raise ValueError(f"{type(self).__name__} without a teacher has nothing to score crops with; give one")
        super().__init__(config, train, **kwargs)
        self.teacher = teachers[self.labelled_by].narrowed(train.class_names).to(self.device)
        self.preprocessing = self.teacher.preprocessing
        self.teacher.check_input(train)

    @classmethod
    def protocol_of(cls, config: PatchConfig, train: RealImages) -> TrainingProtocol:
        """As `Method.protocol_of`, for images of `factor` x `factor` tiles."""
        return PROTOCOLS[config.eval_protocol].for_set(config.ipc, train.num_classes, config.factor)

    @classmethod
    def check(cls, config: PatchConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()) -> None:
        """As `Method.check`; and every class has enough crops, an image room for its tiles, and a teacher can be."""
        config.check_fits(train)
        super().check(config, train, accelerator, networks)
        check_teachers(config, train, accelerator, networks)
        if config.factor > 1 and train.whitened:
            raise ValueError(
                "crops are smaller than what --normalization zca whitens; use --normalization mean_std, or --factor 1"
            )

    @classmethod
    def learn(cls, having: Preparation) -> dict[str, Any]:
        """The teachers that are named, or else one of these settings, trained unless it is there."""
        (settings,) = having.networks
        config = having.config
        options = {"class_names": config.teacher_class_names, **having.options}
        teachers = find_teachers(config.teachers, having.train, having.test, settings, **options)
        return {"teachers": teachers}

    def rehearse_ready(self) -> None:
        """As `BlockDistiller.rehearse_ready`: the teacher as it answers."""
        self.teacher.logits(torch.empty((1, *self.train.shape), device=self.device))

    def rehearse(self, ledger: Ledger, held_out: RealImages, tested: RealImages) -> list[Stage]:
        """As `BlockDistiller.rehearse`: crops of no more images than are looked at together, and the FLOP of all."""
        config, counts = self.config, torch.bincount(self.train.labels)
        fewer = max(config.batch_score, math.ceil(config.per_class / config.num_crops))
        self.config = replace(config, num_candidates=min(config.num_candidates, fewer))
        (stage,) = super().rehearse(ledger, held_out, tested)
        flop, operations, rows = ledger.flop, ledger.operations, self.candidates(0)
        self.crop_losses(rows, self.boxes(rows), 0)
        further = (counts.clamp(max=config.num_candidates) - counts.clamp(max=self.config.num_candidates)).sum().item()
        flop, operations = (further / len(rows) * each for each in (ledger.flop - flop, ledger.operations - operations))
        self.config = config
        return [replace(stage, flop=stage.flop + flop, operations=stage.operations + operations)]

    def learned_from(self) -> Sequence[Teacher]:
        """The teacher that scores."""
        return [self.teacher]

    @property
    def classes_at_once(self) -> int:
        """Classes in a block: one, where tiles are only cut out."""
        return 1

    def blocks(self) -> list[Block]:
        """A block is `classes_at_once` classes; the last one is what is left."""
        labels = torch.arange(self.train.num_classes).repeat_interleave(self.config.ipc)
        size = self.classes_at_once * self.config.ipc
        parts = zip(torch.arange(len(labels)).split(size), labels.split(size), strict=True)
        return [Block(number, rows, own) for number, (rows, own) in enumerate(parts)]

    def identity(self) -> dict[str, Any]:
        """Beside the data, the weights of the teacher."""
        return {**super().identity(), "teacher": self.teacher.digest}

    def candidates(self, label: int) -> Tensor:
        """Rows of the images of a class that are looked at, (M,) int64."""
        rows = self.train.class_rows(label)
        order = torch.randperm(len(rows), generator=generator(self.config.seed, "candidates", label))
        return rows[order[: self.config.num_candidates]]

    def boxes(self, rows: Tensor) -> Tensor:
        """The boxes of the crops of images, (M, m, 4) int64: functions of the seed, the image's row and its shape."""
        config = self.config
        drawn = [
            boxes_of(self.train, rows, config.seed, number, config.min_scale) for number in range(config.num_crops)
        ]
        return torch.stack(drawn, dim=1)

    def images(self, rows: Tensor) -> Tensor | Ragged:
        """As `images_to_cut`, of the images to distil."""
        return images_to_cut(self.train, rows, self.device)

    @torch.no_grad()
    def crop_losses(self, rows: Tensor, boxes: Tensor, label: int) -> Tensor:
        """The teacher's cross-entropy of each crop for the class `label`, (M, m) float32 on the CPU: −s_ij of `rded`.

        RDED and HeLlO score alike; a method that scores otherwise overrides this.

        Args:
            rows: (M,) of the images.
            boxes: (M, m, 4) of their crops.
        """
        size = tuple(side // self.config.factor for side in self.train.shape[1:])
        losses = []  # (n, m) of each part
        answer = in_precision(self.teacher.logits, self.accelerator)
        for part in torch.arange(len(rows)).split(self.config.batch_score):
            images = self.images(rows[part])
            target = torch.full((len(part),), label, device=self.device)
            each = []
            for crops in (take_crops(images, own, size) for own in boxes[part].unbind(1)):
                x = centred(crops, self.preprocessing)
                if self.device.type == "cuda":
                    x = x.contiguous(memory_format=torch.channels_last)
                each.append(F.cross_entropy(answer(x), target, reduction="none"))
            losses.append(torch.stack(each, dim=1))
        return torch.cat(losses).cpu()

    def tiled(self, rows: Tensor, boxes: Tensor) -> Tensor:
        """Images of crops, (n, C, H, W) uint8 on the CPU: tile k of image i is the crop k n + i.

        Args:
            rows: (n f²,) of the images that the crops are from.
            boxes: (n f², 4).
        """

        def tiles(crops: Tensor, size: tuple[int, int]) -> Tensor:
            parts = crops.split(self.config.batch_score)
            return torch.cat([self.tile(self.images(rows[part]), boxes[part], size).cpu() for part in parts])

        return mosaic(self.train.shape, self.config.factor, len(rows) // self.config.factor**2, tiles)

    def tile(self, images: Tensor | Ragged, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """The tiles (n, C, *size) uint8 that the boxes (n, 4), on the CPU, of n `images` become."""
        return take_crops(images, boxes, size)

    def chosen(self, label: int, block: Block) -> tuple[Tensor, Tensor, dict[str, float]]:
        """The best crops of a class, best first: rows (ipc f²,), boxes (ipc f², 4), and what is to be seen of them."""
        rows = self.candidates(label)
        boxes = self.boxes(rows)
        losses = self.crop_losses(rows, boxes, label)
        images, numbers = choose(losses, self.config.per_class)
        values = {"ce": losses[images, numbers].mean().item(), "ce_all": losses.mean().item()}
        self.check_finite(values, block, 0, "use another teacher, or no --mixed_precision")
        return rows[images], boxes[images, numbers], values

    def make(self, block: Block, log: Callable[[int, dict[str, float]], None]) -> Tensor:
        """The images of the classes of a block, (B, C, H, W) uint8: the best crops of each."""
        labels = block.labels.unique_consecutive().tolist()
        rows, boxes, values = zip(*(self.chosen(label, block) for label in labels), strict=True)
        log(1, {key: statistics.fmean(each[key] for each in values) for key in values[0]})
        # Tile k of image i of each class is its crop k ipc + i; of all images it is to be crop k n + i.
        tiles, ipc = self.config.factor**2, self.config.ipc
        ordered = [
            torch.stack(parts).unflatten(1, (tiles, ipc)).transpose(0, 1).flatten(0, 2) for parts in (rows, boxes)
        ]
        return self.tiled(*ordered)
