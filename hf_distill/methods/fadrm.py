"""FADRM and FADRM+: images recovered in stages of their own sizes, each of which begins with part of the real image.

Cui et al., NeurIPS 2025, arXiv:2506.24125. The loss, the views and the step are those of SRe2L
(`recovering`); FADRM adds

    x  <- α resize(x, s_k+1) + (1 − α) resize(p, s_k+1)                where stage k ends, but for the last one

    symbol   name             meaning
    p        originals        crops of real images, tiled, that an image starts from; the start is resize(p, s_1)
    f        factor           crops along a side of p; 1 are whole images
    s_k      stage_sizes      side of the images in stage k; the last is that of the set
    T        max_steps        iterations of all stages together, of which each has as many, to one
    α        alpha            share of what was recovered
    φ_t      teachers         of iteration t number t modulo their count, over all stages; several make it FADRM+

The learning rate is one cosine over all stages, and Adam's moments are new in each. Boxes are of 0.08 to 1 of the area
of the stage's images, and rolls of up to `jitter` of its pixels. A teacher without BatchNorm has R_BN = 0, where
another one has it.

p is RDED's mosaic (`patches`) of other crops than its best: one random crop of each of `num_candidates` images of a
class, as small as its tile, is ranked by the probability that the first teacher gives the class, and crops are taken
from the median outwards: the median itself, the one below it, the one above it, the second below it, and so on. Image
number i of a class has the i-th f² of them, so fewer images per class are the first of more. With f = 1 they are whole
images.

Differs from the authors' code:
- Their p are files, of which it is known that they are "patches" of "medium" difficulty, and not how they were made.
  f = 2, and 1 for images of 64 pixels and fewer, is what RDED's scripts have for the patches that the word comes from.
- Images are kept rounded to bytes; theirs are cut off to them.
- Half precision is the launcher's bfloat16; theirs is float16 with a scaler.
- A set's own teacher, its first, labels views one by one (`--init noise`, one stage and one teacher is SRe2L to the
  bit). Their labels are means of all teachers by the statistics of batches: `recipes/relabel.py --teachers ...
  --batch_statistics 8`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..augmentation.shrinking import take_crops
from ..config import HfArg, check_at_least
from ..data.images import Outline, RealImages
from ..data.precision import without_autocast
from ..data.upload import upload
from ..distilled.distilled_set import DistilledSet
from ..engine.blocks import Block
from ..hub.cards import Paper
from ..networks.compiling import in_precision
from ..rng import generator
from ..runs.rehearsal import Ledger, Stage
from .patches import boxes_of, centred, check_factor, images_to_cut, mosaic
from .recovering import Recovering, RecoveringConfig

AT_ONCE = 100  # images that are ranked together: the last bits of logits depend on them


def from_the_middle(losses: Tensor) -> Tensor:
    """The images in the order in which they are taken, (n,): the median, then one below it and one above it in turn.

    Args:
        losses: (n,) cross-entropies: the larger, the less probable.
    """
    rising = losses.argsort(descending=True, stable=True)  # in probability
    number = torch.arange(len(losses))
    steps = (number + 1) // 2
    return rising[len(losses) // 2 + torch.where(number % 2 == 1, -steps, steps)]


@without_autocast
def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The images `x` (B, C, H, W) with another height and width; `x` itself where it has them."""
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def sizes_of(config: "FADRMConfig", shape: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width of the images in each stage, whose shorter sides are `stage_sizes`, for a set of `shape`."""
    height, width = shape[1:]
    short = min(height, width)
    sides = config.stage_sizes or [short] * 4
    if sides[-1] != short:
        raise ValueError(
            f"--stage_sizes ends with {sides[-1]} and the images of the set have a shorter side of {short}; expected "
            f"{short} last, or give --resolution {sides[-1]}"
        )
    return [(round(height * side / short), round(width * side / short)) for side in sides]


@dataclass
class FADRMConfig(RecoveringConfig):
    """Hyper-parameters of FADRM; the defaults are those of its ImageNet-1K run, but for its stages' sizes.

    Example:
        >>> config = hd.FADRMConfig(stage_sizes=[200, 224, 200, 224])
        >>> [config.stage_of(t) for t in (0, 499, 500, 1999)]
        [0, 0, 1, 3]
    """

    init: str = HfArg(default="real", help="Start from real crops around the median of probability, or from noise.")
    max_steps: int = HfArg(default=2000, help="Iterations of each block, shared evenly among the stages.")
    stage_sizes: list[int] | None = HfArg(
        default=None,
        help="Shorter side of the images in each stage; the last is that of the set. Without it: four stages of that.",
    )
    alpha: float = HfArg(
        default=0.5, help="Share of the recovered images where a stage ends; the rest is what they started from."
    )
    factor: int = HfArg(
        default=2, help="Crops along each side of what an image starts from; 1, for small images: a whole image."
    )
    num_candidates: int = HfArg(
        default=300, help="Images of a class that are ranked, or as many as are needed; all where it has fewer."
    )
    eval_protocol: str = HfArg(default="fadrm", help="How students are trained on the set, such as fadrm or rded.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_share("alpha")
        for flag in ("max_steps", "factor", "num_candidates"):
            check_at_least(flag, getattr(self, flag), 1)
        if self.stage_sizes is not None and not (self.stage_sizes and min(self.stage_sizes) >= 1):
            raise ValueError(f"--stage_sizes is {self.stage_sizes}; expected one side for each stage, from 1")

    @property
    def per_class(self) -> int:
        """Real images of which those of a class start."""
        return self.ipc * self.factor**2

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return 4 if self.stage_sizes is None else len(self.stage_sizes)

    def stage_of(self, t: int) -> int:
        """The stage, from 0, of iteration `t`; the last iterations are always in the last one."""
        return self.num_stages - 1 - (self.max_steps - 1 - t) * self.num_stages // self.max_steps


class FADRM(Recovering):
    """Recover (as SRe2L), shrink and grow again, and mix with what the image was; FADRM+ with several teachers.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "teacher_epochs": 1, "batch_train": 20}
        >>> distilled = hd.FADRM.distill(train, ipc=1, max_steps=4, jitter=1, disable_tqdm=True, **net)
        >>> distilled.pixel_values.shape, distilled.pixel_values.dtype
        (torch.Size([10, 1, 8, 8]), torch.uint8)

    Args:
        config: A `FADRMConfig`.
        train: The images to distil.
        teachers: Networks that know their classes, and perhaps others; one at least has BatchNorm. The first one
            ranks and labels.
        kwargs: See `Method`.

    Raises:
        ValueError: A teacher lacks a class of `train`, takes other images or cannot look at those of a stage, or none
            has BatchNorm; or as `check`.
    """

    cuts_crops = True
    config_class = FADRMConfig
    config: FADRMConfig
    paper = Paper(
        title="FADRM: Fast and Accurate Data Residual Matching for Dataset Distillation",
        authors="Jiacheng Cui, Xinyue Bi, Yaxin Luo, Xiaohan Zhao, Jiacheng Liu, Zhiqiang Shen",
        year=2025,
        arxiv_id="2506.24125",
        bibtex="""@inproceedings{cui2025fadrm,
  title={FADRM: Fast and Accurate Data Residual Matching for Dataset Distillation},
  author={Cui, Jiacheng and Bi, Xinyue and Luo, Yaxin and Zhao, Xiaohan and Liu, Jiacheng and Shen, Zhiqiang},
  booktitle={Advances in Neural Information Processing Systems},
  year={2025}
}""",
    )

    def __init__(self, config: FADRMConfig, train: RealImages, **kwargs: Any) -> None:
        super().__init__(config, train, **kwargs)
        self.sizes = sizes_of(config, train.shape)
        self.check_networks(config, train, [teacher.model for teacher in self.teachers])
        self._taken: dict[int, Tensor] = {}  # rows of a class, in the order in which its images start from them

    @classmethod
    def check(cls, config: FADRMConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()) -> None:
        """As `Recovering.check`; and every class has enough real images to start from, an image room for its tiles."""
        if config.init == "real":
            check_factor(config.factor, train)
            takes = f"--ipc {config.ipc} with --factor {config.factor} starts from {config.per_class} images,"
            train.require([config.per_class] * train.num_classes, takes, "lower --ipc or --factor")
        super().check(config, train, accelerator, networks)

    @classmethod
    def looks_once(cls, config: FADRMConfig) -> bool:
        """As `Recovering.looks_once`: of real images too, the candidates are ranked once, and few begin a stage."""
        return super().looks_once(replace(config, init="noise"))

    @classmethod
    def check_networks(cls, config: FADRMConfig, train: Outline | RealImages, networks: Sequence[nn.Module]) -> None:
        """Raise a `ValueError` where one of the teachers cannot look at the images of a stage."""
        for size in {*sizes_of(config, train.shape)} - {tuple(train.shape[1:])}:
            for network in networks:
                _check_looks(network, (train.shape[0], *size))

    @classmethod
    def shortened(cls, config: FADRMConfig, train: Outline) -> tuple[FADRMConfig, float]:
        """As `Recovering.shortened`; what ranks real images is rehearsed apart."""
        shorter, times = super().shortened(config, train)
        return replace(shorter, init=config.init), times

    def rehearse(self, ledger: Ledger, held_out: RealImages, tested: RealImages) -> list[Stage]:
        """As `BlockDistiller.rehearse`: of noise, and the ranking of a class."""
        ranks, self.config = self.config.init == "real", replace(self.config, init="noise")
        stages = super().rehearse(ledger, held_out, tested)
        if not ranks:
            return stages
        self.teachers[0].logits(torch.empty((1, *self.train.shape), device=self.device))
        blocks, world = self.blocks(), self.accelerator.num_processes
        shares = [blocks[first::world] for first in range(min(world, len(blocks)))]
        # Each process ranks the classes of its blocks.
        ranked = sum(len(torch.cat([block.labels for block in share]).unique()) for share in shares)
        ledger.forget()
        before = ledger.flop
        self.taken(0)
        flop, words = (ledger.flop - before) * ranked, f"real images of {self.train.num_classes:,} classes"
        return [*stages, ledger.stage("ranking", flop, words, parts=len(blocks))]

    @classmethod
    def different_iterations(cls, config: FADRMConfig) -> int:
        """As `Recovering.different_iterations`, in each stage."""
        return config.num_stages * super().different_iterations(config)

    def shape_after(self, iteration: int) -> tuple[int, ...]:
        """As `BlockDistiller.shape_after`: those of the stage."""
        return self.train.shape[0], *self.sizes[self.config.stage_of(iteration - 1)]

    def initial(self, block: Block) -> Tensor:
        """The images that a block starts from, (B, C, height, width) of s_1, float32 on the device."""
        return resized(self.originals(block), self.sizes[self.config.stage_of(0)])

    def originals(self, block: Block) -> Tensor:
        """p of the images of a block, (B, C, H, W) float32 on the device: noise where they start from it."""
        if self.config.init == "noise":
            return super().initial(block)
        factor, numbers = self.config.factor, (block.rows % self.config.ipc).tolist()  # a class's images lie together
        own = zip(block.labels.tolist(), numbers, strict=True)
        rows = torch.stack([self.taken(label).split(factor**2)[number] for label, number in own], dim=1).flatten()
        images = mosaic(self.train.shape, factor, len(numbers), lambda crops, size: self.crops(rows[crops], size))
        return upload(self.preprocessing(images), self.device)

    def crops(self, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """A crop of each of the images `rows` (n,), or with one to an original the whole image, (n, C, *size) uint8."""
        if self.config.factor == 1:
            return upload(self.train.uint8(rows), self.device)
        boxes = boxes_of(self.train, rows, self.config.seed, 0)
        return take_crops(images_to_cut(self.train, rows, self.device), boxes, size)

    @torch.no_grad()
    def taken(self, label: int) -> Tensor:
        """Rows of a class in the order in which its images start from them, (M,) int64."""
        if label not in self._taken:
            teacher, target = self.teachers[0], self.targets[0][label]
            rows = self.train.class_rows(label)
            draw = generator(self.config.seed, "candidates", label)
            most = max(self.config.num_candidates, self.config.per_class)
            rows = rows[torch.randperm(len(rows), generator=draw)[:most]]
            answer, losses = in_precision(teacher.logits, self.accelerator), []
            height, width = (side // self.config.factor for side in self.train.shape[1:])
            for part in rows.split(AT_ONCE):
                logits = answer(centred(self.crops(part, (height, width)), self.preprocessing))
                losses.append(F.cross_entropy(logits, target.expand(len(part)), reduction="none"))
            self._taken[label] = rows[from_the_middle(torch.cat(losses).cpu())]
        return self._taken[label]

    def assemble(self, images: Tensor, labels: Tensor) -> DistilledSet:
        """As `Recovering.assemble`; of several teachers people call it FADRM+."""
        distilled = super().assemble(images, labels)
        if len(self.teachers) > 1:
            distilled.config["variant"] = "FADRM+"
        return distilled

    def merged(self, block: Block, x: Tensor, t: int) -> Tensor | None:
        """Where a stage begins, but for the first one: α of `x` and 1 − α of p, in its size."""
        stage = self.config.stage_of(t)
        if not t or stage == self.config.stage_of(t - 1):
            return None
        alpha, size = self.config.alpha, self.sizes[stage]
        return alpha * resized(x, size) + (1 - alpha) * resized(self.originals(block), size)


def _check_looks(network: nn.Module, shape: tuple[int, int, int]) -> None:
    parameter = next(network.parameters())
    images = parameter.new_zeros(2, *shape)
    try:
        with torch.no_grad():
            network(images)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        raise ValueError(
            f"{type(network).__name__} cannot look at images of {shape[1]}x{shape[2]} pixels, which --stage_sizes has; "
            "expected sides that every teacher takes, such as that of the set alone"
        ) from error
