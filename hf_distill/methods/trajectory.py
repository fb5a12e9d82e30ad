"""What MTT, TESLA and DATM share: imitate a stretch of an expert's training with a few synthetic images.

Each draw takes an expert, a start epoch s and T batches of synthetic images; a student goes T steps from the expert's
parameters after s epochs, and should arrive where the expert was M epochs later:

    θ_0 = expert[s],  θ* = expert[s + M],  L = ‖θ_T − θ*‖² / ‖θ_0 − θ*‖²

    symbol      name                          symbol   name
    X           distilled.pixel_values        T        syn_steps (steps of the student)
    β           distilled.lr                  M        expert_epochs (epochs of the expert)
    |I_i|       batch_syn                     s        below max_start_epoch, out of `TrajectoryMatching.window`

How ∂L/∂X and ∂L/∂β come about is the method's business: `TrajectoryMatching.matching_gradient`.

Differs from the authors' code of both papers:
- β is kept at or above a hundredth of where it began, and cannot become negative.
- Everything random is a function of (seed, draw), where they re-seed from the wall clock; so runs resume exactly.
- The best step is selected on held-out training images, where they select on test.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from ..augmentation.dsa import DSA
from ..config import HfArg, LoopConfig, check_at_least
from ..data.ahead import ReadAhead
from ..data.images import Outline, RealImages
from ..data.upload import upload
from ..distilled.distilled_set import DistilledSet
from ..distilled.labels import TeacherLabels
from ..engine.loop import Distiller
from ..engine.method import Preparation
from ..engine.rows import RowSGD
from ..networks.compiling import in_precision
from ..networks.teachers import Teacher
from ..networks.trajectories import ExpertTrajectories
from ..rng import generator
from ..runs.rehearsal import Ledger, Stage
from ..training.experts import (
    ExpertConfig,
    UntrainedExperts,
    check_experts,
    experts_folder,
    rehearse_experts,
    train_experts,
)
from .unroll import MatchingGradient, Student, StudentStep

LR_LIMIT = 100.0  # a learned learning rate stays above its first value / this, and has diverged beyond this times it
FLOOR_STEPS = 20  # at that lower end, one after another, are worth a word

logger = logging.getLogger(__name__)


@dataclass
class TrajectoryConfig(LoopConfig):
    """Hyper-parameters of trajectory matching, under the names that the papers' code gives them."""

    syn_steps: int = HfArg(default=30, help="Steps of the student on synthetic images (T).")
    expert_epochs: int = HfArg(default=2, help="Epochs of the expert that these steps should amount to (M).")
    max_start_epoch: int = HfArg(default=20, help="The student starts from an expert's epoch below this.")
    batch_syn: int | None = HfArg(default=None, help="Synthetic images per step of the student; all if not given.")
    lr_img: float = HfArg(default=100.0, help="Learning rate of the pixels.")
    lr_lr: float = HfArg(default=1e-5, help="Learning rate of the student's learning rate.")
    lr_init: float = HfArg(default=0.01, help="The student's learning rate at the beginning.")
    mom_img: float = HfArg(default=0.5, help="Momentum of both updates.")
    syn_momentum: float = HfArg(default=0.0, help="Momentum of the student's SGD inside the unroll.")
    syn_weight_decay: float = HfArg(default=0.0, help="Weight decay of the student's SGD inside the unroll.")
    dsa: bool = HfArg(default=True, help="Augment the student's batches as the experts' were (--dsa_strategy).")

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag in ("syn_steps", "expert_epochs", "max_start_epoch", "batch_syn"):
            check_at_least(flag, getattr(self, flag), 1)
        for flag in ("lr_img", "lr_lr", "mom_img", "syn_momentum", "syn_weight_decay"):
            check_at_least(flag, getattr(self, flag), 0)
        if self.mom_img > 1:
            raise ValueError(f"--mom_img is {self.mom_img}; expected a number from 0 to 1")
        if not 0 < self.lr_init < math.inf:
            raise ValueError(f"--lr_init is {self.lr_init}; expected a learning rate above 0")

    @property
    def expert_epochs_needed(self) -> int:
        """The number of epochs of an expert that can ever be read."""
        return self.max_start_epoch - 1 + self.expert_epochs


@dataclass(frozen=True)
class _Draw:
    """What is known of a draw before it is computed, all on the host.

    Attributes:
        epoch: s.
        start: θ_0 (P,).
        target: θ* (P,).
        taken: The rows of the set that the steps take, distinct and in ascending order; of a shard, also those of the
            others.
        rows: (R,), those out of `taken` that this process shows to the student.
        steps: T steps, whose rows point into `rows`.
    """

    epoch: int
    start: Tensor
    target: Tensor
    taken: Tensor
    rows: Tensor
    steps: list[StudentStep]


class TrajectoryMatching(Distiller):
    """The draw, the schedule and the wiring; a subclass says how to differentiate and with which labels.

    Args:
        config: A `TrajectoryConfig`.
        train: The images to distil.
        experts: Trained on `train`, with at least `config.expert_epochs_needed` epochs.
        kwargs: See `Method`.

    Raises:
        ValueError: The experts are of other data, or hold too few epochs; or as `check`.
    """

    config: TrajectoryConfig
    learns_from = (ExpertConfig,)
    learns_experts = True
    experts: ExpertTrajectories

    def __init__(
        self, config: TrajectoryConfig, train: RealImages, *, experts: ExpertTrajectories, **kwargs: Any
    ) -> None:
        super().__init__(config, train, **kwargs)
        experts.check_matches(train)
        if experts.flat_model().sees_batches:
            self._check_baselines(config, experts=False, network=False)
        if experts.num_epochs < config.expert_epochs_needed:
            raise ValueError(
                f"the experts hold {experts.num_epochs} epochs and --max_start_epoch {config.max_start_epoch} with "
                f"--expert_epochs {config.expert_epochs} reads {config.expert_epochs_needed}; lower one of the two, "
                "or train the experts for longer"
            )
        self.experts = experts
        strategy = experts.config["training"]["dsa_strategy"] if config.dsa else ""
        self.dsa = DSA(strategy)
        # What is trained on the set sees the augmentation that the set was made under.
        self.protocol = self.protocol.with_augmentation(strategy)
        self.student = self._student()
        self._next = config.lr_init  # β after the step that `objection` has last looked at
        self._at_floor = 0
        self._drawn: dict[int, _Draw] = {}
        self._ahead = ReadAhead(self._draws_of)

    @classmethod
    def check(
        cls, config: TrajectoryConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()
    ) -> None:
        """As `Method.check`; trajectories are not matched in fp16, and experts can be trained, for long enough."""
        super().check(config, train, accelerator, networks)
        if accelerator.mixed_precision == "fp16":
            raise ValueError(
                "--mixed_precision fp16 loses small gradients of gradients, and scaling the loss does not reach them; "
                "use bf16 or no"
            )
        for settings in networks:
            epochs = settings.expert_train_epochs
            if settings.experts is None and epochs is not None and epochs < config.expert_epochs_needed:
                raise ValueError(
                    f"--expert_train_epochs is {epochs}, and --max_start_epoch {config.max_start_epoch} with "
                    f"--expert_epochs {config.expert_epochs} reads {config.expert_epochs_needed}; leave it out, or "
                    "raise it"
                )
            if check_experts(settings, train, accelerator).sees_batches:
                cls._check_baselines(config, experts=False, network=False)

    @classmethod
    def learn(cls, having: Preparation) -> dict[str, Any]:
        """The experts that are named, or else those of these settings, of which the lacking ones are trained."""
        (settings,), config = having.networks, having.config
        experts = train_experts(
            having.train,
            settings,
            experts_folder(having.train, settings, config.seed),
            epochs=settings.expert_train_epochs or config.expert_epochs_needed,
            test=having.test,
            **having.options,
        )
        return {"experts": experts}

    @classmethod
    def untrained(cls, having: Preparation) -> dict[str, Any]:
        """As `Method.untrained`: experts, which are read where they are a folder."""
        (settings,), config = having.networks, having.config
        if settings.experts is not None and Path(settings.experts).is_dir():
            return {"experts": ExpertTrajectories.from_pretrained(settings.experts)}
        epochs = settings.expert_train_epochs or config.expert_epochs_needed
        return {"experts": UntrainedExperts(having.train, settings, epochs)}

    @classmethod
    def rehearse_learning(cls, having: Preparation, ledger: Ledger) -> tuple[list[Stage], dict[str, int]]:
        """As `Method.rehearse_learning`: experts, where none are named."""
        (settings,), config = having.networks, having.config
        if settings.experts is not None:
            return [], {}
        epochs = settings.expert_train_epochs or config.expert_epochs_needed
        return rehearse_experts(having.train, settings, epochs, config.seed, having.accelerator, ledger)

    @classmethod
    def shortened(cls, config: TrajectoryConfig, train: Outline) -> tuple[TrajectoryConfig, float]:
        """As `Method.shortened`: from noise, which no network looks at."""
        return replace(config, init="noise"), 1.0

    def learned_from(self) -> Sequence[ExpertTrajectories]:
        """The experts."""
        return [self.experts]

    def _student(self) -> Student:
        model = self.experts.flat_model().for_second_derivatives().to(self.device)
        logits = in_precision(model, self.accelerator)  # parameters stay float32
        return Student(logits, F.cross_entropy, self.config.syn_momentum, self.config.syn_weight_decay)

    @abstractmethod
    def matching_gradient(
        self,
        start: Tensor,
        target: Tensor,
        pixels: Tensor,
        labels: Tensor,
        steps: Sequence[StudentStep],
        lr: Tensor,
    ) -> MatchingGradient:
        """L and its gradients for the images that the steps take.

        Args:
            start: θ_0 (P,).
            target: θ* (P,).
            pixels: (R, C, H, W), the images that at least one step takes.
            labels: What `labels_of` has for them: their classes (R,), for most methods.
            steps: T steps with rows into `pixels`, and augmentations on the host.
            lr: β, a scalar.
        """

    def teacher(self) -> TeacherLabels | None:
        """The networks that label the published images; None for hard labels."""
        return None

    def guide(self) -> Teacher | None:
        """The first expert after its last epoch; None with BatchNorm, whose running statistics are not stored."""
        return None if self.experts.flat_model().sees_batches else Teacher.from_expert(self.experts, 0)

    def setup(self) -> DistilledSet:
        """Images from train or noise, class by class, and SGD with momentum on the pixels and on β."""
        config, train = self.config, self.train
        labels = torch.arange(train.num_classes).repeat_interleave(config.ipc)
        teacher = self.teacher()
        if config.init == "real":
            pixels = torch.cat([self.initial_images(label, teacher) for label in range(train.num_classes)])
        else:
            pixels = torch.randn((len(labels), *train.shape), generator=generator(config.seed, "init"))
        origin = self.experts.origin
        distilled = DistilledSet(
            pixels,
            labels,
            train.class_names,
            train.preprocessing,
            lr=config.lr_init,
            teacher=teacher,
            config={
                "student": self.experts.spec.to_dict(),
                "dsa_strategy": self.dsa.strategy,
                "experts": {
                    "source": origin.repo_id if origin else self.experts.folder.name,
                    "revision": origin.revision if origin else None,
                    "num_experts": self.experts.num_experts,
                    "num_epochs": self.experts.num_epochs,
                    "training": self.experts.config["training"],
                },
            },
        ).to(self.device)
        self._pixels = RowSGD(distilled.pixel_values, lr=config.lr_img, momentum=config.mom_img)
        self.optimizers = [self._pixels, torch.optim.SGD([distilled.lr], lr=config.lr_lr, momentum=config.mom_img)]
        return distilled

    def identity(self) -> dict[str, Any]:
        """Beside the data, the student, its augmentation, and the experts, wherever they lie."""
        config = self.distilled.config
        return {
            **super().identity(),
            "student": config["student"],
            "dsa_strategy": config["dsa_strategy"],
            "experts": {name: value for name, value in config["experts"].items() if name != "source"},
        }

    def current(self) -> DistilledSet:
        """As `Distiller.current`: with all images where they are now, also those that no step has lately taken."""
        return self.distilled.with_pixels(self._pixels.now()) if self._pixels.is_behind else self.distilled

    def foreseen(self) -> dict[str, Tensor]:
        """As `Distiller.foreseen`; and "lr", β after the step of its optimizer, SGD with momentum."""
        lr, optimizer = self.distilled.lr, self.optimizers[1]
        velocity = optimizer.state.get(lr, {}).get("momentum_buffer")
        step = lr.grad if velocity is None else self.config.mom_img * velocity + lr.grad
        return {**super().foreseen(), "lr": lr.detach() - optimizer.param_groups[0]["lr"] * step}

    def objection(self, values: dict[str, float]) -> str | None:
        """As `Distiller.objection`, and a β that the step would take too far from where it began."""
        problem = super().objection(values)
        self._next = values["lr"]
        if problem is None and not self._next <= LR_LIMIT * self.config.lr_init:
            return f"the learned learning rate went from {self.distilled.lr.item():.4g} to {self._next:.4g}"
        return problem

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep β at or above its first value / `LR_LIMIT`: with less, a student stands still and teaches nothing."""
        lr, floor = self.distilled.lr, self.config.lr_init / LR_LIMIT
        lr.clamp_(min=floor)
        self._at_floor = self._at_floor + 1 if self._next <= floor else 0
        if self._at_floor == FLOOR_STEPS:
            logger.warning(
                "the learned learning rate has been at its lower end, %.4g, for %d steps and learns nothing there; "
                "lower --lr_lr (%g), or begin at another --lr_init (%g)",
                floor,
                FLOOR_STEPS,
                self.config.lr_lr,
                self.config.lr_init,
            )

    def upgraded(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `Distiller.upgraded`: log β was learned once, with its velocity in the unit of ∂L/∂log β = β ∂L/∂β."""
        if "set.log_lr" not in tensors:
            return tensors
        logger.warning("the checkpoint is of a run that learned the logarithm of the learning rate; this one learns it")
        old = {f"{part}.log_lr" for part in ("set", "best")} & tensors.keys()
        rates = {key.replace("log_lr", "lr"): tensors[key].exp() for key in old}
        velocity = {key: tensors[key] / rates["set.lr"] for key in {"optimizer.1.momentum_buffer"} & tensors.keys()}
        return {key: value for key, value in tensors.items() if key not in old} | rates | velocity

    def advice(self) -> str:
        """Lower rates, or other experts."""
        return f"{super().advice()}, or use other expert segments"

    def observed(self) -> dict[str, float]:
        """β."""
        return {"student_lr": self.distilled.lr.item()}

    def segment(self, draw: int) -> tuple[int, int]:
        """The expert and the start epoch of a draw: experts in shuffled rounds, start epochs uniform."""
        seed, count = self.config.seed, self.experts.num_experts
        order = torch.randperm(count, generator=generator(seed, "experts", draw // count))
        start = torch.randint(*self.window(draw), (1,), generator=generator(seed, "start", draw))
        return int(order[draw % count]), int(start)

    def window(self, draw: int) -> tuple[int, int]:
        """The first start epoch that a draw may have, and the one behind the last."""
        return 0, self.config.max_start_epoch

    def labels_of(self, rows: Tensor) -> Tensor:
        """What the set has for labels of some rows (R,), on the device, as `matching_gradient` takes it."""
        return self.distilled.labels[rows]

    def add(self, rows: Tensor, gradients: MatchingGradient) -> None:
        """Add gradients of one draw, with respect to rows (R,) on the host and to β, to those of this step."""
        self._pixels.add(rows, gradients.pixels)
        self.distilled.lr.grad += gradients.lr

    def part(self, batch: int) -> slice:
        """The places of a batch of a step whose images this process shows to the student: all of them."""
        return slice(0, batch)

    def schedule(self, draw: int) -> tuple[Tensor, Tensor, list[StudentStep]]:
        """Which images the T steps of a draw take: blocks of a permutation, a new one when it is used up.

        Returns:
            All rows of the set that the steps take, distinct and in ascending order; those of them that this process
            shows to the student; and the steps, whose rows point into the latter. All on the host.
        """
        config, count = self.config, len(self.distilled)
        size = min(config.batch_syn or count, count)
        random = generator(config.seed, "schedule", draw)
        blocks: list[Tensor] = []
        while lacking := config.syn_steps - len(blocks):
            blocks += torch.randperm(count, generator=random)[: lacking * size].split(size)
        parts = [self.part(len(block)) for block in blocks]
        own = [block[part] for block, part in zip(blocks, parts, strict=True)]
        rows, where = torch.cat(own).unique(return_inverse=True)
        steps = []
        for i, places in enumerate(where.split([len(some) for some in own])):
            augment = self.dsa.sample(len(blocks[i]), generator(config.seed, "dsa", draw, i), self.train.shape[1:])
            steps.append(StudentStep(places, augment[parts[i]], len(blocks[i])))
        return torch.cat(blocks).unique(), rows, steps

    def _draw(self, draw: int) -> _Draw:
        """All of a draw that is read or drawn.

        Raises:
            ValueError: The expert stood still between start and target, where L has no meaning.
        """
        expert, epoch = self.segment(draw)
        start, target = self.experts.segment(expert, epoch, self.config.expert_epochs)
        if torch.equal(start, target):  # here, where they are on the host, and not where the device would be waited for
            raise ValueError(
                f"the parameters of expert {expert} are the same after {epoch} and {epoch + self.config.expert_epochs} "
                "epochs; expected a segment over which it moves: check how the experts were trained"
            )
        return _Draw(epoch, start, target, *self.schedule(draw))

    def _draws_of(self, steps: Tensor) -> tuple[dict[int, _Draw], Tensor]:
        """The draws of this process in a step (1,), and all rows that it takes, those of other processes too."""
        step = int(steps)
        own = {draw: self._draw(draw) for draw in self.draws(step)}
        everybodys = range(step * self.draws_per_step, (step + 1) * self.draws_per_step)
        taken = [own[draw].taken if draw in own else self.schedule(draw)[0] for draw in everybodys]
        return own, taken[0] if len(taken) == 1 else torch.cat(taken).unique()

    def begin(self, step: int) -> None:
        """Take what was read ahead for this step, and begin to read what the next one needs.

        Raises:
            ValueError: An expert stood still between start and target, where L has no meaning.
        """
        this, following = torch.arange(step, step + 2).split(1)
        self._drawn, taken = self._ahead(this)
        if step + 1 < self.config.max_steps:
            self._ahead.expect(following)
        self._pixels.begin(taken)

    def step(self, draw: int) -> dict[str, float | Tensor]:
        """Add ∂L/∂X and ∂L/∂β of one draw, out of those that `begin` took, to the gradients."""
        drawn = self._drawn.pop(draw)
        start, target, rows, places = (
            upload(values, self.device)
            for values in (drawn.start, drawn.target, drawn.rows, torch.cat([step.rows for step in drawn.steps]))
        )
        each = places.split([len(step.rows) for step in drawn.steps])
        steps = [replace(step, rows=rows) for step, rows in zip(drawn.steps, each, strict=True)]
        images = self.distilled.pixel_values.detach()[rows]
        gradients = self.matching_gradient(
            start, target, images, self.labels_of(rows), steps, self.distilled.lr.detach()
        )
        self.add(drawn.rows, gradients)
        return {"loss": gradients.loss, "start_epoch": float(drawn.epoch)}

    def final_states(self, count: int) -> Tensor:
        """Parameters (m, P) of at most `count` experts, evenly spread over all, after their last stored epoch."""
        chosen = torch.linspace(0, self.experts.num_experts - 1, min(count, self.experts.num_experts)).round().long()
        return torch.stack([self.experts.row(int(i), self.experts.num_epochs) for i in chosen])

    def initial_images(self, label: int, teacher: TeacherLabels | None) -> Tensor:
        """Real images (ipc, C, H, W) of a class; with a teacher, of some more than needed those that it gets right."""
        count, available = self.config.ipc, len(self.train.class_rows(label))
        random = generator(self.config.seed, "init", label)
        if teacher is None:
            return self.train.sample(label, count, random)
        images = self.train.sample(label, min(available, 2 * count + 8), random)
        logits = teacher(images.to(self.device), torch.full((len(images),), label), torch.arange(len(images)))
        right = (logits.argmax(dim=1) == label).cpu()
        return images[right.logical_not().to(torch.uint8).argsort(stable=True)[:count]]
