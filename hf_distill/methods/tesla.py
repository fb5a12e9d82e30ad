"""TESLA: trajectory matching in constant memory, with soft labels (Cui et al., ICML 2023, arXiv:2211.10586).

The loss is MTT's (see `methods.trajectory`); two things are new:

- ∂L/∂X and ∂L/∂β with the graph of one student step in memory, whatever T is: `unroll.adjoint_unroll`.
- Soft label assignment: Y = softmax(f(θ*; X)), from the target state of the expert that is being imitated, constant
  with respect to X. Only the images that the T steps take are labelled.

    symbol   name            meaning
    γ        curvature       1: the gradient of the unroll, exactly; 0: the path of the student counts as constant
    Y        targets         (R, K) probabilities, or (R,) classes with `--label hard`
    -        teacher         M experts after their last epoch; the mean of their logits labels what is published

Differs from the authors' code, beside what `methods.trajectory` lists:
- The gradient is exact by default. Theirs drops how a pixel moves the later steps (γ = 0), and their images get half of
  even that: the factor 2 of the formula is applied to the wrong element of a tuple. So their `lr_img` is ours halved.
- Published labels are the mean logits of several experts after their last epoch, made once from the final images.
  Theirs are those of whichever expert was drawn last, one update late.
- `--label teacher` assigns these labels throughout, so that the images are trained on with the labels that they are
  published with. The paper's own assignment is `--label expert`.
- Real images to start from are, with soft labels, some that the teacher classifies correctly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..config import HfArg, check_at_least, check_choice
from ..data.images import Outline, RealImages
from ..distilled.labels import TeacherLabels
from ..hub.cards import Paper
from ..networks.architectures import FlatModel
from ..networks.compiling import compiled_derivatives
from ..networks.trajectories import ExpertTrajectories
from .trajectory import TrajectoryConfig, TrajectoryMatching
from .unroll import MatchingGradient, Student, StudentStep, adjoint_unroll


@dataclass
class TESLAConfig(TrajectoryConfig):
    """Hyper-parameters of TESLA.

    Example:
        >>> hd.TESLAConfig(ipc=10, max_start_epoch=20, expert_epochs=2).expert_epochs_needed
        21
    """

    label: str = HfArg(
        default="expert",
        help="Labels while distilling. expert: by the expert that is imitated (the paper's); teacher: those that are "
        "published, by several experts after their last epoch; hard: the classes, and no soft labels are published.",
    )
    label_experts: int = HfArg(default=4, help="Experts whose mean logits are the published soft labels.")
    curvature: float = HfArg(default=1.0, help="1: the exact gradient; 0: the authors' truncation; between: damped.")
    micro_batch_size: int | None = HfArg(default=None, help="Synthetic images in memory at once inside a step.")
    theta_device: str = HfArg(default="device", help="Keep the student's T states on the device or on the host.")
    theta_every: int = HfArg(default=1, help="Keep every k-th state, recompute the others (less memory, more time).")
    shard_steps: bool = HfArg(
        default=False,
        help="Processes share the images of each step of one draw, and do not average draws of their own.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("label", self.label, ("expert", "teacher", "hard"))
        check_choice("theta_device", self.theta_device, ("device", "host"))
        for flag in ("label_experts", "micro_batch_size", "theta_every"):
            check_at_least(flag, getattr(self, flag), 1)
        if not 0 <= self.curvature <= 1:
            raise ValueError(f"--curvature is {self.curvature}; expected 0 (the authors' truncation) to 1 (exact)")


class TESLA(TrajectoryMatching):
    """Trajectory matching by one adjoint sweep, with soft label assignment.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "num_experts": 1, "expert_train_epochs": 2}
        >>> path = {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "max_steps": 1, "select": "last"}
        >>> distilled = hd.TESLA.distill(train, ipc=1, disable_tqdm=True, **net, **path)
        >>> distilled.pixel_values.shape, distilled.soft_labels.shape
        (torch.Size([10, 1, 8, 8]), torch.Size([10, 10]))
    """

    config_class = TESLAConfig
    config: TESLAConfig
    paper = Paper(
        title="Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory",
        authors="Justin Cui, Ruochen Wang, Si Si, Cho-Jui Hsieh",
        year=2023,
        arxiv_id="2211.10586",
        bibtex="""@inproceedings{cui2023tesla,
  title={Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory},
  author={Cui, Justin and Wang, Ruochen and Si, Si and Hsieh, Cho-Jui},
  booktitle={International Conference on Machine Learning},
  year={2023}
}""",
    )

    def __init__(self, config: TESLAConfig, train: RealImages, *, experts: ExpertTrajectories, **kwargs: Any) -> None:
        super().__init__(config, train, experts=experts, **kwargs)
        _check_parts(config, experts.flat_model())

    @classmethod
    def check(cls, config: TESLAConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()) -> None:
        """As `TrajectoryMatching.check`; and where steps are shared there are processes, and images for each."""
        super().check(config, train, accelerator, networks)
        for settings in networks:
            if settings.experts is None:
                _check_parts(config, FlatModel.from_spec(settings.student_spec(train)))
        if not config.shard_steps:
            return
        world = accelerator.num_processes
        if world == 1:
            raise ValueError(
                "--shard_steps shares the images of a step among processes, and there is one; expected several "
                "(accelerate launch --num_processes 2), or no such flag"
            )
        count = train.num_classes * config.ipc
        size = min(config.batch_syn or count, count)
        if size < world:
            raise ValueError(
                f"--shard_steps shares the {size} image(s) of a step (--batch_syn) among {world} processes; expected "
                "at least one for each: use fewer processes, or larger batches"
            )

    def _student(self) -> Student:
        return replace(
            super()._student(),
            micro_batch_size=self.config.micro_batch_size,
            total=self._total if self.config.shard_steps else None,
            compiler=partial(compiled_derivatives, accelerator=self.accelerator),
        )

    def _total(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum")

    @property
    def draws_per_step(self) -> int:
        """As `Distiller.draws_per_step`; those that all processes share, where they do."""
        return self.config.gradient_accumulation_steps if self.config.shard_steps else super().draws_per_step

    def draws(self, step: int) -> range:
        """As `Distiller.draws`; the same of each process, where they share them."""
        count = self.draws_per_step
        return range(step * count, (step + 1) * count) if self.config.shard_steps else super().draws(step)

    def part(self, batch: int) -> slice:
        """The places of a batch whose images this process shows to the student: an equal share, or all."""
        if not self.config.shard_steps:
            return super().part(batch)
        world, own = self.accelerator.num_processes, self.accelerator.process_index
        return slice(batch * own // world, batch * (own + 1) // world)

    def teacher(self) -> TeacherLabels | None:
        """The experts that label the published images."""
        if self.config.label == "hard":
            return None
        return TeacherLabels(self.experts.spec, self.final_states(self.config.label_experts)).to(self.device)

    @torch.no_grad()
    def assign(self, target: Tensor, pixels: Tensor, labels: Tensor) -> Tensor:
        """Y for the images that the steps take: probabilities (R, K), or the classes (R,) as they are.

        Args:
            target: θ* (P,), which labels them with `--label expert`.
            pixels: (R, C, H, W), not augmented.
            labels: (R,) classes.
        """
        if self.config.label == "hard":
            return labels
        if self.config.label == "teacher":
            logits = self.distilled.teacher(pixels, labels, torch.arange(len(labels)))
        else:
            size = self.config.micro_batch_size or self.config.batch_syn or len(pixels)
            logits = torch.cat([self.student.model(target, chunk) for chunk in pixels.split(size)])
        return logits.softmax(dim=1)

    def matching_gradient(
        self,
        start: Tensor,
        target: Tensor,
        pixels: Tensor,
        labels: Tensor,
        steps: Sequence[StudentStep],
        lr: Tensor,
    ) -> MatchingGradient:
        """One adjoint sweep over the student's states."""
        config = self.config
        found = adjoint_unroll(
            self.student,
            start,
            target,
            pixels,
            self.assign(target, pixels, labels),
            steps,
            lr,
            curvature=config.curvature,
            theta_device="cpu" if config.theta_device == "host" else None,
            keep_every=config.theta_every,
        )
        # Processes average what they give: the parts of one gradient are to add up.
        world = self.accelerator.num_processes if config.shard_steps else 1
        return found if world == 1 else replace(found, pixels=world * found.pixels)


def _check_parts(config: TESLAConfig, model: FlatModel) -> None:
    """Raise a `ValueError` where a student that sees whole batches would be shown parts of them."""
    parts = {"micro_batch_size": config.micro_batch_size is not None, "shard_steps": config.shard_steps}
    given = [flag for flag, value in parts.items() if value]
    if given and model.sees_batches:
        raise ValueError(
            f"--{given[0]} shows the images of a step in parts, and the experts have BatchNorm, which makes what the "
            "student says of one depend on all the others; leave it out, or use experts with another normalisation"
        )
