"""DM: dataset condensation with distribution matching (Zhao and Bilen, WACV 2023, arXiv:2110.04181).

The images of a class should have the mean features of its real images, in whatever network looks at them. Nothing is
trained: each iteration draws a network with fresh random parameters.

    L = Σ_c ‖ mean_{x ∈ B_c} ψ(A_c(x)) − mean_{s ∈ S_c} ψ(A_c(s)) ‖²
    v <- μ v + ∂L/∂S,   S <- S − η v

    symbol   name                       meaning
    S_c      distilled.pixel_values     the synthetic images of class c
    |B_c|    batch_real                 real images of class c, drawn anew; all of them where a class has no more
    ψ        network, `before_logits`   what a network with random parameters has before its logits
    A_c      dsa_strategy               one operation with one set of parameters, for real and synthetic images alike
    η, μ     lr_img, mom_img            SGD with momentum

L is a sum over classes, so that a few of them at a time are in memory (`micro_batch_size`), whatever their number. With
BatchNorm an image's features depend on its batch: there all classes are seen together, as in the authors' code.

Differs from the authors' code:
- Everything random is a function of (seed, draw), where they re-seed from the wall clock; so runs resume exactly.
- The best step is selected on held-out training images unless `--select last`, which is theirs.
- They take one iteration more than they say, as their loop counts from 0 to `--Iteration`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..augmentation.dsa import DEFAULT_STRATEGY, DSA, DsaParams
from ..config import HfArg, LoopConfig, check_at_least, check_choice
from ..data.feed import Pool
from ..data.images import Outline, RealImages
from ..data.upload import upload
from ..distilled.distilled_set import DistilledSet
from ..engine.loop import Distiller
from ..evaluation.students import check_student
from ..hub.cards import Paper
from ..networks.architectures import NORMS, StudentSpec, before_logits, sees_batches
from ..networks.compiling import compiled, in_precision, refuse_fp16
from ..rng import derive_seed, generator

Features = Callable[[Tensor], Tensor]  # images (n, C, H, W) -> features (n, D)


def averaging(counts: Sequence[int]) -> Tensor:
    """What gives the means of K classes as one product: (K, N), for N rows of which each class has so many in turn."""
    means = [torch.full((1, count), 1 / count) for count in counts]
    return torch.block_diag(*means)


def matching_gradient(features: Features, images: Tensor, mean: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """The part of L that belongs to K classes, and its gradient with respect to their synthetic images.

    Args:
        features: ψ(A(s)), differentiable.
        images: S_c of one class after another, (N, C, H, W).
        mean: (K, N), of `averaging`.
        goal: The mean features (K, D) of the real images.
    """
    images = images.detach().requires_grad_()
    loss = (mean @ features(images) - goal).square().sum()
    (gradient,) = torch.autograd.grad(loss, images)
    return loss.detach(), gradient


def parts_of(sizes: Sequence[int], most: int) -> list[slice]:
    """Stretches of what has such `sizes`, in turn: of as much as comes to `most` together, or of one that is larger."""
    starts, filled = [0], 0
    for number, size in enumerate(sizes):
        if filled and filled + size > most:
            starts, filled = [*starts, number], 0
        filled += size
    return [slice(start, stop) for start, stop in pairwise([*starts, len(sizes)])]


@dataclass
class DMConfig(LoopConfig):
    """Hyper-parameters of DM, under the names that its authors' code gives them.

    Example:
        >>> hd.DMConfig(ipc=10).batch_real
        256
    """

    max_steps: int = HfArg(default=20000, help="Distillation iterations.")
    eval_steps: int = HfArg(default=2000, help="Iterations between two evaluations on the held-out part of train.")
    student: str = HfArg(
        default="convnet_d3",
        help="Network to distil for, with random parameters: convnet_d1 to convnet_d8 or any timm name.",
    )
    student_width: int = HfArg(default=128, help="Channels of each convolution of a convnet.")
    student_norm: str = HfArg(default="instance", help="Normalisation of a convnet: instance, batch or none.")
    batch_real: int = HfArg(default=256, help="Real images of each class in an iteration; all, where it has fewer.")
    lr_img: float = HfArg(default=1.0, help="Learning rate of the pixels.")
    mom_img: float = HfArg(default=0.5, help="Momentum of their updates.")
    dsa_strategy: str = HfArg(
        default=DEFAULT_STRATEGY, help="Augmentations, the same for real and synthetic images; none for none."
    )
    micro_batch_size: int = HfArg(
        default=1024,
        help="Images in memory at once, of whole classes: those of one at least, and of all with BatchNorm.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("student_norm", self.student_norm, NORMS)
        for flag in ("student_width", "batch_real", "micro_batch_size"):
            check_at_least(flag, getattr(self, flag), 1)
        for flag in ("lr_img", "mom_img"):
            check_at_least(flag, getattr(self, flag), 0)
        if not self.mom_img <= 1:
            raise ValueError(f"--mom_img is {self.mom_img}; expected a number from 0 to 1")
        DSA(self.dsa_strategy)

    def student_spec(self, real: Outline | RealImages) -> StudentSpec:
        """The student for the classes, channels and size of `real`."""
        options = {"width": self.student_width, "norm": self.student_norm}
        return StudentSpec.for_images(self.student, real.num_classes, real.shape, **options)


class DM(Distiller):
    """The images of a class have the mean features of its real images, in networks with random parameters.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "batch_real": 20, "dsa_strategy": "crop"}
        >>> distilled = hd.DM.distill(train, ipc=2, max_steps=2, select="last", disable_tqdm=True, **net)
        >>> distilled.pixel_values.shape, distilled.soft_labels
        (torch.Size([20, 1, 8, 8]), None)
    """

    saving = ("micro_batch_size",)
    config_class = DMConfig
    config: DMConfig
    paper = Paper(
        title="Dataset Condensation with Distribution Matching",
        authors="Bo Zhao, Hakan Bilen",
        year=2023,
        arxiv_id="2110.04181",
        bibtex="""@inproceedings{zhao2023dm,
  title={Dataset Condensation with Distribution Matching},
  author={Zhao, Bo and Bilen, Hakan},
  booktitle={Proceedings of the IEEE/CVF Winter Conference on Applications of Computer Vision},
  year={2023}
}""",
    )

    def __init__(self, config: DMConfig, train: RealImages, **kwargs: Any) -> None:
        super().__init__(config, train, **kwargs)
        self.dsa = DSA(config.dsa_strategy)
        self.protocol = self.protocol.with_augmentation(config.dsa_strategy)
        self.student = config.student_spec(train)
        self._look = in_precision(compiled(before_logits, self.accelerator), self.accelerator)

    @classmethod
    def check(cls, config: DMConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()) -> None:
        """As `Method.check`; and the student has features."""
        super().check(config, train, accelerator, networks)
        refuse_fp16(accelerator, "distribution matching")
        spec = config.student_spec(train)
        student = check_student(spec)
        try:
            features = before_logits(student, torch.zeros(1, spec.in_chans, *spec.img_size))
        except (AttributeError, TypeError, NotImplementedError) as error:
            raise ValueError(
                f"--student {config.student} gives no features before its logits; expected a convnet_d or another of "
                "timm's networks with forward_features and forward_head"
            ) from error
        if features.ndim != 2:
            raise ValueError(
                f"--student {config.student} has features of shape {tuple(features.shape[1:])} for an image; expected "
                "a vector: use a convnet_d or another of timm's networks"
            )

    @classmethod
    def shortened(cls, config: DMConfig, train: Outline) -> tuple[DMConfig, float]:
        """As `Method.shortened`: from noise."""
        return replace(config, init="noise"), 1.0

    def setup(self) -> DistilledSet:
        """Images from train or noise, class by class, SGD with momentum on their pixels, and the network to fill."""
        config, train = self.config, self.train
        labels = torch.arange(train.num_classes).repeat_interleave(config.ipc)
        if config.init == "real":
            draws = [generator(config.seed, "init", label) for label in range(train.num_classes)]
            pixels = torch.cat([train.sample(label, config.ipc, draw) for label, draw in enumerate(draws)])
        else:
            pixels = torch.randn((len(labels), *train.shape), generator=generator(config.seed, "init"))
        about = {"student": self.student.to_dict(), "dsa_strategy": self.dsa.strategy}
        distilled = DistilledSet(pixels, labels, train.class_names, train.preprocessing, config=about).to(self.device)
        self.optimizers = [torch.optim.SGD([distilled.pixel_values], lr=config.lr_img, momentum=config.mom_img)]

        # BatchNorm of a network that nothing has trained has the statistics of a batch, and no others.
        self.network = torch.func.replace_all_batch_norm_modules_(self.student.build(0)).eval()
        self.network.to(self.device).requires_grad_(False)
        self.real = Pool(train, train.labels, preprocessing=train.preprocessing, device=self.device, keep="floats")
        self.counts = [min(config.batch_real, len(train.class_rows(label))) for label in range(train.num_classes)]
        sizes = [max(count, config.ipc) for count in self.counts]
        self.parts = [slice(0, len(sizes))] if sees_batches(self.network) else parts_of(sizes, config.micro_batch_size)
        self._means = [
            (averaging(counts).to(self.device), averaging([config.ipc] * len(counts)).to(self.device))
            for counts in (self.counts[part] for part in self.parts)
        ]
        return distilled

    def identity(self) -> dict[str, Any]:
        """Beside the data, the student and its augmentation."""
        config = self.distilled.config
        return {**super().identity(), "student": config["student"], "dsa_strategy": config["dsa_strategy"]}

    @torch.no_grad()
    def _draw_network(self, draw: int) -> None:
        """Give the network the random parameters of a draw, which reach the device together."""
        fresh = self.student.build(derive_seed(self.config.seed, "network", draw))
        values = upload(nn.utils.parameters_to_vector(fresh.parameters()).detach(), self.device)
        own = list(self.network.parameters())
        for parameter, value in zip(own, values.split([each.numel() for each in own]), strict=True):
            parameter.copy_(value.view_as(parameter))

    def _features(self, draws: Sequence[DsaParams], counts: Sequence[int]) -> Features:
        """ψ(A_c(·)) of images of one class after another, of which each has a draw of its own and so many images."""
        params = [drawn.for_all(count) for drawn, count in zip(draws, counts, strict=True)]
        return lambda images: self._look(self.network, DSA.apply_each(images, params, counts))

    def step(self, draw: int) -> dict[str, Tensor]:
        """Add ∂L/∂S of one draw: its network, its real images, and an augmentation for each class."""
        config, train = self.config, self.train
        self._draw_network(draw)
        drawn, augmentations = [], []
        for label in range(train.num_classes):
            rows = train.class_rows(label)
            order = torch.randperm(len(rows), generator=generator(config.seed, "real", draw, label))
            drawn.append(rows[order[: config.batch_real]])
            random = generator(config.seed, "dsa", draw, label)
            augmentations.append(self.dsa.sample(1, random, train.shape[1:]))

        synthetic, losses = self.distilled.pixel_values, []
        batches = self.real.each([torch.cat(drawn[part]) for part in self.parts])
        for part, (of_real, of_synthetic), (_, real) in zip(self.parts, self._means, batches, strict=True):
            counts, own = self.counts[part], [config.ipc] * len(of_synthetic)
            with torch.no_grad():
                goal = of_real @ self._features(augmentations[part], counts)(real)
            places = slice(part.start * config.ipc, part.stop * config.ipc)
            look = self._features(augmentations[part], own)
            loss, gradient = matching_gradient(look, synthetic[places], of_synthetic, goal)
            synthetic.grad[places] += gradient
            losses.append(loss)
        return {"loss": torch.stack(losses).sum()}
