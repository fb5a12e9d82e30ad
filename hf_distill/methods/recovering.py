"""What methods share that read images out of trained networks: a block of images, its views, its loss and its steps.

SRe2L (`sre2l`) defines them, and FADRM (`fadrm`) adds stages to them; their symbols are in `sre2l`. A change here
changes both.
"""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..augmentation.crops import CROP_DRAWS, MIN_SCALE, draw_crops, draw_roll, uniform
from ..config import HfArg, OptimizedConfig, PathArg, check_at_least
from ..data.images import Outline, RealImages
from ..data.precision import without_autocast
from ..data.preprocessing import Preprocessing
from ..distilled.distilled_set import DistilledSet
from ..distilled.labels import NetworkLabels
from ..engine.blocks import Block, BlockDistiller
from ..engine.method import Preparation
from ..networks.compiling import compiled, forward, in_precision
from ..networks.teachers import Teacher, check_alike
from ..rng import derive_seed, generator
from ..runs.checkpoints import pack_optimizers, unpack_optimizers
from ..runs.rehearsal import STEPS
from ..training.teachers import NamedTeachers, TeacherConfig, check_teachers, find_teachers
from .batchnorm import BATCH_NORM, BatchNormStatistics, batchnorm_layers, mean_norm, total_variation

logger = logging.getLogger(__name__)

WHITENED = (
    "recovered images are kept between black and white, which --normalization zca mixes up; use "
    "--normalization mean_std"
)
BETAS = (0.5, 0.9)
DROWNED = 20.0  # times the other part of L
EVEN = 5  # times the cross-entropy, which R_BN counts early on in runs whose images show both
EARLY = (0.1, 0.5)  # of the iterations: noise is gone by the first, and the class is there from the second on
CROP, ROLL = 1, 2  # paths of what is drawn for a block


def learning_rate(t: int, steps: int, lr: float) -> float:
    """η_t: half a cosine from `lr` at t = 0 towards 0 at t = `steps`."""
    return lr * (1 + math.cos(math.pi * t / steps)) / 2


def bounds(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Black and white as a network sees them, each (1, C, 1, 1).

    Raises:
        ValueError: Whitened images have no such bounds.
    """
    if preprocessing.zca is not None:
        raise ValueError(WHITENED)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (0 - mean) / std, (1 - mean) / std


def placing(start: int, length: int, size: int, flip: bool, offset: int, device: torch.device | str = "cpu") -> Tensor:
    """The matrix (size, size) that cuts `length` of `size` pixels out at `start`, resizes, mirrors and rolls them.

    Row i holds the weights of the pixels that become pixel i, by bilinear interpolation within the cut
    (`align_corners=False`, no smoothing).
    """
    place = (torch.arange(size, device=device, dtype=torch.float64) + 0.5) * (length / size) - 0.5
    place = place.clamp(0, length - 1)
    below = place.floor()
    above = (below + 1).clamp(max=length - 1)
    part = (place - below)[:, None]
    columns = torch.arange(size, device=device, dtype=torch.float64)
    matrix = (1 - part) * (columns == (below + start)[:, None]) + part * (columns == (above + start)[:, None])
    matrix = matrix.flip(0) if flip else matrix
    return matrix.roll(offset, 0).float()


def terms(
    look: Callable[[nn.Module, Tensor], Tensor],
    model: nn.Module,
    statistics: BatchNormStatistics | None,
    x: Tensor,
    labels: Tensor,
    config: "RecoveringConfig",
) -> dict[str, Tensor]:
    """The terms of L for views `x` (B, C, H, W), without their weights ("bn"), with them ("bn_weighted"), and "loss".

    All that is compiled: the views are made outside, for each has another box.

    Args:
        look: The forward pass of a network, with logits (B, K) float32.
        model: φ.
        statistics: Of its BatchNorm layers; None where it has none, and R_BN is 0.
        labels: (B,) logits of φ that are to be large.
        config: The weights.
    """
    values, weights = {"ce": F.cross_entropy(look(model, x), labels)}, config.weights
    values["bn"] = x.new_zeros(()) if statistics is None else statistics.loss(config.first_bn_multiplier)
    for name, measure in (("tv", total_variation), ("l2", mean_norm)):
        if weights.get(name):
            values[name] = measure(x)
    weighted = {f"{name}_weighted": weights[name] * values[name] for name in weights if name in values}
    return {**values, **weighted, "loss": values["ce"] + sum(weighted.values())}


def drowned(values: dict[str, float], config: "RecoveringConfig") -> str | None:
    """In words, that one of the two parts of L is lost beside the other, and what to do; None where both count.

    Beside a cross-entropy below 1 a large R_BN is what the end of every block looks like: the class is there by then.

    Args:
        values: Of `terms`.
        config: The weights.
    """
    ce, bn, weighted = values["ce"], values["bn"], values["bn_weighted"]
    if not weighted or DROWNED**-1 <= weighted / max(ce, 1.0) <= DROWNED:
        return None
    lost = "the class drowns in the statistics" if weighted > ce else "the statistics drown in the class"
    better = float(f"{EVEN * max(ce, 1.0) / bn:.0e}")
    return (
        f"{lost}: --r_bn {config.r_bn:g} makes {weighted:.3g} of R_BN {bn:.4g}, beside a cross-entropy of {ce:.3g}. "
        f"R_BN grows with a teacher's layers, channels and activations; with --r_bn {better:g} it would count {EVEN} "
        "times the cross-entropy"
    )


@dataclass
class RecoveringConfig(NamedTeachers, OptimizedConfig):
    """How images are recovered; the defaults are those of SRe2L's ImageNet-1K run."""

    teachers: list[str] | None = PathArg(
        default=None,
        help="Trained networks with BatchNorm: folders, repositories, or timm:<name> for pretrained weights; several "
        "take turns. Without it: one that is trained here.",
    )
    init: str = HfArg(default="noise", help="Start from noise, or from real images.")
    max_steps: int = HfArg(default=4000, help="Iterations of each block.")
    lr_img: float = HfArg(default=0.25, help="Largest learning rate of Adam on the images.")
    r_bn: float = HfArg(default=0.01, help="Weight of the BatchNorm statistics.")
    first_bn_multiplier: float = HfArg(default=10.0, help="Further weight of those of the first layer.")
    batch_classes: int = HfArg(default=100, help="Classes of a block, with one image of each.")
    jitter: int = HfArg(default=32, help="Pixels by which images are rolled at most, down and right.")
    symmetric_jitter: bool = HfArg(default=False, help="Roll up and left too.")
    random_crop: bool = HfArg(default=True, help="Look at a random box of the images in each iteration.")
    random_flip: float = HfArg(default=0.5, help="Probability of mirroring in an iteration.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("batch_classes", self.batch_classes, 1)
        for flag in ("lr_img", "r_bn", "first_bn_multiplier", "jitter"):
            check_at_least(flag, getattr(self, flag), 0)
        self._check_share("random_flip")

    def _check_share(self, *flags: str) -> None:
        for flag in flags:
            if not 0 <= getattr(self, flag) <= 1:
                raise ValueError(f"--{flag} is {getattr(self, flag)}; expected 0 to 1")

    @property
    def weights(self) -> dict[str, float]:
        """Those of the terms of L beside the cross-entropy."""
        return {"bn": self.r_bn}


def have_batchnorm(networks: Sequence[nn.Module]) -> list[bool]:
    """Which of the networks have BatchNorm; raises a `ValueError` where none has."""
    found = [any(isinstance(layer, BATCH_NORM) for layer in network.modules()) for network in networks]
    if networks and not any(found):
        batchnorm_layers(networks[0])
    return found


class Recovering(BlockDistiller):
    """Images that start from noise or real ones, and become what teachers recognise, who take turns.

    Args:
        config: A `RecoveringConfig`.
        train: The images to distil.
        teachers: Networks that know their classes, and perhaps others; one at least has BatchNorm. The first one
            labels.
        kwargs: See `Method`.

    Raises:
        ValueError: A teacher lacks a class of `train` or takes other images, or none has BatchNorm; or as `check`.
    """

    learns_from: ClassVar[tuple[type, ...]] = (TeacherConfig,)
    trading = ("batch_classes",)
    config: RecoveringConfig

    def __init__(
        self, config: RecoveringConfig, train: RealImages, *, teachers: Sequence[Teacher], **kwargs: Any
    ) -> None:
        super().__init__(config, train, **kwargs)
        if not teachers:
            raise ValueError(f"{type(self).__name__} without a teacher has nothing to read images out of; give one")
        self.teachers = [teacher.to(self.device) for teacher in teachers]
        for teacher in self.teachers:
            teacher.check_input(train)
        self.rows = [teacher.rows_of(train.class_names) for teacher in self.teachers]
        self.targets = [torch.tensor(rows, device=self.device) for rows in self.rows]
        models = [teacher.model for teacher in self.teachers]
        self.statistics = [
            BatchNormStatistics(model) if has else None
            for model, has in zip(models, have_batchnorm(models), strict=True)
        ]
        self.preprocessing = self.teachers[0].preprocessing
        check_alike(self.teachers)
        self.low, self.high = (bound.to(self.device) for bound in bounds(self.preprocessing))
        self._answer = in_precision(forward, self.accelerator)
        self._terms = compiled(terms, self.accelerator)
        self._warned = False  # that one part of L drowns the other

    @classmethod
    def check(
        cls, config: RecoveringConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()
    ) -> None:
        """As `Method.check`; images have a black and a white, which whitened ones do not, and a teacher BatchNorm."""
        super().check(config, train, accelerator, networks)
        if train.whitened:
            raise ValueError(WHITENED)
        teachers = check_teachers(config, train, accelerator, networks)
        have_batchnorm(teachers)
        cls.check_networks(config, train, teachers)

    @classmethod
    def check_networks(
        cls, config: RecoveringConfig, train: Outline | RealImages, networks: Sequence[nn.Module]
    ) -> None:
        """Raise a `ValueError` where one of the teachers cannot look at the images of all iterations."""

    @classmethod
    def learn(cls, having: Preparation) -> dict[str, Any]:
        """The teachers that are named, or else one of these settings, trained unless it is there."""
        (settings,) = having.networks
        config = having.config
        options = {"class_names": config.teacher_class_names, **having.options}
        return {"teachers": find_teachers(config.teachers, having.train, having.test, settings, **options)}

    @classmethod
    def shortened(cls, config: RecoveringConfig, train: Outline) -> tuple[RecoveringConfig, float]:
        """As `Method.shortened`: an iteration with each teacher, from noise."""
        steps = min(config.max_steps, cls.different_iterations(config))
        return replace(config, init="noise", max_steps=steps), config.max_steps / max(1, steps)

    @classmethod
    def different_iterations(cls, config: RecoveringConfig) -> int:
        """Iterations after which what one holds and computes repeats itself: two at least, for Adam's moments."""
        return max(STEPS, len(config.teachers or []))

    def learned_from(self) -> Sequence[Teacher]:
        """The teachers."""
        return self.teachers

    @classmethod
    def looks_once(cls, config: RecoveringConfig) -> bool:
        """True where a run and its evaluation look at few training images, or once at each: to choose coresets."""
        return config.init == "noise" and config.teachers is not None and not config.eval_full_data

    @classmethod
    def decodes(cls, config: RecoveringConfig) -> bool:
        """As `Method.decodes`."""
        return not cls.looks_once(config)

    def blocks(self) -> list[Block]:
        """Image number i of `batch_classes` consecutive classes: for each i, block after block of classes."""
        count, ipc = self.train.num_classes, self.config.ipc
        blocks = []
        for image in range(ipc):
            for labels in torch.arange(count).split(self.config.batch_classes):
                blocks.append(Block(len(blocks), labels * ipc + image, labels))
        return blocks

    def identity(self) -> dict[str, Any]:
        """Beside the data, the weights of the teachers, and which of their logits are those of the data's classes."""
        teachers, classes = [teacher.digest for teacher in self.teachers], [each.class_names for each in self.teachers]
        parts = [rows != list(range(len(names))) for rows, names in zip(self.rows, classes, strict=True)]
        return {**super().identity(), "teachers": teachers, **({"teacher_rows": self.rows} if any(parts) else {})}

    def initial(self, block: Block) -> Tensor:
        """The images that a block starts from, (B, C, H, W) float32 on the device."""
        seed = derive_seed(self.config.seed, "init", block.number)
        if self.config.init == "noise":
            return torch.randn((len(block.labels), *self.train.shape), generator=generator(seed)).to(self.device)
        random = [generator(seed, int(label)) for label in block.labels]
        rows = [self.train.class_rows(int(label)) for label in block.labels]
        chosen = [part[torch.randint(len(part), (1,), generator=draw)] for part, draw in zip(rows, random, strict=True)]
        return self.preprocessing(self.train.uint8(torch.cat(chosen))).to(self.device)

    def smallest_box(self, t: int) -> float:
        """The smallest area of a box in iteration `t`, as a share of the image."""
        return MIN_SCALE

    @without_autocast
    def view(self, x: Tensor, t: int, crops: Tensor, rolls: Tensor) -> Tensor:
        """x' of iteration `t`, (B, C, H, W); `crops` (T, ...) and `rolls` (T, 2) are numbers in [0, 1) on the CPU."""
        config, (height, width) = self.config, x.shape[2:]
        top, left, tall, wide, flip = 0, 0, height, width, bool(crops[t, CROP_DRAWS - 1] < config.random_flip)
        if config.random_crop:
            scale = (self.smallest_box(t), 1.0)
            drawn = draw_crops(crops[t : t + 1], (height, width), scale, flip=config.random_flip)
            top, left, tall, wide = drawn.boxes[0].tolist()
        down, right = draw_roll(rolls[t : t + 1], config.jitter, config.symmetric_jitter)[0].tolist()
        if (top, left, tall, wide, flip, down, right) == (0, 0, height, width, False, 0, 0):
            return x
        rows = placing(top, tall, height, False, down, x.device)
        columns = placing(left, wide, width, flip, right, x.device)
        return rows @ x @ columns.T

    def losses(self, x: Tensor, labels: Tensor, t: int) -> dict[str, Tensor]:
        """The `terms` of L with the teacher of iteration `t`, which looks in the launcher's precision."""
        turn = t % len(self.teachers)
        model, targets = self.teachers[turn].model, self.targets[turn][labels]
        with self.statistics[turn] or nullcontext() as statistics:
            return self._terms(self._answer, model, statistics, x, targets, self.config)

    @property
    def iterations(self) -> int:
        """T."""
        return self.config.max_steps

    def make(self, block: Block, log: Callable[[int, dict[str, float]], None]) -> Tensor:
        """Recover a block: its images after T iterations, (B, C, H, W) uint8."""
        config, device = self.config, self.device
        tensors, start = self.kept(block)
        x, optimizer = self._optimized(tensors["x"].to(device) if tensors else self.initial(block))
        unpack_optimizers([optimizer], tensors)
        labels = block.labels.to(device)
        iterations, seed = torch.arange(config.max_steps), derive_seed(config.seed, "views", block.number)
        crops = uniform(seed, (CROP,), iterations, CROP_DRAWS)
        rolls = uniform(seed, (ROLL,), iterations, 2)
        self.show(block, start, x)
        for t in range(start, config.max_steps):
            if (other := self.merged(block, x.detach(), t)) is not None:
                x, optimizer = self._optimized(other)
            optimizer.param_groups[0]["lr"] = learning_rate(t, config.max_steps, config.lr_img)
            losses = self.losses(self.view(x, t, crops, rolls), labels, t)
            (gradient,) = torch.autograd.grad(losses["loss"], x)
            x.grad.copy_(gradient)
            optimizer.step()
            with torch.no_grad():
                x.clamp_(self.low, self.high)
            if (t + 1) % config.logging_steps == 0 or t + 1 == config.max_steps:
                values = {name: value.item() for name, value in losses.items()}
                self.check_finite(values, block, t + 1, f"lower --lr_img {config.lr_img:g} or --r_bn {config.r_bn:g}")
                log(t + 1, values)
                self._look(values, t + 1)
            self.show(block, t + 1, x)
            self.keep(block, t + 1, partial(_state, x, optimizer))
        return self.finished(x.detach())

    def merged(self, block: Block, x: Tensor, t: int) -> Tensor | None:
        """What iteration `t` begins with in place of `x`, which the last one left: its optimizer is new then. None."""
        return None

    def _optimized(self, x: Tensor) -> tuple[Tensor, torch.optim.Optimizer]:
        """The leaf that is optimised, and its optimizer."""
        x.requires_grad_(True)
        x.grad = torch.zeros_like(x)  # gradients come in the layout of the network's; a fused Adam wants that of x
        return x, torch.optim.Adam([x], lr=self.config.lr_img, betas=BETAS, fused=self.device.type == "cuda")

    def _look(self, values: dict[str, float], iteration: int) -> None:
        """Warn, once in a run, where one part of L drowns the other while the images take shape."""
        first, last = (share * self.config.max_steps for share in EARLY)
        warning = drowned(values, self.config) if not self._warned and first <= iteration <= last else None
        if warning is not None:
            self._warned = True
            logger.warning("at iteration %s of %s %s", iteration, self.config.max_steps, warning)

    def finished(self, x: Tensor) -> Tensor:
        """The bytes of recovered images (B, C, H, W)."""
        return self.preprocessing.to_uint8(x)

    def assemble(self, images: Tensor, labels: Tensor) -> DistilledSet:
        """The set with the first teacher, narrowed to its classes, which labels its views."""
        teacher = self.teachers[self.labelled_by].narrowed(self.train.class_names)
        return DistilledSet(
            images,
            labels,
            self.train.class_names,
            self.preprocessing,
            teacher=NetworkLabels(teacher),
            config={"student": teacher.spec.to_dict(), "teachers": [self._named(each) for each in self.teachers]},
        )

    @staticmethod
    def _named(teacher: Teacher) -> dict[str, str | None]:
        origin = teacher.origin
        where = {} if origin is None else {"repo_id": origin.repo_id, "revision": origin.revision}
        return {"network": teacher.spec.name, "digest": teacher.digest, **where}


def _state(x: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a block goes on from."""
    return {"x": x.detach(), **pack_optimizers([optimizer])}
