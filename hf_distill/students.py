"""Students: networks trained from scratch on a small set under a protocol, and tested.

A student is a function of its seed. Small ConvNets train side by side, as rows of one parameter matrix; anything else
that timm has trains one after another. What steps need of the host goes to the device in one copy for many steps of a
small set, from pinned memory, and nothing is read back before the end; there is no work per image in Python.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .augment import DEFAULT_STRATEGY, DSA, DsaParams
from .config import check_at_least
from .data import RealImages
from .functional import FlatModel
from .labels import LabelSource
from .models import CONVNETS, StudentSpec
from .rng import derive_seed, generator
from .transforms import Preprocessing

RESIDENT_BYTES = 2**32  # real images up to this size stay on the device
PREPARED_VALUES = 2**20  # pixel values augmented at a time: many steps of a small set, one step of a large one
TOGETHER_PIXELS = 2**17  # students train side by side up to so many pixels in a step; beyond, one fills the device
TEST_BATCH = 1024


@dataclass(frozen=True)
class EvalProtocol:
    """How a student is trained: SGD with momentum and DSA, and a learning rate that drops.

    Attributes:
        name: What reports call it.
        epochs: Passes over a small set.
        full_data_epochs: Passes over all real images.
        batch_size: Images per step; a smaller set is one batch.
        momentum: Of SGD.
        weight_decay: L2, of SGD.
        dsa_strategy: Augmentation of every batch.
        decay_epochs: Fractions f of training at which the rate drops: after epoch ⌊f·E⌋ + 1, where epochs are 0 to E.
        decay: Factor of each drop.
        reset_momentum: A drop also empties the momentum.
        lrs: Learning rates to choose from on held-out images; the first is used where there are none.
        source: Where the numbers come from.
    """

    name: str
    epochs: int
    full_data_epochs: int
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    dsa_strategy: str = DEFAULT_STRATEGY
    decay_epochs: tuple[float, ...] = (0.5,)
    decay: float = 0.1
    reset_momentum: bool = True
    lrs: tuple[float, ...] = (0.01,)
    source: str = ""

    def __post_init__(self) -> None:
        for flag, value in (("epochs", self.epochs), ("full_data_epochs", self.full_data_epochs)):
            check_at_least(flag, value, 1)
        check_at_least("batch_size", self.batch_size, 2)
        if not self.lrs or min(self.lrs) <= 0:
            raise ValueError(f"protocol {self.name!r} has the learning rates {self.lrs}; expected some above 0")

    def schedule(self, epochs: int) -> list[tuple[float, bool]]:
        """For each of `epochs` the factor of the learning rate, and whether the momentum is emptied before it."""
        first_after = {math.floor(fraction * (epochs - 1)) + 2 for fraction in self.decay_epochs}
        factors = [self.decay ** sum(epoch >= drop for drop in first_after) for epoch in range(epochs)]
        return [(factor, self.reset_momentum and epoch in first_after) for epoch, factor in enumerate(factors)]


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        EvalProtocol(
            "mtt",
            epochs=1001,
            full_data_epochs=101,
            lrs=(0.01, 0.003, 0.03, 0.1),
            source="The code of MTT (arXiv:2203.11932) and TESLA (arXiv:2211.10586): epochs 0 to 1000, after 501 a "
            "tenth of the learning rate and a new optimizer. Their learning rate is the learned one; what the other "
            "sets choose from, and the epochs on all real images, are this library's.",
        ),
        EvalProtocol(
            "quick",
            epochs=200,
            full_data_epochs=30,
            batch_size=128,
            lrs=(0.03, 0.01, 0.1),
            source="This library's, for small images on a CPU: on all of scikit-learn's digits convnet_d2 of width 32 "
            "reaches 99.0 % in the 3 s of 30 epochs, and with many more, in batches of 256, 99.4 % to 100 %.",
        ),
    )
}


# Images and targets


class Pool:
    """Labelled images to train or test on, on the device: as a network sees them, or as the bytes of the source.

    Args:
        images: (R, C, H, W) float32, preprocessed; or real images, kept as uint8 and preprocessed batch by batch.
        labels: (R,) classes.
        preprocessing: What real images go through; None takes `images` as they are.
        device: Where batches come out.
    """

    def __init__(
        self,
        images: Tensor | RealImages,
        labels: Tensor,
        *,
        preprocessing: Preprocessing | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.labels = labels.to(self.device)
        self.preprocessing = None if preprocessing is None else preprocessing.to(self.device)
        self.shape: tuple[int, int, int] = tuple(images.shape[-3:])
        if isinstance(images, Tensor):
            self.source: Tensor | RealImages = images.detach().to(self.device)
        else:
            self.source = images.resident(self.device) if len(images) * self.values <= RESIDENT_BYTES else images

    @property
    def values(self) -> int:
        """Values of one image."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: Tensor) -> Tensor:
        """What a network sees of `rows` (n,), which are on the CPU: a new tensor (n, C, H, W) float32."""
        if isinstance(self.source, Tensor):
            images = self.source[_upload(rows, self.device)]
        else:
            images = _upload(self.source.uint8(rows), self.device)
        return images if self.preprocessing is None else self.preprocessing(images)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Everything in order: rows (n,) on the CPU, and images (n, C, H, W)."""
        for rows in torch.arange(len(self)).split(TEST_BATCH):
            yield rows, self.images(rows)

    def targets(self, source: LabelSource) -> Tensor:
        """What `source` says of all images: classes (R,), or logits (R, K) as float16, which is how they travel."""
        found = (source(images, self.labels[rows], rows) for rows, images in self.batches())
        # Halved batch by batch: for all of ImageNet-1K the float32 logits would take gigabytes.
        return torch.cat([part.half() if part.is_floating_point() else part for part in found]).to(self.device)


def _upload(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`; the host does not wait for the copy."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def loss_targets(targets: Tensor) -> Tensor:
    """What the cross-entropy takes: classes (N,) as they are, softmax(targets) for logits (N, K)."""
    return targets.float().softmax(dim=-1) if targets.is_floating_point() else targets


def topk_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """The share of images, in [0, 1], whose class is among the `k` largest of their logits.

    Args:
        logits: (N, K).
        labels: (N,) classes.
        k: How many guesses count; all when there are fewer classes.
    """
    guesses = logits.topk(min(k, logits.shape[1]), dim=1).indices  # (N, k)
    return (guesses == labels[:, None]).any(dim=1).double().mean().item()


@torch.no_grad()
def accuracy(model: nn.Module, pool: Pool, k: int = 1) -> float:
    """Top-k accuracy in [0, 1] of `model`, in evaluation mode, on all images of `pool`."""
    model.eval()
    return topk_accuracy(torch.cat([model(images) for _, images in pool.batches()]), pool.labels, k)


# Students


def student_name(spec: StudentSpec) -> str:
    """The name in reports: that of timm, with whatever else makes the architecture."""
    return " ".join([spec.name, *(f"{key}={value}" for key, value in sorted(spec.kwargs.items()))])


def check_student(spec: StudentSpec) -> None:
    """Build the student and show it two images, before anything long begins.

    Raises:
        ValueError: timm has no such model, or it cannot take such images.
    """
    try:
        spec.build(0).eval()(torch.zeros(2, spec.in_chans, *spec.img_size))
    except (RuntimeError, AssertionError, TypeError, ZeroDivisionError, IndexError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        height, width = spec.img_size
        raise ValueError(
            f"--student {student_name(spec)} cannot take {spec.in_chans}x{height}x{width} images ({reason}); "
            "choose a student for small images, such as a convnet_d, or distil at a larger --resolution"
        ) from error


def train_student(
    images: Tensor,
    targets: Tensor,
    spec: StudentSpec,
    protocol: EvalProtocol,
    *,
    lr: float,
    seed: int,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """One student, freshly initialised and trained on a small set; the same bits for the same seed.

    Args:
        images: (N, C, H, W) float32, preprocessed.
        targets: Classes (N,), or logits (N, K) whose softmax is the target.
        spec: The architecture.
        protocol: The schedule.
        lr: Learning rate before any drop.
        seed: Of initialisation, order, augmentation and dropout.
        device: Where to train; the student stays there.

    Returns:
        The student in evaluation mode.
    """
    pool = Pool(images, torch.zeros(len(images), dtype=torch.long), device=device)
    rows = torch.arange(len(images))[None]
    return train_students(pool, targets.to(device), rows, spec, protocol, protocol.epochs, [lr], [seed])[0]


def train_students(
    pool: Pool,
    targets: Tensor,
    rows: Tensor,
    spec: StudentSpec,
    protocol: EvalProtocol,
    epochs: int,
    lrs: Sequence[float],
    seeds: Sequence[int],
) -> list[nn.Module]:
    """E students of one architecture, each on its own rows of `pool`; in evaluation mode.

    Args:
        pool: R images.
        targets: Classes (R,) or logits (R, K), on the device.
        rows: (E, N) on the CPU: what each student is trained on.
        spec: The architecture.
        protocol: The schedule.
        epochs: Passes of each student over its rows.
        lrs: One learning rate per student.
        seeds: One seed per student.
    """
    if _stateless(spec):
        return _train_side_by_side(pool, targets, rows, spec, protocol, epochs, lrs, seeds)
    each = zip(rows.split(1), lrs, seeds, strict=True)
    return [_train_module(pool, targets, own, spec, protocol, epochs, lr, seed) for own, lr, seed in each]


def students_at_once(pool: Pool, rows: Tensor, protocol: EvalProtocol) -> int:
    """How many students on as many images as `rows` (E, N) has for each are worth training side by side."""
    pixels = min(rows.shape[1], protocol.batch_size) * math.prod(pool.shape[1:])
    return max(1, TOGETHER_PIXELS // pixels)


def _stateless(spec: StudentSpec) -> bool:
    """Whether training needs nothing but parameters: no running statistics, no dropout."""
    return spec.name in CONVNETS and spec.kwargs.get("norm") != "batch"


def _train_side_by_side(
    pool: Pool,
    targets: Tensor,
    rows: Tensor,
    spec: StudentSpec,
    protocol: EvalProtocol,
    epochs: int,
    lrs: Sequence[float],
    seeds: Sequence[int],
) -> list[nn.Module]:
    """All students at once, as rows of one parameter matrix: a small set leaves a device idle between two steps."""
    model = FlatModel.from_spec(spec).to(pool.device)
    together = torch.func.vmap(model)
    thetas = torch.stack([model.init(derive_seed(seed, "init")) for seed in seeds])  # (E, P)
    thetas = thetas.to(pool.device).requires_grad_()
    rates = torch.tensor(lrs, dtype=torch.float32, device=pool.device)[:, None]  # (E, 1)
    velocity = torch.zeros_like(thetas)
    for factor, reset, images, wanted in _steps(pool, targets, rows, protocol, epochs, seeds):
        logits = together(thetas, images)  # (E, B, K)
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(0, 1), reduction="sum") / images.shape[1]
        (gradient,) = torch.autograd.grad(loss, thetas)
        with torch.no_grad():
            if reset:
                velocity.zero_()
            velocity.mul_(protocol.momentum).add_(gradient).add_(thetas, alpha=protocol.weight_decay)
            thetas.addcmul_(rates, velocity, value=-factor)
    return [model.load(theta) for theta in thetas.detach()]


def _train_module(
    pool: Pool,
    targets: Tensor,
    rows: Tensor,
    spec: StudentSpec,
    protocol: EvalProtocol,
    epochs: int,
    lr: float,
    seed: int,
) -> nn.Module:
    """Any timm model, on `rows` (1, N): with running statistics and dropout, which is seeded too."""
    model = spec.build(derive_seed(seed, "init")).to(pool.device).train()

    def new_optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD(
            model.parameters(), lr=lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay, foreach=True
        )

    optimizer = new_optimizer()
    with torch.random.fork_rng(devices=[pool.device] if pool.device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "dropout"))
        for factor, reset, images, wanted in _steps(pool, targets, rows, protocol, epochs, [seed]):
            if images.shape[1] == 1:  # the rest of an epoch: BatchNorm has no statistics of one image
                continue
            if reset:
                optimizer = new_optimizer()
            optimizer.param_groups[0]["lr"] = lr * factor
            loss = F.cross_entropy(model(images[0]), wanted[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


_Step = tuple[float, bool, Tensor, list[DsaParams]]  # factor, reset, rows (E, B), what was drawn for each student


def _steps(
    pool: Pool, targets: Tensor, rows: Tensor, protocol: EvalProtocol, epochs: int, seeds: Sequence[int]
) -> Iterator[tuple[float, bool, Tensor, Tensor]]:
    """Every step of E students: factor of the rate, reset of the momentum, images (E, B, C, H, W), targets (E, B, ...).

    Order and augmentation are drawn step by step from each student's own stream, and applied to many steps at once.
    """
    augment = DSA(protocol.dsa_strategy)
    streams = [generator(seed, "train") for seed in seeds]
    count = rows.shape[1]
    plan: list[_Step] = []
    planned = 0
    for factor, reset in protocol.schedule(epochs):
        order = rows
        if count > protocol.batch_size:
            order = torch.stack([r[torch.randperm(count, generator=s)] for r, s in zip(rows, streams, strict=True)])
        for index, batch in enumerate(order.split(protocol.batch_size, dim=1)):
            drawn = [augment.sample(batch.shape[1], stream, pool.shape[1:]) for stream in streams]
            plan.append((factor, reset and index == 0, batch, drawn))
            planned += batch.numel() * pool.values
            if planned >= PREPARED_VALUES:
                yield from _prepared(pool, targets, plan)
                plan, planned = [], 0
    yield from _prepared(pool, targets, plan)


def _prepared(pool: Pool, targets: Tensor, plan: Sequence[_Step]) -> Iterator[tuple[float, bool, Tensor, Tensor]]:
    """The batches of all steps in `plan`, with each operation applied once to all images that it was drawn for."""
    if not plan:
        return
    rows = torch.cat([batch.flatten() for _, _, batch, _ in plan])
    images, wanted = pool.images(rows), loss_targets(targets[_upload(rows, pool.device)])
    parts: dict[str, list[tuple[Tensor, DsaParams]]] = {}
    start = 0
    for _, _, batch, drawn in plan:
        for params in drawn:
            where = torch.arange(start, start + batch.shape[1])
            parts.setdefault(params.operation, []).append((where, params))
            start += batch.shape[1]
    for operation, drawn in parts.items():
        if operation == "none":
            continue
        where = _upload(torch.cat([positions for positions, _ in drawn]), pool.device)
        names = drawn[0][1].values
        values = {name: _upload(torch.cat([params.values[name] for _, params in drawn]), pool.device) for name in names}
        images[where] = DSA.apply(images[where], DsaParams(operation, values))
    start = 0
    for factor, reset, batch, _ in plan:
        part = slice(start, start + batch.numel())
        yield factor, reset, images[part].unflatten(0, batch.shape), wanted[part].unflatten(0, batch.shape)
        start = part.stop
