"""SRe2L and CDA: images that a trained network recognises, and whose BatchNorm statistics are those it remembers.

SRe2L: Yin, Xing and Shen, NeurIPS 2023, arXiv:2306.13092. CDA: Yin and Shen, TMLR 2024, arXiv:2311.18838.

    x'  = roll(flip(resize(crop(x))))                       one box, one coin and one offset for the whole block
    L   = CE(φ(x'), y) + α_BN R_BN(x') + α_tv R_tv(x') + α_l2 R_l2(x')                          (`statistics`)
    x  <- clamp(Adam(x, ∂L/∂x)),   η_t = η ½ (1 + cos(π t / T))

    symbol   name             meaning
    φ        teacher          network with running statistics, frozen
    B        batch_classes    classes of a block; a block has one image of each of so many consecutive classes
    T        max_steps        iterations of a block
    η        lr_img           of Adam(0.5, 0.9)
    α_BN     r_bn             weight of the statistics; the first layer counts `first_bn_multiplier` times
    -        jitter           pixels by which the images are rolled at most
    -        curriculum       CDA: how the smallest box falls from the whole image to 0.08 of it (`crops.min_scale`)

A block starts from N(0, 1) and ends with its last iterate. CDA is SRe2L with a curriculum of crops.

CE is over all classes of the teacher, also where it has more than the data (an ImageNet-1K network for ten of its
classes): a softmax over the ten alone is content with what is the likeliest of them, though it be seen as another one
of the thousand. The labels of the set are those of the teacher narrowed to the data's classes.

Differs from the authors' code:
- A block is always on one device: they split it, and the statistics of one part of it win.
- Images are kept as they are, rounded to bytes; theirs are cut off to bytes and saved as JPEG files of quality 75
  (`--compat vila` does that to the bytes).
- Nothing depends on processes or on the order of blocks; several teachers can take turns (`--teachers`).
- Crop, resize, flip and roll are two matrices, for rows and for columns: the same pixels as theirs, and a gradient that
  is the same on every run.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ..augmentation.crops import CROP_DRAWS, draw_crops, draw_roll, min_scale, uniform
from ..config import HfArg, OptimizedConfig, PathArg, check_at_least, check_choice
from ..data.images import Outline, RealImages
from ..data.precision import without_autocast
from ..data.preprocessing import Preprocessing
from ..distilled.distilled_set import DistilledSet
from ..distilled.labels import NetworkLabels
from ..engine.blocks import Block, BlockDistiller
from ..engine.method import Preparation
from ..hub.cards import Paper
from ..networks.compiling import compiled, forward, in_precision
from ..networks.teachers import Teacher
from ..rng import derive_seed, generator
from ..runs.checkpoints import pack_optimizers, unpack_optimizers
from ..training.teachers import NamedTeachers, TeacherConfig, check_teachers, find_teachers
from .batchnorm import BatchNormStatistics, batchnorm_layers, mean_norm, total_variation

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
    statistics: BatchNormStatistics,
    x: Tensor,
    labels: Tensor,
    config: "SRe2LConfig",
) -> dict[str, Tensor]:
    """The terms of L for views `x` (B, C, H, W), without their weights ("bn"), with them ("bn_weighted"), and "loss".

    All that is compiled: the views are made outside, for each has another box.

    Args:
        look: The forward pass of a network, with logits (B, K) float32.
        model: φ.
        statistics: Of its BatchNorm layers.
        labels: (B,) logits of φ that are to be large.
        config: The weights.
    """
    values = {"ce": F.cross_entropy(look(model, x), labels), "bn": statistics.loss(config.first_bn_multiplier)}
    weights = {"bn": config.r_bn, "tv": config.r_tv, "l2": config.r_l2}
    for name, measure in (("tv", total_variation), ("l2", mean_norm)):
        if weights[name]:
            values[name] = measure(x)
    weighted = {f"{name}_weighted": weights[name] * values[name] for name in weights if name in values}
    return {**values, **weighted, "loss": values["ce"] + sum(weighted.values())}


def drowned(values: dict[str, float], config: "SRe2LConfig") -> str | None:
    """In words, that one of the two parts of L is lost beside the other, and what to do; None where both count.

    Beside a cross-entropy below 1 a large R_BN is what the end of every block looks like: the class is there by then.

    Args:
        values: Of `terms`.
        config: The weights.
    """
    ce, bn, weighted = values["ce"], values["bn"], values["bn_weighted"]
    if not config.r_bn or DROWNED**-1 <= weighted / max(ce, 1.0) <= DROWNED:
        return None
    lost = "the class drowns in the statistics" if weighted > ce else "the statistics drown in the class"
    better = float(f"{EVEN * max(ce, 1.0) / bn:.0e}")
    return (
        f"{lost}: --r_bn {config.r_bn:g} makes {weighted:.3g} of R_BN {bn:.4g}, beside a cross-entropy of {ce:.3g}. "
        f"R_BN grows with a teacher's layers, channels and activations; with --r_bn {better:g} it would count {EVEN} "
        "times the cross-entropy"
    )


@dataclass
class SRe2LConfig(NamedTeachers, OptimizedConfig):
    """Hyper-parameters of SRe2L; the defaults are those of its ImageNet-1K run.

    Example:
        >>> hd.SRe2LConfig(ipc=10).max_steps
        4000
    """

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
    r_tv: float = HfArg(default=0.0, help="Weight of the total variation.")
    r_l2: float = HfArg(default=0.0, help="Weight of the norm of the images.")
    batch_classes: int = HfArg(default=100, help="Classes of a block, with one image of each.")
    jitter: int = HfArg(default=32, help="Pixels by which images are rolled at most, down and right.")
    symmetric_jitter: bool = HfArg(default=False, help="Roll up and left too.")
    random_crop: bool = HfArg(default=True, help="Look at a random box of the images in each iteration.")
    random_flip: float = HfArg(default=0.5, help="Probability of mirroring in an iteration.")
    curriculum: str = HfArg(default="none", help="Smallest box: none (0.08), step, linear or cosine.")
    milestone: float = HfArg(default=1.0, help="Share of the iterations in which the curriculum runs.")
    compat: str = HfArg(default="none", help="none, or vila: bytes cut off, and through a JPEG file of quality 75.")
    eval_protocol: str = HfArg(default="sre2l", help="How students are trained on the set, such as sre2l, cda or rded.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("curriculum", self.curriculum, ("none", "step", "linear", "cosine"))
        check_choice("compat", self.compat, ("none", "vila"))
        check_at_least("batch_classes", self.batch_classes, 1)
        for flag in ("lr_img", "r_bn", "first_bn_multiplier", "r_tv", "r_l2", "jitter", "random_flip", "milestone"):
            check_at_least(flag, getattr(self, flag), 0)
        for flag in ("random_flip", "milestone"):
            if getattr(self, flag) > 1:
                raise ValueError(f"--{flag} is {getattr(self, flag)}; expected 0 to 1")


@dataclass
class CDAConfig(SRe2LConfig):
    """Hyper-parameters of CDA; the defaults are those of its ImageNet-1K run.

    Example:
        >>> hd.CDAConfig().curriculum, hd.SRe2LConfig().curriculum
        ('cosine', 'none')
    """

    curriculum: str = HfArg(default="cosine", help="Smallest box: none (0.08), step, linear or cosine.")
    eval_protocol: str = HfArg(default="cda", help="How students are trained on the set, such as sre2l, cda or rded.")


class SRe2L(BlockDistiller):
    """Squeeze (the teacher), recover (here), relabel (the teacher again, view by view).

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "teacher_epochs": 1, "batch_train": 20}
        >>> distilled = hd.SRe2L.distill(train, ipc=1, max_steps=2, jitter=1, disable_tqdm=True, **net)
        >>> distilled.pixel_values.dtype, distilled.teacher.kind
        (torch.uint8, 'teacher')

    Args:
        config: A `SRe2LConfig`.
        train: The images to distil.
        teachers: Networks with BatchNorm that know their classes, and perhaps others; the first one labels.
        kwargs: See `Method`.

    Raises:
        ValueError: A teacher lacks a class of `train`, takes other images, or has no BatchNorm; or as `check`.
    """

    learns_from = (TeacherConfig,)
    config_class = SRe2LConfig
    config: SRe2LConfig
    paper = Paper(
        title="Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective",
        authors="Zeyuan Yin, Eric Xing, Zhiqiang Shen",
        year=2023,
        arxiv_id="2306.13092",
        bibtex="""@inproceedings{yin2023squeeze,
  title={Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective},
  author={Yin, Zeyuan and Xing, Eric and Shen, Zhiqiang},
  booktitle={Advances in Neural Information Processing Systems},
  year={2023}
}""",
    )

    def __init__(self, config: SRe2LConfig, train: RealImages, *, teachers: Sequence[Teacher], **kwargs: Any) -> None:
        super().__init__(config, train, **kwargs)
        if not teachers:
            raise ValueError(f"{type(self).__name__} without a teacher has nothing to read images out of; give one")
        self.teachers = [teacher.to(self.device) for teacher in teachers]
        for teacher in self.teachers:
            teacher.check_input(train)
        self.rows = [teacher.rows_of(train.class_names) for teacher in self.teachers]
        self.targets = [torch.tensor(rows, device=self.device) for rows in self.rows]
        self.statistics = [BatchNormStatistics(teacher.model) for teacher in self.teachers]
        self.preprocessing = self.teachers[0].preprocessing
        self.low, self.high = (bound.to(self.device) for bound in bounds(self.preprocessing))
        self._answer = in_precision(forward, self.accelerator)
        self._terms = compiled(terms, self.accelerator)
        self._warned = False  # that one part of L drowns the other

    @classmethod
    def check(cls, config: SRe2LConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()) -> None:
        """As `Method.check`; images have a black and a white, which whitened ones do not, and a teacher BatchNorm."""
        super().check(config, train, accelerator, networks)
        if train.whitened:
            raise ValueError(WHITENED)
        for network in check_teachers(config, train, accelerator, networks):
            batchnorm_layers(network)

    @classmethod
    def learn(cls, having: Preparation) -> dict[str, Any]:
        """The teachers that are named, or else one of these settings, trained unless it is there."""
        (settings,) = having.networks
        config = having.config
        options = {"class_names": config.teacher_class_names, **having.options}
        return {"teachers": find_teachers(config.teachers, having.train, having.test, settings, **options)}

    def learned_from(self) -> Sequence[Teacher]:
        """The teachers."""
        return self.teachers

    @classmethod
    def looks_once(cls, config: SRe2LConfig) -> bool:
        """True where a run and its evaluation look at few training images, or once at each: to choose coresets."""
        return config.init == "noise" and config.teachers is not None and not config.eval_full_data

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

    @without_autocast
    def view(self, x: Tensor, t: int, crops: Tensor, rolls: Tensor) -> Tensor:
        """x' of iteration `t`, (B, C, H, W); `crops` (T, ...) and `rolls` (T, 2) are numbers in [0, 1) on the CPU."""
        config, (height, width) = self.config, x.shape[2:]
        top, left, tall, wide, flip = 0, 0, height, width, bool(crops[t, CROP_DRAWS - 1] < config.random_flip)
        if config.random_crop:
            smallest = min_scale(t, config.milestone * config.max_steps, config.curriculum)
            drawn = draw_crops(crops[t : t + 1], (height, width), (smallest, 1.0), flip=config.random_flip)
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
        with self.statistics[turn] as statistics:
            return self._terms(self._answer, model, statistics, x, targets, self.config)

    @property
    def iterations(self) -> int:
        """T."""
        return self.config.max_steps

    def make(self, block: Block, log: Callable[[int, dict[str, float]], None]) -> Tensor:
        """Recover a block: its images after T iterations, (B, C, H, W) uint8."""
        config, device = self.config, self.device
        tensors, start = self.kept(block)
        x = (tensors["x"].to(device) if tensors else self.initial(block)).requires_grad_(True)
        x.grad = torch.zeros_like(x)  # gradients come in the layout of the network's; a fused Adam wants that of x
        labels = block.labels.to(device)
        optimizer = torch.optim.Adam([x], lr=config.lr_img, betas=BETAS, fused=device.type == "cuda")
        unpack_optimizers([optimizer], tensors)
        iterations, seed = torch.arange(config.max_steps), derive_seed(config.seed, "views", block.number)
        crops = uniform(seed, (CROP,), iterations, CROP_DRAWS)
        rolls = uniform(seed, (ROLL,), iterations, 2)
        for t in range(start, config.max_steps):
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
            self.keep(block, t + 1, lambda: {"x": x.detach(), **pack_optimizers([optimizer])})
        return self.finished(x.detach())

    def _look(self, values: dict[str, float], iteration: int) -> None:
        """Warn, once in a run, where one part of L drowns the other while the images take shape."""
        first, last = (share * self.config.max_steps for share in EARLY)
        warning = drowned(values, self.config) if not self._warned and first <= iteration <= last else None
        if warning is not None:
            self._warned = True
            logger.warning("at iteration %s of %s %s", iteration, self.config.max_steps, warning)

    def finished(self, x: Tensor) -> Tensor:
        """The bytes of recovered images (B, C, H, W)."""
        if self.config.compat == "none":
            return self.preprocessing.to_uint8(x)
        cut_off = (self.preprocessing.inverse(x).clamp(0, 1) * 255).to(torch.uint8).cpu()
        return torch.stack([_through_jpeg(image) for image in cut_off])

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


class CDA(SRe2L):
    """SRe2L whose crops begin as the whole image and get smaller.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "teacher_epochs": 1, "batch_train": 20}
        >>> hd.CDA.distill(train, ipc=1, max_steps=2, jitter=1, disable_tqdm=True, **net).config["method"]
        'cda'
    """

    config_class = CDAConfig
    config: CDAConfig
    paper = Paper(
        title="Dataset Distillation via Curriculum Data Synthesis in Large Data Era",
        authors="Zeyuan Yin, Zhiqiang Shen",
        year=2024,
        arxiv_id="2311.18838",
        bibtex="""@article{yin2024cda,
  title={Dataset Distillation via Curriculum Data Synthesis in Large Data Era},
  author={Yin, Zeyuan and Shen, Zhiqiang},
  journal={Transactions on Machine Learning Research},
  year={2024}
}""",
    )


def _through_jpeg(image: Tensor) -> Tensor:
    """A picture (C, H, W) uint8 as a JPEG file of quality 75 keeps it."""
    array = image.permute(1, 2, 0).numpy()
    buffer = BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, "JPEG", quality=75)
    read = np.array(Image.open(buffer))
    return torch.from_numpy(read.reshape(array.shape)).permute(2, 0, 1)
