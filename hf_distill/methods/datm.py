"""DATM: trajectory matching with learned labels, from epochs as hard as the set is large (Guo et al., ICLR 2024,
arXiv:2310.05773).

The loss is MTT's (see `methods.trajectory`), by the sweep of TESLA (`methods.adjoint`). Few images can teach what
experts learn early, many can teach what they learn late; so start epochs come from a window that has a lower end too,
and that grows:

    s ~ U{T⁻, …, T(i) − 1},   T(i) = min(T⁺, T₀ + ⌊(T⁺ − T₀) i / E⌋)

Labels are logits Z, learned with the images, and the loss of the student is CE(f(θ; x), softmax(Z)). They start from
what experts with their last parameters θ_e say of real images, those images that the first of them classifies right:

    Z_n = mean of f(θ_e; x_n) over the experts e that classify x_n right

An iteration whose L is above a limit changes nothing: neither images, labels and β nor their momentum.

    symbol   name                      meaning
    T⁻       min_start_epoch           the first start epoch
    T₀       first_max_start_epoch     the end of the window in iteration 0; T⁺ throughout if not given
    T⁺       max_start_epoch           its end from iteration E on
    E        growing_steps             iterations over which it grows
    Z        soft_labels               (N, K) logits; the classes with `--label hard`
    -        max_loss                  the limit of L, none if not given

The sweep gives ∂L/∂Z beside ∂L/∂X, in the memory of one student step. What is tested of a student is the running mean
of its parameters: protocols `datm` and `datm-995`.

Differs from the paper, beside what `methods.trajectory` lists:
- The memory does not grow with T: the paper differentiates all T steps at once.
- An image that no expert classifies right starts with the mean logits of all; the log says how many there are.
- What is published and trained on are the labels in float16, as a file holds them.
- With `--label hard` images start as those of MTT do, for there are no labels that some expert has to know.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import HfArg, check_at_least, check_choice
from ..data.images import Outline
from ..distilled.distilled_set import DistilledSet
from ..distilled.labels import TeacherLabels
from ..engine.rows import RowSGD
from ..hub.cards import Paper
from .adjoint import AdjointConfig, AdjointMatching
from .unroll import MatchingGradient, Student

LR_Y = 2.0  # of learned labels, where none is given
LOGIT_LIMIT = 6e4  # of learned labels: float16 ends a little above
DECLINED_STEPS = 20  # iterations that change nothing, one after another, are worth a word

logger = logging.getLogger(__name__)


def window_end(step: int, first: int, last: int, steps: int) -> int:
    """T of an iteration, from 0: the end of a window that grows from `first` to `last` over so many `steps`."""
    return min(last, first + (last - first) * step // steps)


def logit_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, K) with the softmax of targets (B, K), which are logits too."""
    return F.cross_entropy(logits, targets.softmax(dim=1))


def mean_where_right(answers: Iterable[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean logits of the networks that classify an image right; of all of them, where none does.

    Args:
        answers: Logits (N, K) of each network; no more than one is held at a time.
        labels: (N,) classes.

    Returns:
        Logits (N, K), and the networks (N,) that are right.
    """
    total, of_right, right, count = 0.0, 0.0, torch.zeros_like(labels), 0
    for logits in answers:
        knows = logits.argmax(dim=1) == labels
        total = total + logits
        of_right = of_right + logits * knows[:, None]
        right, count = right + knows, count + 1
    return torch.where(right[:, None] > 0, of_right / right[:, None].clamp(min=1), total / count), right


@dataclass
class DATMConfig(AdjointConfig):
    """Hyper-parameters of DATM.

    Example:
        >>> config = hd.DATMConfig(ipc=10, first_max_start_epoch=10, max_start_epoch=20, growing_steps=1000)
        >>> config.expert_epochs_needed, config.lr_y
        (21, 2.0)
    """

    min_start_epoch: int = HfArg(default=0, help="The student starts from no earlier epoch of an expert.")
    first_max_start_epoch: int | None = HfArg(
        default=None, help="Where --max_start_epoch begins, for start epochs that come one by one; there if not given."
    )
    growing_steps: int | None = HfArg(
        default=None, help="Iterations that --first_max_start_epoch takes to become --max_start_epoch."
    )
    label: str = HfArg(
        default="learned",
        help="learned: logits, which start from what experts say and are published; hard: the classes.",
    )
    lr_y: float | None = HfArg(default=None, help="Learning rate of learned labels; 2 if not given.")
    mom_y: float = HfArg(default=0.9, help="Momentum of learned labels.")
    max_loss: float | None = HfArg(
        default=None, help="An iteration whose loss is above this changes nothing; none is left out if not given."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("label", self.label, ("learned", "hard"))
        self._check_window()
        check_at_least("lr_y", self.lr_y, 0)
        check_at_least("mom_y", self.mom_y, 0)
        if self.mom_y > 1:
            raise ValueError(f"--mom_y is {self.mom_y}; expected a number from 0 to 1")
        if self.label == "hard" and self.lr_y is not None:
            raise ValueError(
                f"--lr_y is {self.lr_y} and --label is hard, which learns no labels; leave it out (--lr_y none where a "
                "preset has it), or give --label learned"
            )
        if self.label == "learned":
            self.lr_y = LR_Y if self.lr_y is None else self.lr_y
            if self.init != "real":
                raise ValueError(
                    f"--init is {self.init}, and learned labels start from what experts say of real images; give "
                    "--init real, or --label hard"
                )
        if self.max_loss is not None and not 0 < self.max_loss < math.inf:
            raise ValueError(
                f"--max_loss is {self.max_loss}; expected a number above 0, such as 1, where a student came no closer "
                "to the expert than it started; leave it out for no limit"
            )

    def _check_window(self) -> None:
        """Raise a `ValueError` unless there is a start epoch in every iteration."""
        first, growing, low, high = (
            getattr(self, flag)
            for flag in ("first_max_start_epoch", "growing_steps", "min_start_epoch", "max_start_epoch")
        )
        check_at_least("min_start_epoch", low, 0)
        check_at_least("growing_steps", growing, 1)
        if low >= high:
            raise ValueError(
                f"--min_start_epoch is {low} and --max_start_epoch {high}, so no epoch is left to start from; expected "
                "a smaller --min_start_epoch"
            )
        if growing is not None and first is None:
            raise ValueError(
                f"--growing_steps is {growing} and nothing grows; give --first_max_start_epoch, or leave it out"
            )
        if first is None:
            return
        if growing is None:
            raise ValueError(
                f"--first_max_start_epoch is {first} and nothing says when it is --max_start_epoch ({high}); give "
                "--growing_steps, such as 1000, or leave it out"
            )
        if not low < first <= high:
            raise ValueError(
                f"--first_max_start_epoch is {first}; expected above --min_start_epoch ({low}), and at most "
                f"--max_start_epoch ({high})"
            )


class DATM(AdjointMatching):
    """Trajectory matching with learned labels, from start epochs in a window that grows.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "num_experts": 1, "expert_train_epochs": 2}
        >>> path = {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "max_steps": 1, "select": "last"}
        >>> distilled = hd.DATM.distill(train, ipc=1, disable_tqdm=True, **net, **path)
        >>> distilled.pixel_values.shape, distilled.soft_labels.shape
        (torch.Size([10, 1, 8, 8]), torch.Size([10, 10]))
    """

    config_class = DATMConfig
    config: DATMConfig
    _labels: RowSGD
    _declined: int = 0  # iterations that changed nothing, one after another
    paper = Paper(
        title="Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching",
        authors="Ziyao Guo, Kai Wang, George Cazenavette, Hui Li, Kaipeng Zhang, Yang You",
        year=2024,
        arxiv_id="2310.05773",
        bibtex="""@inproceedings{guo2024datm,
  title={Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching},
  author={Guo, Ziyao and Wang, Kai and Cazenavette, George and Li, Hui and Zhang, Kaipeng and You, Yang},
  booktitle={International Conference on Learning Representations},
  year={2024}
}""",
    )

    @property
    def learns_labels(self) -> bool:
        """As `AdjointMatching.learns_labels`."""
        return self.config.label == "learned"

    @classmethod
    def shortened(cls, config: DATMConfig, train: Outline) -> tuple[DATMConfig, float]:
        """As `TrajectoryMatching.shortened`, unless labels are learned, which start from real images."""
        return (config, 1.0) if config.label == "learned" else super().shortened(config, train)

    def _student(self) -> Student:
        student = super()._student()
        return replace(student, loss=logit_cross_entropy) if self.learns_labels else student

    def setup(self) -> DistilledSet:
        """As `TrajectoryMatching.setup`; and logits of the images, with an SGD of their own."""
        distilled = super().setup()
        if self.learns_labels:
            distilled.soft_labels = nn.Parameter(self.initial_labels(distilled))
            self._labels = RowSGD(distilled.soft_labels, lr=self.config.lr_y, momentum=self.config.mom_y)
            self.optimizers.append(self._labels)
        return distilled

    def initial_images(self, label: int, teacher: TeacherLabels | None) -> Tensor:
        """As `TrajectoryMatching.initial_images`; with learned labels those that the first expert gets right."""
        return super().initial_images(label, self._first_expert if self.learns_labels else None)

    def initial_labels(self, distilled: DistilledSet) -> Tensor:
        """Logits (N, K) float32: the mean of those experts, after their last epoch, that classify an image right."""
        pixels, labels = distilled.pixel_values.detach(), distilled.labels
        experts = map(self._expert, range(self.experts.num_experts))
        logits, right = mean_where_right((each(pixels, labels, torch.arange(len(labels))) for each in experts), labels)
        if unknown := int((right == 0).sum()):
            logger.warning(
                "no expert classifies %d of the %d images right that the set starts from: their labels start from the "
                "mean of all experts; train the experts for longer (--expert_train_epochs)",
                unknown,
                len(labels),
            )
        return logits

    @cached_property
    def _first_expert(self) -> TeacherLabels:
        return self._expert(0)

    def _expert(self, number: int) -> TeacherLabels:
        """An expert after its last stored epoch."""
        last = self.experts.row(number, self.experts.num_epochs)
        return TeacherLabels(self.experts.spec, last).to(self.device)

    def window(self, draw: int) -> tuple[int, int]:
        """As `TrajectoryMatching.window`."""
        config, end = self.config, self.config.max_start_epoch
        if config.first_max_start_epoch is not None and config.growing_steps is not None:
            step = draw // self.draws_per_step
            end = window_end(step, config.first_max_start_epoch, end, config.growing_steps)
        return config.min_start_epoch, end

    def begin(self, step: int) -> None:
        """As `TrajectoryMatching.begin`."""
        super().begin(step)
        if self.learns_labels:
            self._labels.begin(self._pixels.rows)

    def labels_of(self, rows: Tensor) -> Tensor:
        """As `TrajectoryMatching.labels_of`: logits (R, K), or classes (R,)."""
        logits = self.distilled.soft_labels
        return super().labels_of(rows) if logits is None else logits.detach()[rows]

    def add(self, rows: Tensor, gradients: MatchingGradient) -> None:
        """As `TrajectoryMatching.add`, for the logits too."""
        super().add(rows, gradients)
        if gradients.targets is not None:
            self._labels.add(rows, gradients.targets)

    def current(self) -> DistilledSet:
        """As `TrajectoryMatching.current`; of labels too, which are behind where the images are."""
        found = super().current()
        if self.learns_labels and found is not self.distilled:
            found.soft_labels = nn.Parameter(self._labels.now())
        return found

    def foreseen(self) -> dict[str, Tensor]:
        """As `TrajectoryMatching.foreseen`; and "logit", the largest of the labels."""
        logits = self.distilled.soft_labels
        found = super().foreseen()
        return found if logits is None else {**found, "logit": torch.linalg.vector_norm(logits.detach(), math.inf)}

    def objection(self, values: dict[str, float]) -> str | None:
        """As `TrajectoryMatching.objection`, and labels that float16 could not hold."""
        problem = super().objection(values)
        if problem is None and values.get("logit", 0) > LOGIT_LIMIT:
            return f"a logit of the labels is {values['logit']:.4g}, and a file holds at most {LOGIT_LIMIT:g}"
        return problem

    def declines(self, values: dict[str, float]) -> bool:
        """As `Distiller.declines`: a loss above `max_loss`; one that is no number is objected to."""
        limit, loss = self.config.max_loss, values["loss"]
        declined = limit is not None and limit < loss < math.inf
        self._declined = self._declined + 1 if declined else 0
        if self._declined == DECLINED_STEPS:
            logger.warning(
                "the loss has been above --max_loss (%g) for %d steps, and nothing is learned: lower --lr_init (%g) or "
                "--syn_steps (%d), or raise --max_loss",
                limit,
                DECLINED_STEPS,
                self.config.lr_init,
                self.config.syn_steps,
            )
        return declined
