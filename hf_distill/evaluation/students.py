"""Students: networks trained from scratch on a small set under a protocol, and tested.

A student is a function of its seed. Several small ConvNets train side by side, as rows of one parameter matrix; a
single one, and anything else that timm has, trains as a module. What steps need of the host goes to the device in one
copy for many steps of a small set, from pinned memory, and nothing is read back before the end; there is no work per
image in Python.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..augmentation.dsa import DSA, DsaParams
from ..data.feed import Pool, at_once, upload
from ..data.precision import no_autocast
from ..distilled.labels import LabelSource
from ..distilled.targets import RowTargets, loss_targets
from ..networks.architectures import FlatModel, StudentSpec, layout_for
from ..networks.batches import networks_at_once
from ..networks.compiling import compiled, forward, in_precision
from ..networks.probes import PREFIX, ProbeSpec
from ..rng import derive_seed, generator
from .crop_students import train_on_crops
from .probe_students import train_probes
from .protocols import CropProtocol, EvalProtocol, ProbeProtocol, TrainingProtocol
from .steps import Epoch, is_stateless

# Pixel values augmented at a time: on a CPU, and one for so many bytes of a GPU's memory. That is many steps of a small
# set, and one of a large one.
PREPARED_VALUES, PREPARED_PART = 2**20, 2048
HEADS = 2**26  # values of linear heads that learn side by side


def student_name(spec: StudentSpec) -> str:
    """The name in reports: that of timm, with whatever else makes the architecture."""
    return " ".join([spec.name, *(f"{key}={value}" for key, value in sorted(spec.kwargs.items()))])


def check_student(spec: StudentSpec, flag: str = "student") -> nn.Module:
    """The student, which a flag names, built and shown two images, before anything long begins. A backbone has been
    shown one when it was read.

    Raises:
        ValueError: timm has no such model, or it cannot take such images; or it is a backbone that is to learn.
    """
    if isinstance(spec, ProbeSpec):
        return spec.build(0)
    if spec.name.startswith(PREFIX):
        raise ValueError(
            f"--{flag} {spec.name} is a frozen backbone, and a whole network is trained here; such students are for "
            "sets of lgm and clpdd (--backbone there), and for evaluate --protocol probe"
        )
    try:
        student = spec.build(0).eval()
        student(torch.zeros(2, spec.in_chans, *spec.img_size))
        return student
    except (RuntimeError, AssertionError, TypeError, ZeroDivisionError, IndexError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        height, width = spec.img_size
        raise ValueError(
            f"--{flag} {student_name(spec)} cannot take {spec.in_chans}x{height}x{width} images ({reason}); "
            "choose a student for small images, such as a convnet_d, or distil at a larger --resolution"
        ) from error


def check_protocol(specs: Sequence[StudentSpec], protocol: TrainingProtocol) -> None:
    """Raise a one-line `ValueError` where a protocol trains another kind of students."""
    for spec in specs:
        probes = isinstance(protocol, ProbeProtocol)
        if probes == isinstance(spec, ProbeSpec):
            continue
        if probes:
            raise ValueError(
                f"--protocol {protocol.name} trains the heads of frozen backbones, and --student {student_name(spec)} "
                f"is none; name one, such as {PREFIX}facebook/dinov2-base"
            )
        raise ValueError(
            f"--student {student_name(spec)} is a frozen backbone, and --protocol {protocol.name} trains whole "
            "networks; use --protocol probe"
        )


def train_student(
    images: Tensor,
    targets: Tensor,
    spec: StudentSpec,
    protocol: TrainingProtocol,
    *,
    lr: float,
    seed: int,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """One student, freshly initialised and trained on a small set; the same bits for the same seed.

    Args:
        images: (N, C, H, W) float32, preprocessed.
        targets: Classes (N,), or logits (N, K).
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


def train_along(
    images: Tensor | Pool,
    targets: Tensor,
    spec: StudentSpec,
    protocol: EvalProtocol,
    epochs: Sequence[int],
    *,
    lr: float,
    seed: int,
    accelerator: Accelerator | None = None,
) -> Iterator[nn.Module]:
    """One student as it is after each of `epochs`, as soon as it is; they ascend, and the last one ends its training.

    It trains while the next one is asked for. Until the last one, or `close`, torch's global stream is its own.

    Args:
        images: (N, C, H, W) float32, preprocessed, on the device to train on; or a pool of N.
        targets: Classes (N,), or logits (N, K), on the device.
        spec, lr, seed: As `train_student`.
        protocol: The schedule, for as many epochs as the last one says.
        accelerator: Says in what precision its forward passes are, and whether they are compiled.

    Returns:
        A network in evaluation mode for each of `epochs`.
    """
    if isinstance(images, Tensor):
        images = Pool(images, torch.zeros(len(images), dtype=torch.long), device=images.device)
    look, rows = in_precision(compiled(forward, accelerator), accelerator), torch.arange(len(images))[None]
    return _train_module(images, targets, rows, spec, protocol, epochs, lr, seed, look)


def train_students(
    pool: Pool,
    targets: Tensor | LabelSource,
    rows: Tensor,
    spec: StudentSpec,
    protocol: TrainingProtocol,
    epochs: int,
    lrs: Sequence[float],
    seeds: Sequence[int],
    accelerator: Accelerator | None = None,
) -> list[nn.Module]:
    """E students of one architecture, each on its own rows of `pool`; in evaluation mode.

    Args:
        pool: R images.
        targets: Classes (R,) or logits (R, K), on the device; or what labels each view, for a protocol that asks, and
            once each image that is in `rows` for another.
        rows: (E, N) on the CPU: what each student is trained on.
        spec: The architecture.
        protocol: The schedule.
        epochs: Passes of each student over its rows.
        lrs: One learning rate per student.
        seeds: One seed per student.
        accelerator: Says whether forward passes are compiled, and in what precision those of networks are that train
            on crops, and those of backbones. The others, which trajectories are matched with, are float32, also where
            the caller is in autocast.
    """
    check_protocol([spec], protocol)
    if isinstance(spec, ProbeSpec) and isinstance(protocol, ProbeProtocol):
        if not isinstance(targets, Tensor):
            targets = RowTargets(pool.holding(rows), targets, rows)
        together = [rows] if len(set(lrs)) == 1 else rows.split(1)  # one optimizer has one rate
        heads: list[nn.Module] = []
        for own in together:
            part = slice(len(heads), len(heads) + len(own))
            lr = lrs[part.start]
            heads += train_probes(pool, targets, own, spec, protocol, epochs, lr, seeds[part], accelerator)
        return heads
    pool = pool.holding(rows)
    if isinstance(protocol, CropProtocol):
        each = zip(rows, lrs, seeds, strict=True)
        return [
            train_on_crops(pool, targets, own, spec, protocol, epochs, lr, seed, accelerator) for own, lr, seed in each
        ]
    if not isinstance(protocol, EvalProtocol):
        raise ValueError(f"protocol {protocol.name!r} is a {type(protocol).__name__}; expected an EvalProtocol")
    if not isinstance(targets, Tensor):
        targets = RowTargets(pool, targets, rows)
    with no_autocast(pool.device.type):  # backward passes too would be in that of the caller
        if len(rows) > 1 and is_stateless(spec):
            together = compiled(_side_by_side, accelerator)
            return _train_side_by_side(pool, targets, rows, spec, protocol, epochs, lrs, seeds, together)
        each, look = zip(rows.split(1), lrs, seeds, strict=True), compiled(forward, accelerator)
        return [
            student
            for own, lr, seed in each
            for student in _train_module(pool, targets, own, spec, protocol, [epochs], lr, seed, look)
        ]


def students_at_once(spec: StudentSpec, count: int, protocol: TrainingProtocol, device: torch.device) -> int:
    """The number of students worth training side by side, on `count` images each; 1 for those that cannot."""
    if isinstance(spec, ProbeSpec):
        return max(1, HEADS // spec.num_params())
    if isinstance(protocol, CropProtocol) or not is_stateless(spec):
        return 1
    return networks_at_once(spec, min(count, protocol.batch_size), device)


def _side_by_side(model: FlatModel, thetas: Tensor, images: Tensor) -> Tensor:
    """Logits (E, B, K) of networks `thetas` (E, P), each for its own `images` (E, B, C, H, W)."""
    return torch.func.vmap(model)(thetas, images)


def _train_side_by_side(
    pool: Pool,
    targets: Tensor | RowTargets,
    rows: Tensor,
    spec: StudentSpec,
    protocol: EvalProtocol,
    epochs: int,
    lrs: Sequence[float],
    seeds: Sequence[int],
    together: Callable[..., Tensor],
) -> list[nn.Module]:
    """All students at once, as rows of one parameter matrix: a small set leaves a device idle between two steps.
    `together` is their forward pass."""
    model = FlatModel.from_spec(spec).to(pool.device)
    thetas = torch.stack([model.init(derive_seed(seed, "init")) for seed in seeds])  # (E, P)
    thetas = thetas.to(pool.device).requires_grad_()
    rates = torch.tensor(lrs, dtype=torch.float32, device=pool.device)[:, None]  # (E, 1)
    velocity = torch.zeros_like(thetas)
    mean = None if protocol.ema is None else thetas.detach().clone()
    (last,) = _last_batches([epochs], rows.shape[1], spec, protocol)
    steps = _steps(pool, targets, rows, spec, protocol, epochs, seeds)
    for step, (factor, reset, images, labels) in enumerate(islice(steps, last + 1), start=1):
        logits = together(model, thetas, images)  # (E, B, K)
        loss = _loss(logits.flatten(0, 1), labels.flatten(0, 1), protocol, "sum") / images.shape[1]
        (gradient,) = torch.autograd.grad(loss, thetas)
        with torch.no_grad():
            if reset:
                velocity.zero_()
            velocity.mul_(protocol.momentum).add_(gradient).add_(thetas, alpha=protocol.weight_decay)
            thetas.addcmul_(rates, velocity, value=-factor)
            if mean is not None:
                mean.lerp_(thetas, protocol.ema_weight(step))
    return [model.load(theta) for theta in (thetas.detach() if mean is None else mean)]


def _train_module(
    pool: Pool,
    targets: Tensor | RowTargets,
    rows: Tensor,
    spec: StudentSpec,
    protocol: EvalProtocol,
    along: Sequence[int],
    lr: float,
    seed: int,
    look: Callable[..., Tensor],
) -> Iterator[nn.Module]:
    """Any timm model after the epochs `along`, on `rows` (1, N): with running statistics and dropout, which is seeded
    too. `look` is its forward pass."""
    model = spec.build(derive_seed(seed, "init")).to(pool.device).train()
    layout = layout_for(model, pool.device)
    model.to(memory_format=layout)
    fused = pool.device.type != "meta"

    def new_optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD(
            model.parameters(), lr=lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay, fused=fused
        )

    optimizer = new_optimizer()
    mean = None if protocol.ema is None else _RunningMean(model, protocol)
    kept = _last_batches(along, rows.shape[1], spec, protocol)
    with torch.random.fork_rng(devices=[pool.device] if pool.device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "dropout"))
        steps = _steps(pool, targets, rows, spec, protocol, along[-1], [seed])
        for step, (factor, reset, images, labels) in enumerate(islice(steps, max(kept) + 1)):
            if reset:
                optimizer = new_optimizer()
            if images.shape[1] > 1 or is_stateless(spec):  # BatchNorm has no statistics of one image
                optimizer.param_groups[0]["lr"] = lr * factor
                logits = look(model, images[0].contiguous(memory_format=layout))
                loss = _loss(logits, labels[0], protocol)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if mean is not None:
                    mean.follow(model)
            if step in kept:
                tested = model if mean is None else mean.model
                yield tested.eval() if step == max(kept) else copy.deepcopy(tested).eval()


class _RunningMean:
    """The running mean of a network's parameters, and of its running statistics, which are to fit them."""

    def __init__(self, model: nn.Module, protocol: EvalProtocol) -> None:
        self.model, self.protocol, self.steps = copy.deepcopy(model), protocol, 0
        self._tensors = self._of(self.model)

    @staticmethod
    def _of(model: nn.Module) -> list[Tensor]:
        return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Move towards a network that has just taken a step; its counters play no part in a test."""
        self.steps += 1
        torch._foreach_lerp_(self._tensors, self._of(model), self.protocol.ema_weight(self.steps))


def _loss(logits: Tensor, targets: Tensor, protocol: EvalProtocol, reduction: str = "mean") -> Tensor:
    """The loss of n images: `logits` (n, K), and `targets` classes (n,), probabilities or logits (n, K)."""
    if protocol.loss == "l1" and targets.is_floating_point():
        distance = F.l1_loss(logits, targets, reduction=reduction)
        return distance if reduction == "mean" else distance / logits.shape[1]
    return F.cross_entropy(logits, targets, reduction=reduction)


def _last_batches(epochs: Sequence[int], count: int, spec: StudentSpec, protocol: EvalProtocol) -> set[int]:
    """The numbers of the last batches of some epochs on `count` images, and of that which a budget ends with."""
    epoch = Epoch.of(count, spec, protocol)
    if protocol.budget is not None:
        return {min(epochs[-1] * epoch.batches, epoch.batches_in(protocol.budget.steps)) - 1}
    return {number * epoch.batches - 1 for number in epochs}


_Step = tuple[float, bool, Tensor, list[DsaParams]]  # factor, reset, rows (E, B), what was drawn for each student


def _steps(
    pool: Pool,
    targets: Tensor | RowTargets,
    rows: Tensor,
    spec: StudentSpec,
    protocol: EvalProtocol,
    epochs: int,
    seeds: Sequence[int],
) -> Iterator[tuple[float, bool, Tensor, Tensor]]:
    """Every step of E students: factor of the rate, reset of the momentum, images (E, B, C, H, W), targets (E, B, ...).

    Order and augmentation are drawn step by step from each student's own stream, and applied to many steps at once.
    """
    augment = DSA(protocol.dsa_strategy)
    streams = [generator(seed, "train") for seed in seeds]
    count, most = rows.shape[1], at_once(pool.device, PREPARED_VALUES, PREPARED_PART)
    budget, steps = protocol.budget, Epoch.of(count, spec, protocol).steps
    schedule = protocol.schedule(epochs if budget is None else protocol.epochs)
    plan: list[_Step] = []
    planned, now = 0, -1
    for epoch in range(epochs):
        order = rows
        if count > protocol.batch_size:
            order = torch.stack([r[torch.randperm(count, generator=s)] for r, s in zip(rows, streams, strict=True)])
        for index, batch in enumerate(order.split(protocol.batch_size, dim=1)):
            drawn = [augment.sample(batch.shape[1], stream, pool.shape[1:]) for stream in streams]
            before, now = now, epoch if budget is None else budget.epoch_at(epoch * steps + index, protocol.epochs)
            reset = any(reset for _, reset in schedule[before + 1 : now + 1])  # few steps pass several epochs at once
            plan.append((schedule[now][0], reset, batch, drawn))
            planned += batch.numel() * pool.values
            if planned >= most:
                yield from _prepared(pool, targets, plan, protocol)
                plan, planned = [], 0
    yield from _prepared(pool, targets, plan, protocol)


def _prepared(
    pool: Pool, targets: Tensor | RowTargets, plan: Sequence[_Step], protocol: EvalProtocol
) -> Iterator[tuple[float, bool, Tensor, Tensor]]:
    """The batches of all steps in `plan`, with each operation applied once to all images that it was drawn for."""
    if not plan:
        return
    rows = torch.cat([batch.flatten() for _, _, batch, _ in plan])
    images, labels = pool.images(rows), targets[upload(rows, pool.device)]
    if protocol.loss == "ce":
        labels = loss_targets(labels)
    elif labels.is_floating_point():
        labels = labels.float()
    params = [own for _, _, _, drawn in plan for own in drawn]
    images = DSA.apply_each(images, params, [batch.shape[1] for _, _, batch, _ in plan for _ in batch])
    start = 0
    for factor, reset, batch, _ in plan:
        part = slice(start, start + batch.numel())
        yield factor, reset, images[part].unflatten(0, batch.shape), labels[part].unflatten(0, batch.shape)
        start = part.stop
