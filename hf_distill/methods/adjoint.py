"""What TESLA and DATM share: trajectory matching with the graph of one student step in memory, whatever T is.

The loss is that of `methods.trajectory`, and `unroll.adjoint_unroll` gives its gradient with respect to the images, to
β and, where they are learned, to the labels. The T states of the student may wait on the host, a step may be seen in
parts, and processes may share the images of a step.

    symbol   name        meaning
    γ        curvature   1: the gradient of the unroll, exactly; 0: the path of the student counts as constant
    Y        targets     what the student's loss takes: (R,) classes, or (R, K)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from ..config import HfArg, check_at_least, check_choice
from ..data.images import Outline, RealImages
from ..networks.architectures import FlatModel
from ..networks.compiling import compiled_derivatives
from ..networks.trajectories import ExpertTrajectories
from .trajectory import TrajectoryConfig, TrajectoryMatching
from .unroll import MatchingGradient, Student, StudentStep, adjoint_unroll


@dataclass
class AdjointConfig(TrajectoryConfig):
    """Hyper-parameters of trajectory matching by one sweep."""

    curvature: float = HfArg(default=1.0, help="1: the exact gradient; 0: TESLA's own truncation; between: damped.")
    micro_batch_size: int | None = HfArg(default=None, help="Synthetic images in memory at once inside a step.")
    theta_device: str = HfArg(default="device", help="Keep the student's T states on the device or on the host.")
    theta_every: int = HfArg(default=1, help="Keep every k-th state, recompute the others (less memory, more time).")
    shard_steps: bool = HfArg(
        default=False,
        help="Processes share the images of each step of one draw, and do not average draws of their own.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("theta_device", self.theta_device, ("device", "host"))
        for flag in ("micro_batch_size", "theta_every"):
            check_at_least(flag, getattr(self, flag), 1)
        if not 0 <= self.curvature <= 1:
            raise ValueError(f"--curvature is {self.curvature}; expected 0 (TESLA's own truncation) to 1 (exact)")


class AdjointMatching(TrajectoryMatching):
    """Trajectory matching by one adjoint sweep; a subclass says what the labels of the steps are."""

    saving = ("micro_batch_size",)
    config: AdjointConfig

    def __init__(self, config: AdjointConfig, train: RealImages, *, experts: ExpertTrajectories, **kwargs: Any) -> None:
        super().__init__(config, train, experts=experts, **kwargs)
        _check_parts(config, experts.flat_model())

    @classmethod
    def check(
        cls, config: AdjointConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()
    ) -> None:
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

    @property
    def learns_labels(self) -> bool:
        """True where `labels_of` is learned, (R, K): the sweep gives ∂L/∂Y too."""
        return False

    def assign(self, target: Tensor, pixels: Tensor, labels: Tensor) -> Tensor:
        """Y for the images that the steps take, as the student's loss takes it: `labels` as they are.

        Args:
            target: θ* (P,).
            pixels: (R, C, H, W), not augmented.
            labels: What `labels_of` has for them.
        """
        return labels

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
            targets_gradient=self.learns_labels,
            theta_device="cpu" if config.theta_device == "host" else None,
            keep_every=config.theta_every,
        )
        # Processes average what they give: the parts of one gradient are to add up.
        world = self.accelerator.num_processes if config.shard_steps else 1
        if world == 1:
            return found
        return replace(
            found,
            pixels=world * found.pixels,
            targets=None if found.targets is None else world * found.targets,
        )


def _check_parts(config: AdjointConfig, model: FlatModel) -> None:
    """Raise a `ValueError` where a student that sees whole batches would be shown parts of them."""
    parts = {"micro_batch_size": config.micro_batch_size is not None, "shard_steps": config.shard_steps}
    given = [flag for flag, value in parts.items() if value]
    if given and model.sees_batches:
        raise ValueError(
            f"--{given[0]} shows the images of a step in parts, and the experts have BatchNorm, which makes what the "
            "student says of one depend on all the others; leave it out, or use experts with another normalisation"
        )
