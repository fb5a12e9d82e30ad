"""LGM and CLP-DD: images for linear heads on a frozen backbone.

LGM: Cazenavette, Torralba and Sitzmann, *Dataset Distillation for Pre-Trained Self-Supervised Vision Models*, NeurIPS
2025, arXiv:2511.16674. CLP-DD: Peng et al., *Closed-Form Linear-Probe Dataset Distillation for Pre-trained Vision
Models*, 2026, arXiv:2605.07194.

    x   = sigmoid(2 M Σ_l up(level_l))                            an image: a pyramid of levels, in decorrelated colours
    Z   = φ(A(x)),  P = softmax(Z Wᵀ + b),  W ~ N(0, 0.01²), b = 0                        a new head in each iteration
    g   = ∂CE/∂(W, b) = ((P − Y)ᵀ Z / n,  (P − Y)ᵀ 1 / n)                              of the head, in closed form
    L   = 1 − cos(g_real, g_syn)                                                                                  (LGM)

    W_s = Yᵀ (Z Zᵀ + λ I)⁻¹ Z                                         the ridge head of the synthetic images, n x n
    L   = CE(softmax(Z_real W_sᵀ / τ), y_real)                                                                (CLP-DD)

    symbol    name                      meaning
    φ         backbone                  frozen; D features
    M         COLOURS                   a square root of the covariance of colours, by its largest column
    level_l   pyramids                  of sides 1, 2, 4 and so on; the next one joins every `level_steps` iterations
    A         augment                   flip, resized crop, noise (`augmentation.noisy_crops`)
    n         augmentations             copies of each synthetic image in a batch, times images
    -         real_views, batch_real    the features of so many crops of each real image are computed once
    λ, τ      ridge, temperature        λ is `ridge` times the mean squared length of the features

g needs no derivative of a head: it is a function of Z. So nothing is differentiated twice, no real image is looked at
again, and synthetic ones can be looked at in parts (`micro_batch_size`): first Z, then ∂L/∂Z, then each part back
through φ.

Differs from the authors' code of LGM:
- Real features come from crops that are drawn once; theirs are drawn anew, from images that are cropped to 256 pixels.
- A real batch is drawn with replacement; theirs goes through all images in an order. Its size is theirs by default,
  K·IPC·A, and was set by what looking at images costs. Features that are kept cost next to nothing in a step: more of
  them (`batch_real`) take noise out of g_real.
- Batches of several processes are averaged as gradients of the images, each of a draw of its own.
- The best step is selected on held-out images unless `--select last`, which is theirs.

Of CLP-DD only the abstract was there to build from: λ relative to the features, τ, the batch, the steps and the rate
are this library's, and so is that its images are pyramids too. λ is large on purpose: with a thousandth of it the head
lives on small differences between images, which heads that are trained by steps do not find (53 % for 93 % of held-out
digits, with τ 0.07; a tenth gives 75 %, and τ 0.2 in place of it 89 %).
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..augmentation.noisy_crops import NoisyCrops
from ..config import HfArg, LoopConfig, PathArg, check_at_least
from ..data.feed import Pool
from ..data.images import Outline, RealImages
from ..data.preprocessing import Preprocessing
from ..data.resampling import resized
from ..data.upload import upload
from ..distilled.distilled_set import DistilledSet
from ..engine.loop import Distiller
from ..engine.method import Preparation
from ..hub.cards import Paper
from ..networks.architectures import StudentSpec
from ..networks.backbones import Backbone
from ..networks.compiling import in_precision, refuse_fp16
from ..networks.probes import ProbeSpec
from ..networks.teachers import Teacher
from ..rng import derive_seed, generator
from ..runs.rehearsal import Ledger, Stage
from ..training.features import real_features
from ..training.teachers import TeacherConfig, check_teacher, find_teachers, teacher_folder, untrained_teachers

logger = logging.getLogger(__name__)

# The square root of the covariance of ImageNet's colours that feature visualisations use, a row for each channel.
COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03))
HEAD_STD = 0.01
REAL = 1024  # features in a step of CLP-DD
NOISIEST = 10.0  # mean or deviation
# What timm calls the architecture of backbones that presets name, and the side of its images; None for any other.
LOOKS_LIKE = {
    "facebook/dinov2-base": ("vit_base_patch14_dinov2", 224),
    "openai/clip-vit-base-patch16": ("vit_base_patch16_clip_224", 224),
    None: ("vit_base_patch16_224", 224),
}
GAIN = 2.0  # of what the sigmoid is given


# Heads


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Y (n, K) float32 of classes (n,)."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()


def head_gradient(z: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """g of a linear head without a bias: its gradient for W, then for b, flattened, (K D + K,); differentiable in `z`.

    Args:
        z: Features Z (n, D).
        y: Y (n, K).
        weight: W (K, D).
    """
    error = ((z @ weight.T).softmax(1) - y) / len(z)  # (n, K)
    return torch.cat([(error.T @ z).flatten(), error.sum(0)])


def ridge_head(z: Tensor, y: Tensor, ridge: float | Tensor) -> Tensor:
    """W_s (K, D), the head that ridge regression without an intercept gives, by its dual; differentiable in `z`.

    It is NaN where `ridge` is too small for the precision of `z`.

    Args:
        z: Features Z (n, D).
        y: Y (n, K).
        ridge: λ, above 0.
    """
    kernel = z @ z.T + ridge * torch.eye(len(z), dtype=z.dtype, device=z.device)
    root, failed = torch.linalg.cholesky_ex(kernel)
    root = torch.where(failed == 0, root, math.nan)  # what is left of it there looks like a head
    return torch.cholesky_solve(y, root).T @ z


# Images


def sides(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of each level of a pyramid: 1, 2, 4 and so on, up to `size`."""
    side, levels = 1, [(1, 1)]
    while levels[-1] != size:
        side *= 2
        levels.append((min(side, size[0]), min(side, size[1])))
    return levels


class Pyramids(nn.Module):
    """Images as sums of levels, of which the first `active` ones count.

    Args:
        count: N, images.
        shape: (C, H, W) of each.
        seed: All levels come from N(0, 1).

    Attributes:
        levels: (N, C, h, w) each; those that do not count yet wait as they were drawn.
    """

    def __init__(self, count: int, shape: tuple[int, int, int], seed: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.size = (height, width)
        self.levels = nn.ParameterList(
            nn.Parameter(torch.randn(count, channels, *side, generator=generator(seed, "level", number)))
            for number, side in enumerate(sides(self.size))
        )
        colours = torch.tensor(COLOURS) if channels == 3 else torch.eye(channels)
        self.register_buffer("colours", colours / torch.linalg.vector_norm(colours, dim=0).max(), persistent=False)
        self.register_buffer("active", torch.tensor(1))
        self.colours: Tensor
        self.active: Tensor

    @torch.no_grad()
    def grow(self, active: int) -> None:
        """Let `active` levels count, one more than before: the old ones are scaled by old / new, and the new one by
        1 / new, so that their sum keeps its scale."""
        for level in self.levels[: active - 1]:
            level.mul_((active - 1) / active)
        self.levels[active - 1].div_(active)
        self.active.fill_(active)

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """The images (n, C, H, W) in [0, 1] of some levels (n, C, h, w); differentiable."""
        total = torch.stack([resized(level, self.size) for level in levels]).sum(0)
        return (GAIN * torch.einsum("ij,njhw->nihw", self.colours, total)).sigmoid()


# Gradients of images that are looked at in parts

Look = Callable[[Tensor, Tensor], Tensor]  # images (n, C, H, W) and the numbers of the looks (n,) -> features (n, D)
Objective = Callable[[Tensor], Tensor]  # all features (n, D) -> a loss


def parts_of(count: int, copies: int, most: int) -> list[tuple[range, slice]]:
    """Parts of `copies` of `count` images, of at most `most` of them: whole copies, or images of one copy."""
    if most >= count:
        step = most // count
        return [(range(copies)[first : first + step], slice(0, count)) for first in range(0, copies, step)]
    starts = range(0, count, most)
    return [
        (range(copy, copy + 1), slice(first, min(first + most, count))) for copy in range(copies) for first in starts
    ]


def image_gradient(look: Look, images: Tensor, copies: int, most: int, objective: Objective) -> tuple[Tensor, Tensor]:
    """The loss of all features of several copies of images, and its gradient for the images (N, C, H, W).

    Where that is more than one part, each is looked at twice: for its features, and for what the images get back of the
    gradient of these. So the memory is that of one part, and the result is the same to rounding.

    Args:
        look: The features of a part.
        images: (N, C, H, W).
        copies: How often each is looked at; look a·N + i is copy a of image i.
        most: Looks in memory at once.
        objective: Differentiable; its features are those of all looks, in order.
    """
    count, parts = len(images), parts_of(len(images), copies, most)

    def seen(part: tuple[range, slice], own: Tensor) -> Tensor:
        of, some = part
        numbers = torch.arange(some.start, some.stop, device=images.device)
        numbers = (torch.arange(of.start, of.stop, device=images.device)[:, None] * count + numbers).flatten()
        return look(own.expand(len(of), *own.shape).flatten(0, 1), numbers)

    images = images.detach()
    if len(parts) == 1:
        own = images.requires_grad_()
        loss = objective(seen(parts[0], own))
        (gradient,) = torch.autograd.grad(loss, own)
        return loss.detach(), gradient
    with torch.no_grad():
        z = torch.cat([seen(part, images[part[1]]) for part in parts])
    z.requires_grad_()
    loss = objective(z)
    (upward,) = torch.autograd.grad(loss, z)
    gradient = torch.zeros_like(images)
    for part, above in zip(
        parts, upward.split([len(of) * (some.stop - some.start) for of, some in parts]), strict=True
    ):
        own = images[part[1]].requires_grad_()
        (back,) = torch.autograd.grad(seen(part, own), own, above)
        gradient[part[1]] += back
    return loss.detach(), gradient


@dataclass
class HeadConfig(LoopConfig):
    """Hyper-parameters that LGM and CLP-DD share."""

    backbone: str | None = PathArg(
        default=None,
        help="Frozen network whose features heads learn from: a folder or a repository of timm, transformers or "
        "open_clip, or of a teacher. Without it: a teacher that is trained here.",
    )
    backbone_revision: str | None = HfArg(default=None, help="Branch, tag or commit of --backbone's repository.")
    init: str = HfArg(default="noise", help="Pyramids start from noise.")
    lr_img: float = HfArg(default=2e-3, help="Learning rate of Adam on all levels of the pyramids.")
    level_steps: int = HfArg(
        default=200, help="Iterations after which the next level of the pyramids joins: sides 1, 2, 4 and so on."
    )
    augmentations: int = HfArg(default=10, help="Copies of each synthetic image in a step, each seen in its own way.")
    batch_real: int | None = HfArg(
        default=None,
        help="Real features in a step, or all that there are; classes times --ipc times --augmentations if not given, "
        "which is the authors' number. More cost next to nothing here, and take noise out of the real gradient.",
    )
    real_views: int = HfArg(
        default=10, help="Crops of each real image whose features are computed, once, and kept on disk in float16."
    )
    min_crop: float = HfArg(default=0.08, help="Smallest area of a crop, as a share of the image.")
    random_flip: float = HfArg(default=0.5, help="Probability of mirroring an image.")
    noise: float = HfArg(default=0.5, help="Probability of adding noise to an image.")
    noise_mean: float = HfArg(default=0.5, help="Mean of that noise, for pixels in [0, 1].")
    noise_std: float = HfArg(default=0.2, help="Its deviation.")
    micro_batch_size: int = HfArg(
        default=256, help="Synthetic images that go through the backbone together: memory, and no other result."
    )
    eval_steps: int = HfArg(default=1000, help="Iterations between two evaluations on the held-out part of train.")
    eval_protocol: str = HfArg(default="probe", help="How heads are trained on the set: probe or probe-quick.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init != "noise":
            raise ValueError(f"--init is {self.init}; expected noise, from which the levels of pyramids start")
        for flag in ("level_steps", "augmentations", "batch_real", "real_views", "micro_batch_size"):
            check_at_least(flag, getattr(self, flag), 1)
        for flag in ("lr_img", "random_flip", "noise", "noise_std"):
            check_at_least(flag, getattr(self, flag), 0)
        for flag in ("random_flip", "noise"):
            if not getattr(self, flag) <= 1:
                raise ValueError(f"--{flag} is {getattr(self, flag)}; expected 0 to 1")
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"--min_crop is {self.min_crop}; expected above 0, and at most 1")
        for flag in ("noise_mean", "noise_std"):
            if not abs(getattr(self, flag)) <= NOISIEST:
                raise ValueError(
                    f"--{flag} is {getattr(self, flag)}; expected at most {NOISIEST:g} either way: pixels are in [0, 1]"
                )
        if self.backbone_revision is not None and self.backbone is None:
            raise ValueError(f"--backbone_revision {self.backbone_revision} without --backbone, whose it is; give both")

    def augment(self, *path: int | str) -> NoisyCrops:
        """What an image looks like: for synthetic ones and for real ones, by a path of random numbers for each."""
        return NoisyCrops(
            derive_seed(self.seed, *path),
            (self.min_crop, 1.0),
            self.random_flip,
            self.noise,
            self.noise_mean,
            self.noise_std,
        )

    def real_in_a_step(self, num_classes: int, views: int) -> int:
        """Real features in a step, of `views` that there are."""
        return min(self.batch_real or num_classes * self.ipc * self.augmentations, views)


@dataclass
class LGMConfig(HeadConfig):
    """Hyper-parameters of LGM; the defaults are its authors'.

    Example:
        >>> hd.LGMConfig(ipc=2).real_in_a_step(10, views=5000)
        200
    """


@dataclass
class CLPDDConfig(HeadConfig):
    """Hyper-parameters of CLP-DD; the defaults are this library's, where the abstract says nothing.

    Example:
        >>> hd.CLPDDConfig().temperature
        0.07
    """

    augmentations: int = HfArg(default=1, help="Copies of each synthetic image in a step, each seen in its own way.")
    batch_real: int | None = HfArg(
        default=None, help="Real features in a step, or all that there are; 1,024 if not given."
    )
    ridge: float = HfArg(default=1.0, help="λ of the head, times the mean squared length of synthetic features.")
    temperature: float = HfArg(default=0.07, help="τ, by which what the head says of real features is divided.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag in ("ridge", "temperature"):
            if not 0 < getattr(self, flag) < math.inf:
                raise ValueError(f"--{flag} is {getattr(self, flag)}; expected a number above 0")

    def real_in_a_step(self, num_classes: int, views: int) -> int:
        """As `HeadConfig.real_in_a_step`."""
        return min(self.batch_real or REAL, views)


class HeadMatching(Distiller):
    """Pyramids whose images teach heads of a frozen backbone; a subclass says by which loss.

    Args:
        config: A `HeadConfig`.
        train: The images to distil.
        backbone: Frozen; what it sees of images are pixels, whatever the preprocessing of `train`.
        teachers: The teacher that the backbone was, where one was trained here.
        kwargs: See `Method`.

    Raises:
        ValueError: The images have colours and the backbone sees gray ones; or as `check`.
    """

    learns_from = (TeacherConfig,)
    uncompiled = "the backbone"
    probes = True
    saving = ("micro_batch_size",)
    config: HeadConfig

    def __init__(
        self,
        config: HeadConfig,
        train: RealImages,
        *,
        backbone: Backbone,
        teachers: Sequence[Teacher] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(config, train, **kwargs)
        _check_fits(backbone, train.outline)
        self.backbone, self.teachers = backbone.to(self.device), list(teachers)
        height, width = train.shape[1:]
        self.student = ProbeSpec.of(self.backbone, train.num_classes, train.preprocessing, (height, width))
        self._look = in_precision(self.backbone.features, self.accelerator)
        self.augment = config.augment("synthetic")
        self.batch = config.real_in_a_step(train.num_classes, config.real_views * len(train))

    @classmethod
    def check(cls, config: HeadConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()) -> None:
        """As `Method.check`; images are pixels, and there is a backbone for them, or one can be trained."""
        super().check(config, train, accelerator, networks)
        refuse_fp16(accelerator, cls.__name__)
        if train.whitened:
            raise ValueError(
                f"{cls.__name__} makes pixels, as a backbone sees them, and --normalization zca mixes them up; "
                "use --normalization mean_std"
            )
        settings = [each for each in networks if isinstance(each, TeacherConfig)]
        if config.backbone is None:
            for each in settings:
                check_teacher(each, train, accelerator)
        elif settings:
            _check_fits(_named(config), train)

    @classmethod
    def learn(cls, having: Preparation) -> dict[str, Any]:
        """The backbone that is named, or else the teacher of these settings, trained unless it is there."""
        (settings,), config = having.networks, having.config
        if config.backbone is not None:
            return {"backbone": _named(config)}
        teachers = find_teachers(None, having.train, having.test, settings, **having.options)
        folder = teacher_folder(having.train, settings, config.seed, having.accelerator)
        return {"backbone": Backbone.from_teacher(teachers[0], str(folder)), "teachers": teachers}

    @classmethod
    def untrained(cls, having: Preparation) -> dict[str, Any]:
        """As `Method.untrained`: a backbone, which is read where it is a folder."""
        (settings,), config = having.networks, having.config
        if config.backbone is not None and Path(config.backbone).is_dir():
            return {"backbone": _named(config)}
        if config.backbone is None:
            (teacher,) = untrained_teachers(None, settings, having.train)
            return {"backbone": Backbone.from_teacher(teacher)}
        network, side = LOOKS_LIKE.get(config.backbone, LOOKS_LIKE[None])
        spec = StudentSpec(network, having.train.num_classes, 3, (side, side))
        size = Preprocessing(3, (side, side), (0.5,) * 3, (0.5,) * 3)
        with torch.device("meta"):
            model = spec.build(0)
        teacher = Teacher(model, spec, having.train.class_names, size)
        return {"backbone": Backbone.from_teacher(teacher, config.backbone)}

    @classmethod
    def shortened(cls, config: HeadConfig, train: Outline) -> tuple[HeadConfig, float]:
        """As `Method.shortened`: one copy of each image, where several are not looked at together anyway."""
        if config.micro_batch_size > config.ipc * train.num_classes:
            return config, 1.0
        real = config.real_in_a_step(train.num_classes, config.real_views * len(train))
        return replace(config, augmentations=1, batch_real=real), float(config.augmentations)

    def rehearse_ready(self) -> None:
        """As `ready`: features as they lie on the disk, none of them computed."""
        rows = self.config.real_views * len(self.train)
        kept = torch.empty((rows, self.backbone.width, 1, 1), dtype=torch.float16, device=self.device)
        self.real = Pool(kept, self.train.labels.repeat(self.config.real_views), device=self.device)

    def foreseen_files(self) -> dict[str, int]:
        """As `Method.foreseen_files`: also the features of real images."""
        features = 2 * self.config.real_views * len(self.train) * self.backbone.width
        return {**super().foreseen_files(), "features of real images": features}

    def rehearse(self, ledger: Ledger, held_out: RealImages, tested: RealImages) -> list[Stage]:
        """As `Distiller.rehearse`; and what the features of real images take."""
        stages = super().rehearse(ledger, held_out, tested)
        before, some = ledger.flop, torch.arange(2)
        ledger.forget()
        with torch.no_grad():
            size = self.backbone.size
            self._look(self.augment(torch.empty((2, *self.train.shape), device=self.device), (0,), some, size))
        views = self.config.real_views * len(self.train)
        words = f"{views:,} views of real images"
        features = ledger.stage("features", (ledger.flop - before) / 2 * views, words, parts=1)
        return [stages[0], features, *stages[1:]]

    def learned_from(self) -> Sequence[Teacher]:
        """The teacher that was trained for it, if any."""
        return self.teachers

    def setup(self) -> DistilledSet:
        """Pyramids of noise, their images, and Adam on the levels that count."""
        config, train = self.config, self.train
        labels = torch.arange(train.num_classes).repeat_interleave(config.ipc)
        self.pyramids = Pyramids(len(labels), train.shape, config.seed).to(self.device)
        size, self._last = config.micro_batch_size, len(self.pyramids.levels)
        self._parts = [slice(first, first + size) for first in range(0, len(labels), size)]
        if config.max_steps and (needed := (self._last - 1) * config.level_steps) >= config.max_steps:
            reached = self.pyramids.levels[self._due_at(config.max_steps - 1) - 1].shape[2:]
            logger.warning(
                "the last of %d levels joins after %s iterations (--level_steps %d), and there are %s: images stay as "
                "coarse as %sx%s pixels",
                *(self._last, f"{needed:,}", config.level_steps, f"{config.max_steps:,}", *reached),
            )
        self._follow(1)
        logger.info(
            "an iteration takes %s crops of %s synthetic images through the backbone, and %s of %s real features",
            *(f"{count:,}" for count in (len(labels) * config.augmentations, len(labels), self.batch)),
            f"{config.real_views * len(train):,}",
        )
        self._targets = one_hot(labels.repeat(config.augmentations).to(self.device), train.num_classes)
        pixels = torch.empty(len(labels), *train.shape)
        about = {"student": {**self.student.to_dict(), "probe": self.backbone.about()}}
        distilled = DistilledSet(pixels, labels, train.class_names, train.preprocessing, config=about).to(self.device)
        distilled.requires_grad_(False)
        self._show(distilled)
        return distilled

    def ready(self) -> None:
        """Have the features of real images."""
        config, train = self.config, self.train
        kept = real_features(
            train,
            self.backbone,
            config.augment("real"),
            config.real_views,
            accelerator=self.accelerator,
            disable_tqdm=config.disable_tqdm,
        )
        self.real = Pool(kept[:, :, None, None], train.labels.repeat(config.real_views), device=self.device)

    def students(self) -> Sequence[StudentSpec]:
        """Heads on the backbone."""
        return [self.student]

    def modules(self) -> dict[str, nn.Module]:
        """The pyramids, of which the images of the set are made."""
        return {"pyramids": self.pyramids}

    def identity(self) -> dict[str, Any]:
        """Beside the data, the backbone, wherever it lies."""
        about = {name: value for name, value in self.backbone.about().items() if name not in ("name", "revision")}
        return {**super().identity(), "student": about}

    def advice(self) -> str:
        """Lower rates, or another backbone."""
        return f"{super().advice()}, or use another --backbone"

    def _due_at(self, step: int) -> int:
        """Levels that count in a step, from 0."""
        return min(self._last, 1 + step // self.config.level_steps)

    def _follow(self, active: int) -> None:
        """Let a new Adam move the first levels, so many."""
        self._levels = list(self.pyramids.levels[:active])
        fused = self.device.type == "cuda"
        self.optimizers = [torch.optim.Adam(self._levels, lr=self.config.lr_img, fused=fused)]

    def begin(self, step: int) -> None:
        """Let the next level join where it is due."""
        while (active := len(self._levels) + 1) <= self._due_at(step):
            self.pyramids.grow(active)
            self._follow(active)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        super()._restore(tensors)
        self._follow(int(self.pyramids.active))

    @torch.no_grad()
    def constrain(self) -> None:
        """Let the images of the set be those of the pyramids."""
        self._show(self.distilled)

    @torch.no_grad()
    def _show(self, distilled: DistilledSet) -> None:
        for part in self._parts:
            decoded = self.pyramids.decode([level[part] for level in self._levels])
            distilled.pixel_values[part] = self.train.preprocessing(decoded)

    @abstractmethod
    def objective(self, draw: int, z: Tensor, y: Tensor) -> Objective:
        """L of synthetic features (n, D).

        Args:
            draw: Names what is random in it.
            z: Real features (m, D) float32.
            y: Their classes, (m, K).
        """

    def step(self, draw: int) -> dict[str, Tensor]:
        """Add ∂L/∂levels of one draw: its real features, its crops, and its head."""
        config, levels = self.config, self._levels
        rows = torch.randint(len(self.real), (self.batch,), generator=generator(config.seed, "batch", draw))
        kept, classes = self.real.take(rows)
        objective = self.objective(draw, kept.flatten(1).float(), one_hot(classes, self.train.num_classes))
        with torch.no_grad():
            images = torch.cat([self.pyramids.decode([level[part] for level in levels]) for part in self._parts])

        def look(some: Tensor, numbers: Tensor) -> Tensor:
            return self._look(self.augment(some, (draw,), numbers, self.backbone.size))

        loss, gradient = image_gradient(look, images, config.augmentations, config.micro_batch_size, objective)
        for part in self._parts:
            decoded = self.pyramids.decode([level[part] for level in levels])
            decoded.backward(gradient[part])
        return {"loss": loss}


def _named(config: HeadConfig) -> Backbone:
    """The backbone of `--backbone`, which the message of an error begins with."""
    try:
        return Backbone.from_pretrained(str(config.backbone), revision=config.backbone_revision)
    except ValueError as error:
        raise ValueError(f"--backbone {config.backbone}: {error}") from error


def _check_fits(backbone: Backbone, train: Outline) -> None:
    if train.shape[0] > backbone.channels:
        raise ValueError(
            f"--backbone {backbone.name} sees gray images, and the data have {train.shape[0]} channels; give --color "
            "gray, or another backbone"
        )


class LGM(HeadMatching):
    """Linear gradient matching: heads get from the images the gradient that real ones give.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "teacher_epochs": 1, "batch_train": 20}
        >>> seen = {"augmentations": 2, "real_views": 1, "max_steps": 2, "select": "last", "disable_tqdm": True}
        >>> distilled = hd.LGM.distill(train, ipc=1, **net, **seen)
        >>> distilled.pixel_values.shape, distilled.config["student"]["probe"]["library"]
        (torch.Size([10, 1, 8, 8]), 'hf_distill')
    """

    config_class = LGMConfig
    config: LGMConfig
    paper = Paper(
        title="Dataset Distillation for Pre-Trained Self-Supervised Vision Models",
        authors="George Cazenavette, Antonio Torralba, Vincent Sitzmann",
        year=2025,
        arxiv_id="2511.16674",
        bibtex="""@inproceedings{cazenavette2025lgm,
  title={Dataset Distillation for Pre-Trained Self-Supervised Vision Models},
  author={Cazenavette, George and Torralba, Antonio and Sitzmann, Vincent},
  booktitle={Advances in Neural Information Processing Systems},
  year={2025}
}""",
    )

    def objective(self, draw: int, z: Tensor, y: Tensor) -> Objective:
        """1 − cos(g_real, g_syn) in a head that is drawn."""
        shape = (self.train.num_classes, self.backbone.width)
        weight = HEAD_STD * torch.randn(shape, generator=generator(self.config.seed, "head", draw))
        return partial(gradient_distance, weight=upload(weight, self.device), z=z, y=y, targets=self._targets)


def gradient_distance(synthetic: Tensor, *, weight: Tensor, z: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """1 − cos(g_real, g_syn), one cosine over W and b together; differentiable in `synthetic`.

    Args:
        synthetic: Features (n, D) of synthetic images.
        weight: W (K, D) of the head.
        z: Features (m, D) of real images.
        y: Their classes (m, K).
        targets: Classes (n, K) of the synthetic images.
    """
    return 1 - F.cosine_similarity(head_gradient(z, y, weight), head_gradient(synthetic, targets, weight), dim=0)


class CLPDD(HeadMatching):
    """The head that ridge regression learns from the images is right about real ones.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "teacher_epochs": 1, "batch_train": 20}
        >>> seen = {"batch_real": 50, "real_views": 1, "max_steps": 2, "select": "last", "disable_tqdm": True}
        >>> hd.CLPDD.distill(train, ipc=1, **net, **seen).soft_labels is None
        True
    """

    config_class = CLPDDConfig
    config: CLPDDConfig
    paper = Paper(
        title="Closed-Form Linear-Probe Dataset Distillation for Pre-trained Vision Models",
        authors="Bincheng Peng, Guang Li, Ping Liu, Takahiro Ogawa, Miki Haseyama",
        year=2026,
        arxiv_id="2605.07194",
        bibtex="""@article{peng2026closed,
  title={Closed-Form Linear-Probe Dataset Distillation for Pre-trained Vision Models},
  author={Peng, Bincheng and Li, Guang and Liu, Ping and Ogawa, Takahiro and Haseyama, Miki},
  journal={arXiv preprint arXiv:2605.07194},
  year={2026}
}""",
    )

    def advice(self) -> str:
        """More of what keeps the head tame, or as for LGM."""
        ridge, temperature = self.config.ridge, self.config.temperature
        return f"Raise --ridge {ridge:g} or --temperature {temperature:g}. {super().advice()}"

    def objective(self, draw: int, z: Tensor, y: Tensor) -> Objective:
        """The cross-entropy of real features in the head of the synthetic ones."""
        config = self.config
        options = {"ridge": config.ridge, "temperature": config.temperature}
        return partial(ridge_loss, z=z, y=y, targets=self._targets, **options)


def ridge_loss(synthetic: Tensor, *, z: Tensor, y: Tensor, targets: Tensor, ridge: float, temperature: float) -> Tensor:
    """CE(softmax(Z_real W_sᵀ / τ), y), differentiable in `synthetic`; see `gradient_distance`.

    Args:
        ridge: λ, as a multiple of the mean squared length of `synthetic`.
        temperature: τ.
    """
    head = ridge_head(synthetic, targets, ridge * synthetic.square().sum(1).mean())
    return F.cross_entropy(z @ head.T / temperature, y)
