"""APM: images on which students of the images disagree with a trained teacher (adversarial prediction matching).

Mingyang Chen and others, "Dataset Distillation via Adversarial Prediction Matching", arXiv:2312.08912. Images and
students take turns: students learn from the images what the teacher says of them, and the images move to where these
students and the teacher still disagree, while the teacher finds them likely for their class. For a group X of images:

    θ_1..θ_K = K states along one training on (A(X), f_T(X)) with the loss |f − f_T|    every `refresh_every` iterations
    L(X)     = −Σ_i d_i + α CE(f_T(X), y),      d_i = mean |f_T(X) − f_i(X)|
    v <- μ v + ∂L/∂X,   X <- X − η v

    symbol   name             meaning
    X        -                images of a group, all trained together and apart from the other groups
    |J|      batch_syn        images of a group at most
    f_T      teacher          trained network, frozen
    f_i      students         the student's network with its parameters θ_i, frozen, in evaluation mode
    K        num_students     states of the student, after epochs number E · i / K
    E        student_epochs   the last epoch of a student, of 0 to E; from number ⌊E/2⌋ + 1 on at a tenth of the rate
    d        -                the mean of absolute differences of logits, over images and classes
    α        alpha            weight of the teacher's cross-entropy
    y        labels           classes of the images
    A        dsa              augmentation of what the student is trained on; L is of plain images
    η, μ     lr_img, mom_img  of SGD on the images; η falls to 0.3 η after half of the iterations
    T        max_steps        iterations of a group

No gradient passes through the training of a student, so memory is that of one teacher and one student on as many images
as are looked at together (`segment_size`); this number changes the gradient by rounding alone. Each image is published
with the teacher's logits, and students are trained on them by the same loss as here.

Of a teacher of more classes than the data, students learn the logits of the data's classes, so d and the labels are of
these. CE is over all of its classes: it keeps images that move at their class, and not at the likeliest of a few.

Differs from the authors' code:
- The images of a group stay together from beginning to end. Theirs draws |J| of all N images in each iteration, and
  attacks them with students that were trained on others. With |J| = N (their "full") there is no difference. T counts
  what one group sees: for as many updates of an image as their T iterations give, it is T · |J| / N in the presets.
- `refresh_every` is the period, which in theirs is one more than its `mid_gap`.
- Where T is no multiple of the period, the students before it serve in the last iterations too. Theirs trains new ones
  for these few.
- T iterations are T, where theirs are T + 1.
- All students and the cross-entropy share one pass through the teacher and back; theirs goes through it K + 1 times.
- Everything random is a function of (seed, group, iteration). Labels are those of the first teacher; where there are
  several, a refresh draws one of them. Theirs takes the state with the best accuracy on test as its teacher.
"""

import copy
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..augmentation.dsa import DEFAULT_STRATEGY, DSA
from ..config import HfArg, OptimizedConfig, PathArg, check_at_least, check_choice
from ..data.images import Outline, RealImages
from ..data.precision import precision_of
from ..distilled.distilled_set import DistilledSet
from ..distilled.labels import NetworkLabels
from ..engine.blocks import Block, BlockDistiller
from ..engine.memory import largest_size, parse_bytes, peak_bytes
from ..engine.method import Preparation
from ..engine.shards import describe_shard
from ..evaluation.protocols import EvalProtocol
from ..evaluation.students import check_student, train_along
from ..hub.cards import Paper, human_bytes
from ..hub.checks import is_whole
from ..hub.files import load_json, save_json
from ..networks.architectures import StudentSpec, layout_for
from ..networks.compiling import compiled, forward, in_precision, refuse_fp16
from ..networks.teachers import Teacher, check_alike, expert_teachers
from ..rng import derive_seed, generator
from ..runs.processes import on_main
from ..runs.rehearsal import Ledger, Stage
from ..training.teachers import NamedTeachers, TeacherConfig, check_teachers, find_teachers

Network = Callable[[Tensor], Tensor]  # images (n, C, H, W) -> logits (n, K)

SEGMENT = "segment_size.json"
DECAY = 0.3
LARGEST = 1e6  # of a rate or a weight: what is larger is a slip, and far from the end of float32


def learning_rate(t: int, steps: int, lr: float) -> float:
    """η of iteration `t`: `lr` in the first half of `steps`, and 0.3 of it from then on."""
    return lr if 2 * t < steps else DECAY * lr


def kept_epochs(last: int, count: int) -> list[int]:
    """How many epochs a student has had when it is kept: `count` times, at even distances up to that of the `last`.

    Its epochs are 0 to E, the last, as in the authors' code, and it is kept after numbers E · i / K.
    """
    return [round(last * number / count) + 1 for number in range(1, count + 1)]


def refreshes(t: int, steps: int, period: int) -> bool:
    """True where new students are trained before iteration `t` of `steps`: once in each whole `period`, or at first."""
    return t % period == 0 and (t == 0 or t + period <= steps)


def groups(classes: int, ipc: int, size: int | None, seed: int) -> list[Tensor]:
    """Which rows of the set, class by class in it, are made together: groups of at most `size`, each ascending.

    They are cut out of random rounds through the classes, so that each has all classes about equally; and their sizes
    differ by one at most.
    """
    rounds = [torch.randperm(classes, generator=generator(seed, "groups", i)) * ipc + i for i in range(ipc)]
    order = torch.cat(rounds)
    parts = order.tensor_split(math.ceil(len(order) / (size or len(order))))
    return [part.sort().values for part in parts]


def segment_gradient(
    teacher: Network,
    students: Sequence[Network],
    x: Tensor,
    labels: Tensor,
    alpha: float,
    count: int,
    weight: float,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """∂L/∂X for some images of a group, and their part of L: one graph of the teacher, and of one student at a time.

    Each student gives a gradient with respect to the images and one with respect to the teacher's logits; the latter
    are added up, with that of the cross-entropy, and go back through the teacher at once.

    Args:
        teacher: f_T.
        students: f_1 to f_K.
        x: (n, C, H, W).
        labels: (n,) classes.
        alpha: α.
        count: |J|, images of the whole group.
        weight: Of each d_i: 1 for their sum, 1/K for their mean.
        rows: (C,) logits of a teacher of more classes that are those of the students; d_i is over them, the
            cross-entropy over all.

    Returns:
        The gradient (n, C, H, W); Σ weight · d_i and the cross-entropy, each times n / |J|.
    """
    x = x.detach().requires_grad_()
    share = len(x) / count
    logits = teacher(x).to(x.dtype)  # (n, K)
    at = logits.detach().requires_grad_()
    ce = share * F.cross_entropy(at, labels if rows is None else rows[labels])
    (upward,) = torch.autograd.grad(alpha * ce, at)  # ∂L/∂f_T(X), (n, K)
    gradient, apart = torch.zeros_like(x), torch.zeros_like(ce)
    for student in students:
        d = share * weight * F.l1_loss(student(x).to(x.dtype), at if rows is None else at[:, rows])
        to_images, to_logits = torch.autograd.grad(d, (x, at))
        gradient -= to_images
        upward = upward - to_logits
        apart += d.detach()
    (through_teacher,) = torch.autograd.grad(logits, x, upward)
    return gradient.add_(through_teacher), apart, ce.detach()


def group_gradient(
    teacher: Network,
    students: Sequence[Network],
    x: Tensor,
    labels: Tensor,
    alpha: float,
    *,
    segment_size: int | None = None,
    reduce: str = "sum",
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """∂L/∂X for a whole group, `segment_size` images at a time, as `segment_gradient` gives it.

    Args:
        reduce: "sum" or "mean" over the students.
    """
    weight = 1.0 if reduce == "sum" else 1 / len(students)
    size, count = segment_size or len(x), len(x)
    parts = zip(x.split(size), labels.split(size), strict=True)
    pieces = [segment_gradient(teacher, students, *part, alpha, count, weight, rows) for part in parts]
    gradients, apart, ce = zip(*pieces, strict=True)
    return torch.cat(gradients), torch.stack(apart).sum(), torch.stack(ce).sum()


@dataclass
class APMConfig(NamedTeachers, OptimizedConfig):
    """Hyper-parameters of APM; the defaults are those that all of the paper's settings share.

    Example:
        >>> hd.APMConfig(shard="2/8").part
        (2, 8)
    """

    teachers: list[str] | None = PathArg(
        default=None,
        help="Trained networks: folders, repositories, or timm:<name> for pretrained weights; a refresh draws one, and "
        "the first one labels. Without it, and without --experts: one that is trained here.",
    )
    experts: str | None = PathArg(
        default=None, help="Folder or repository of trained experts whose last states are the teachers."
    )
    max_steps: int = HfArg(default=2500, help="Iterations of each group.")
    batch_syn: int | None = HfArg(
        default=None, help="Images of a group, which knows nothing of the others; all in one group if not given."
    )
    lr_img: float = HfArg(default=1.0, help="Learning rate of the pixels; 0.3 of it in the second half.")
    mom_img: float = HfArg(default=0.5, help="Momentum of the pixels.")
    alpha: float = HfArg(default=0.1, help="Weight of the teacher's cross-entropy.")
    num_students: int = HfArg(default=5, help="States of the student that the images are to disagree with.")
    reduce_k: str = HfArg(default="sum", help="sum (the authors') or mean of their disagreements.")
    student_epochs: int = HfArg(default=250, help="Last epoch, from 0, of the student on the images of its group.")
    lr_net: float = HfArg(default=0.02, help="Its learning rate, also when students are evaluated.")
    student_net: str | None = HfArg(
        default=None, help="timm name of its network, such as convnet_d3; that of the teacher if not given."
    )
    batch_net: int = HfArg(default=256, help="Images per step of the student.")
    refresh_every: int = HfArg(default=3, help="Iterations between the beginnings of two students.")
    segment_size: int | None = HfArg(
        default=None, help="Images of a group that are looked at together: memory, and no other result."
    )
    memory_budget: str | None = HfArg(
        default=None, help="Choose --segment_size for so much memory, such as 6GB, by a short measurement."
    )
    shard: str | None = HfArg(
        default=None, help="i/n: only every n-th group from the i-th on; recipes/join.py puts n such runs together."
    )
    save_steps: int = HfArg(default=500, help="Iterations after which an unfinished group is kept, at the next refresh")
    eval_protocol: str = HfArg(default="apm", help="How students are trained on the set: apm, apm-600 or apm-quick.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("reduce_k", self.reduce_k, ("sum", "mean"))
        for flag in ("max_steps", "batch_syn", "num_students", "refresh_every", "segment_size", "save_steps"):
            check_at_least(flag, getattr(self, flag), 1)
        check_at_least("batch_net", self.batch_net, 2)
        for flag in ("lr_img", "alpha"):
            check_at_least(flag, getattr(self, flag), 0)
            if getattr(self, flag) > LARGEST:
                raise ValueError(f"--{flag} is {getattr(self, flag)}; expected a number up to {LARGEST:g}")
        if not 0 <= self.mom_img < 1:
            raise ValueError(f"--mom_img is {self.mom_img}; expected a number from 0, and below 1")
        if not 0 < self.lr_net <= LARGEST:
            raise ValueError(f"--lr_net is {self.lr_net}; expected a learning rate above 0, up to {LARGEST:g}")
        if self.student_epochs < self.num_students:
            raise ValueError(
                f"--student_epochs is {self.student_epochs} for --num_students {self.num_students}; expected an epoch "
                "for each of them"
            )
        for one, other in (("segment_size", "memory_budget"), ("teachers", "experts")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"--{one} and --{other} say the same in two ways; give one of them")
        if self.memory_budget is not None:
            parse_bytes("memory_budget", self.memory_budget)
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", self.shard or "1/1")
        if match is None or int(match[1]) > int(match[2]):
            raise ValueError(f"--shard is {self.shard!r}; expected i/n with i from 1 to n, such as 2/8")

    def check_shard(self) -> None:
        """Raise a `ValueError` for a shard that would train a teacher of its own."""
        if self.shard is not None and self.teachers is None and self.experts is None:
            raise ValueError(
                f"--shard {self.shard} without --teachers: all shards need one teacher; train it with "
                "recipes/teacher.py and the same --config, and give its folder or repository to each of them"
            )

    @property
    def part(self) -> tuple[int, int]:
        """i and n of the shard; 1 and 1 for all groups."""
        number, count = (self.shard or "1/1").split("/")
        return int(number), int(count)


def _named(config: APMConfig, train: Outline | RealImages) -> StudentSpec | None:
    """The student that the flags name."""
    if config.student_net is None:
        return None
    channels, height, width = train.shape
    return StudentSpec(config.student_net, train.num_classes, channels, (height, width))


def _columns(network: Network, rows: Tensor) -> Network:
    """The logits `rows` of a network."""
    return lambda images: network(images)[:, rows]


class APM(BlockDistiller):
    """Students are trained on the images of a group, and the images leave them.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "teacher_epochs": 1, "batch_train": 20}
        >>> along = {"max_steps": 1, "num_students": 2, "student_epochs": 2, "dsa_strategy": "none"}
        >>> hd.APM.distill(train, ipc=1, disable_tqdm=True, **net, **along).soft_labels.shape
        torch.Size([10, 10])

    Args:
        config: An `APMConfig`.
        train: The images to distil.
        teachers: Networks that know their classes, and perhaps others; the first one labels.
        student: What students are; if not given `config.student_net`, else the first teacher's architecture.
        dsa_strategy: Augmentation of what students see, here and when they are evaluated.
        kwargs: See `Method`.

    Raises:
        ValueError: A teacher lacks a class of `train`, takes other images, or has another preprocessing than the first;
            the student cannot take such images; there are fewer groups than shards.
    """

    learns_from = (TeacherConfig,)
    pixels = "float32"
    saving = ("segment_size",)
    trading = ("batch_net",)
    free = frozenset({"segment_size", "memory_budget"})  # they change the order of sums
    config_class = APMConfig
    config: APMConfig
    paper = Paper(
        title="Dataset Distillation via Adversarial Prediction Matching",
        authors="Mingyang Chen, Bo Huang, Junda Lu, Bing Li, Yi Wang, Minhao Cheng, Wei Wang",
        year=2023,
        arxiv_id="2312.08912",
        bibtex="""@article{chen2023apm,
  title={Dataset Distillation via Adversarial Prediction Matching},
  author={Chen, Mingyang and Huang, Bo and Lu, Junda and Li, Bing and Wang, Yi and Cheng, Minhao and Wang, Wei},
  journal={arXiv preprint arXiv:2312.08912},
  year={2023}
}""",
    )

    def __init__(
        self,
        config: APMConfig,
        train: RealImages,
        *,
        teachers: Sequence[Teacher],
        student: StudentSpec | None = None,
        dsa_strategy: str = DEFAULT_STRATEGY,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, train, **kwargs)
        if not teachers:
            raise ValueError("APM without a teacher has nothing to disagree with; give one")
        self._all = groups(train.num_classes, config.ipc, config.batch_syn, config.seed)
        self.teachers = [teacher.to(self.device) for teacher in teachers]
        self.preprocessing = self.teachers[0].preprocessing
        for teacher in self.teachers:
            teacher.check_input(train)
        check_alike(self.teachers)
        self.parts = [teacher.rows_of(train.class_names) for teacher in self.teachers]
        whole = [list(range(teacher.spec.num_classes)) for teacher in self.teachers]
        self.narrows = self.parts != whole  # where not, nothing is picked out
        self.logits_of = [torch.tensor(rows, device=self.device) if self.narrows else None for rows in self.parts]
        own = replace(self.teachers[0].spec, num_classes=train.num_classes)
        self.student = student or _named(config, train) or own
        check_student(self.student)
        self.strategy = DSA(dsa_strategy).strategy
        if not self.protocol.per_view:  # what is trained on the set sees the augmentation and rate that it was made for
            rates = dict.fromkeys((config.lr_net, *self.protocol.lrs))
            self.protocol = replace(self.protocol.with_augmentation(self.strategy), lrs=tuple(rates))
        self.training = EvalProtocol(
            "apm-student",
            epochs=config.student_epochs + 1,
            full_data_epochs=1,
            batch_size=config.batch_net,
            lrs=(config.lr_net,),
            dsa_strategy=self.strategy,
            reset_momentum=False,
            loss="l1",
        )
        self.segment_size = config.segment_size
        number, count = config.part
        self._own = list(enumerate(self._all))[number - 1 :: count]
        self.rows = torch.cat([rows for _, rows in self._own]).sort().values  # (R,) of the whole set

    @classmethod
    def check(cls, config: APMConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()) -> None:
        """As `Method.check`; there are as many groups as shards, and a student and a teacher can take the images."""
        super().check(config, train, accelerator, networks)
        refuse_fp16(accelerator, "APM")
        number, (_, count) = len(groups(train.num_classes, config.ipc, config.batch_syn, config.seed)), config.part
        if count > number:
            raise ValueError(
                f"--shard {config.shard} of {number} group(s); expected no more shards than groups: lower "
                "--batch_syn, or use fewer shards"
            )
        student = _named(config, train)
        if student is not None:
            check_student(student, flag="student_net")
        if config.experts is None:
            check_teachers(config, train, accelerator, networks)

    @classmethod
    def learn(cls, having: Preparation) -> dict[str, Any]:
        """The teachers that are named, or the last states of experts, or else a teacher that is trained here."""
        (settings,), config = having.networks, having.config
        config.check_shard()
        if config.experts is None:
            options = {"class_names": config.teacher_class_names, **having.options}
            teachers = find_teachers(config.teachers, having.train, having.test, settings, **options)
        else:
            teachers = expert_teachers(config.experts)
        return {"teachers": teachers, "dsa_strategy": settings.dsa_strategy}

    def learned_from(self) -> Sequence[Teacher]:
        """The teachers."""
        return self.teachers

    @classmethod
    def untrained(cls, having: Preparation) -> dict[str, Any]:
        """As `Method.untrained`: also the last states of experts."""
        (settings,), config = having.networks, having.config
        config.check_shard()
        if config.experts is not None and Path(config.experts).is_dir():
            return {"teachers": expert_teachers(config.experts), "dsa_strategy": settings.dsa_strategy}
        return {**super().untrained(having), "dsa_strategy": settings.dsa_strategy}

    # Groups

    def blocks(self) -> list[Block]:
        """The groups of this shard; their rows are those in it."""
        classes = self.rows // self.config.ipc
        places = [(number, torch.searchsorted(self.rows, rows)) for number, rows in self._own]
        return [Block(number, rows, classes[rows]) for number, rows in places]

    def identity(self) -> dict[str, Any]:
        """Beside the data: the teachers' weights, the student, its augmentation and its schedule."""
        return {
            **super().identity(),
            "teachers": [teacher.digest for teacher in self.teachers],
            **({"teacher_rows": self.parts} if self.narrows else {}),
            "student": self.student.to_dict(),
            "dsa_strategy": self.strategy,
            "student_schedule": self.student_schedule,
            **precision_of(self.accelerator),
        }

    @property
    def student_schedule(self) -> dict[str, Any]:
        """All that says how often and how students are trained, as JSON types: what no flag says among it."""
        steps, period = self.config.max_steps, self.config.refresh_every
        trained = sum(refreshes(t, steps, period) for t in range(steps))
        return {"students": trained, "epochs": self.training.epochs, **self.training.to_config()}

    def initial(self, block: Block) -> Tensor:
        """The images that a group starts from, (B, C, H, W) float32 on the device: different real images, or noise."""
        seed = self.config.seed
        if self.config.init == "noise":
            random = generator(seed, "init", block.number)
            return torch.randn((len(block.rows), *self.train.shape), generator=random).to(self.device)
        number = self.rows[block.rows] % self.config.ipc  # of the image in its class
        chosen = torch.empty_like(number)
        for label in block.labels.unique().tolist():
            rows, own = self.train.class_rows(label), block.labels == label
            order = torch.randperm(len(rows), generator=generator(seed, "init", label))
            chosen[own] = rows[order[number[own]]]
        return self.preprocessing(self.train.uint8(chosen)).to(self.device)

    # Memory

    def begin(self) -> None:
        """Choose the segment size for the budget; one process measures, and a run that is continued remembers."""
        if self.config.memory_budget is not None:
            self.segment_size = on_main(self.accelerator, self._choose)

    def _choose(self) -> int:
        path, budget = self.folder / SEGMENT, parse_bytes("memory_budget", self.config.memory_budget or "")
        known = load_json(path) if path.exists() else {}
        if known.get("memory_budget") != budget or not is_whole(known.get("segment_size")):
            try:
                known = {"memory_budget": budget, "segment_size": self.fitting_segment(budget)}
            except ValueError:
                if not any(self.folder.glob("*-0*")):  # neither blocks nor the beginning of one
                    shutil.rmtree(self.folder)  # so that the next try is no run that is continued
                raise
            save_json(path, known)
        return known["segment_size"]

    def fitting_segment(self, budget: int) -> int:
        """The most images of a group that can be looked at together within so many bytes.

        Raises:
            ValueError: Not one.
        """
        config, device, shape = self.config, self.device, self.train.shape
        most = max(len(rows) for _, rows in self._own)
        parameters = 4 * self.student.num_params()
        teachers = sum(teacher.held_bytes for teacher in self.teachers)
        # The images, their momentum and their gradient, networks, and the optimizer of a student.
        fixed = teachers + parameters * (config.num_students + 3) + 3 * 4 * most * math.prod(shape)
        student = self._frozen(self.student.build(0).to(device).eval())
        teacher = self._logits(self.teachers[0].folded)

        def look(count: int) -> None:
            x, labels = torch.zeros(count, *shape, device=device), torch.zeros(count, dtype=torch.long, device=device)
            segment_gradient(teacher, [student], x, labels, config.alpha, count, 1.0, self.logits_of[0])

        def train() -> None:
            count = min(config.batch_net, most)
            x, targets = (torch.zeros(count, *rest, device=device) for rest in (shape, (self.train.num_classes,)))
            list(self._train_along(x, targets, [1], 0))

        training = fixed + peak_bytes(train, device)
        size, one = largest_size(lambda count: peak_bytes(lambda: look(count), device), budget - fixed, most)
        if size < 1 or training > budget:
            raise ValueError(
                f"--memory_budget {config.memory_budget} is too little for groups of {most:,} images: training a "
                f"student in batches of {min(config.batch_net, most)} takes {human_bytes(training)}, and one image at "
                f"a time {human_bytes(fixed + one)}; give more than both, or lower --batch_net or --batch_syn"
            )
        return size

    # One group

    def rehearse(self, ledger: Ledger, held_out: RealImages, tested: RealImages) -> list[Stage]:
        """As `BlockDistiller.rehearse`: an epoch of a student, and an iteration of the images of a group."""
        config, device = self.config, self.device
        blocks = self.blocks()
        block = max(blocks, key=lambda each: len(each.rows))
        if config.memory_budget is not None:
            self.segment_size = self.fitting_segment(parse_bytes("memory_budget", config.memory_budget))
        x = torch.empty((len(block.rows), *self.train.shape), device=device)
        velocity, labels = torch.zeros_like(x), block.labels.to(device)
        teacher, rows = self._logits(self.teachers[0].folded), self.logits_of[0]
        known = teacher if rows is None else _columns(teacher, rows)
        ledger.forget()
        counts = [ledger.flop]
        with torch.no_grad():
            targets = torch.cat([known(part) for part in x.split(self.segment_size or len(x))])
        counts.append(ledger.flop)
        (student,) = self._train_along(x, targets, [1], 0)
        counts.append(ledger.flop)
        students = [self._frozen(copy.deepcopy(student)) for _ in range(config.num_students)]
        del student
        options: dict[str, Any] = {"segment_size": self.segment_size, "reduce": config.reduce_k, "rows": rows}
        gradient, _, _ = group_gradient(teacher, students, x, labels, config.alpha, **options)
        velocity.add_(gradient)
        counts.append(ledger.flop)
        asked, epoch, iteration = (after - before for before, after in pairwise(counts))
        trained = self.student_schedule["students"]
        flop = config.max_steps * iteration + trained * (asked + (config.student_epochs + 1) * epoch)
        count = sum(len(each.rows) for each in blocks)
        groups_of = f"{len(blocks):,} group{'s' * (len(blocks) > 1)} of {config.max_steps:,} iterations"
        words = f"{groups_of}, {trained} students each"
        stage = ledger.stage("distillation", flop * count / len(block.rows), words, parts=len(blocks))
        self.assembled(blocks)
        return [stage]

    def _logits(self, model: nn.Module) -> Network:
        look = in_precision(compiled(forward, self.accelerator), self.accelerator)
        layout = layout_for(model, self.device)
        return lambda images: look(model, images.contiguous(memory_format=layout))

    def _frozen(self, model: nn.Module) -> Network:
        return self._logits(model.requires_grad_(False))

    def train_students(self, x: Tensor, teacher: Network, seed: int) -> list[Network]:
        """f_1 to f_K: one student along its training on (A(X), f_T(X)), frozen."""
        config = self.config
        with torch.no_grad():
            targets = torch.cat([teacher(part) for part in x.split(self.segment_size or len(x))])
        epochs = kept_epochs(config.student_epochs, config.num_students)
        return [self._frozen(model) for model in self._train_along(x, targets, epochs, seed)]

    def _train_along(self, x: Tensor, targets: Tensor, epochs: Sequence[int], seed: int) -> Iterator[nn.Module]:
        rate, accelerator = self.config.lr_net, self.accelerator
        return train_along(x, targets, self.student, self.training, epochs, lr=rate, seed=seed, accelerator=accelerator)

    @property
    def iterations(self) -> int:
        """T."""
        return self.config.max_steps

    def make(self, block: Block, log: Callable[[int, dict[str, float]], None]) -> Tensor:
        """The images of a group after T iterations, (B, C, H, W) float32.

        It is kept where students begin anew, and goes on from there with those that it would have had.
        """
        config, period = self.config, self.config.refresh_every
        tensors, start = self.kept(block)
        x = tensors["x"].to(self.device) if tensors else self.initial(block)
        velocity = tensors["velocity"].to(self.device) if tensors else torch.zeros_like(x)
        labels, saved = block.labels.to(self.device), start
        students = []
        self.show(block, start, x)
        for t in range(start, config.max_steps):
            if not students or refreshes(t, config.max_steps, period):
                due = t - saved >= config.save_steps
                self.keep(block, t, lambda: {"x": x, "velocity": velocity}, due=due)
                saved = t if due else saved
                seed = derive_seed(config.seed, "student", block.number, t)
                drawn = int(torch.randint(len(self.teachers), (1,), generator=generator(seed, "teacher")))
                teacher, rows = self._logits(self.teachers[drawn].folded), self.logits_of[drawn]
                students = []  # those before it need not stay in memory while it is trained
                students = self.train_students(x, teacher if rows is None else _columns(teacher, rows), seed)
                self.keep(block, t, lambda: {"x": x, "velocity": velocity})  # their training takes long
            options = {"segment_size": self.segment_size, "reduce": config.reduce_k, "rows": rows}
            gradient, apart, ce = group_gradient(teacher, students, x, labels, config.alpha, **options)
            velocity.mul_(config.mom_img).add_(gradient)
            x.sub_(velocity, alpha=learning_rate(t, config.max_steps, config.lr_img))
            if (t + 1) % config.logging_steps == 0 or t + 1 == config.max_steps:
                values = {"disagreement": apart.item(), "ce": ce.item(), "largest": x.abs().max().item()}
                advice = f"lower --lr_img {config.lr_img:g}, --lr_net {config.lr_net:g} or --alpha {config.alpha:g}"
                self.check_finite(values, block, t + 1, advice)
                log(t + 1, values)
            self.show(block, t + 1, x)
        return x

    # The set

    def assemble(self, images: Tensor, labels: Tensor) -> DistilledSet:
        """The set with the logits of the first teacher, and with this teacher."""
        source = NetworkLabels(self.teachers[self.labelled_by].narrowed(self.train.class_names))
        logits = torch.empty(len(labels), self.train.num_classes, dtype=torch.float16)  # as they are stored
        for block in self.blocks():  # group by group, so that neither shards nor processes change a bit
            part = images[block.rows].to(self.device)
            logits[block.rows] = source(part, block.labels, block.rows).half().cpu()
        named = [{"network": teacher.spec.name, "digest": teacher.digest} for teacher in self.teachers]
        number, count = self.config.part
        total = self.config.ipc * self.train.num_classes
        return DistilledSet(
            images,
            labels,
            self.train.class_names,
            self.preprocessing,
            soft_labels=logits,
            teacher=source,
            config={
                "student": self.student.to_dict(),
                "teachers": named,
                "dsa_strategy": self.strategy,
                "student_schedule": self.student_schedule,
                "eval_lrs": list(self.protocol.lrs),
                "label_loss": self.training.loss,
                **precision_of(self.accelerator),
                **({} if self.config.shard is None else {"shard": describe_shard(number, count, total, self.rows)}),
            },
        )

    def _provenance(self) -> dict[str, Any]:
        about = super()._provenance()
        about["hyperparameters"].pop("shard")
        return about
