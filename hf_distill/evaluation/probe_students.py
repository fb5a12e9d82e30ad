"""Students that are linear heads on a frozen backbone: the heads of several students learn side by side.

A backbone looks at the views of many steps and students at once, and its features are all that a step needs; where no
view is drawn, it looks at each image once. Heads are W (E, K, D) and b (E, K), and the loss is the sum of that of each
student, so that each gets its own gradient, (P − Y)ᵀZ / B.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from ..augmentation.crops import CROP_DRAWS, crop_resize, draw_crops, uniform
from ..data.feed import Pool, upload
from ..data.precision import no_autocast
from ..data.resampling import resized
from ..distilled.targets import RowTargets, loss_targets
from ..networks.backbones import Backbone
from ..networks.batches import images_at_once
from ..networks.compiling import compiled, in_precision
from ..networks.probes import Probe, ProbeSpec
from ..rng import derive_seed, generator
from .protocols import ProbeProtocol

__all__ = ["train_probes", "views"]

CROP = 1  # path of the draws, after the epoch
LARGEST = 2  # sides of the backbone that an image may have when it is cropped, which skips pixels of larger ones


def _look(backbone: Backbone, pixels: Tensor) -> Tensor:
    """To be compiled."""
    return backbone.features(pixels)


def views(pixels: Tensor, numbers: Tensor, size: tuple[int, int], protocol: ProbeProtocol) -> Tensor:
    """Crops of images, resized and flipped, (n, C, *size).

    Args:
        pixels: (n, C, H, W). Those of more than two times `size` are reduced to that first.
        numbers: (n, `CROP_DRAWS`) in [0, 1), on the CPU, that decide the crops.
        size: Height and width of the result.
        protocol: Says how large crops are, and how many are mirrored.
    """
    smaller = (min(full, LARGEST * side) for full, side in zip(pixels.shape[2:], size, strict=True))
    if (within := tuple(smaller)) != tuple(pixels.shape[2:]):
        pixels = resized(pixels, (within[0], within[1]))
    params = draw_crops(numbers, (pixels.shape[2], pixels.shape[3]), protocol.scale, flip=protocol.flip)
    return crop_resize(pixels, params.to(pixels.device), size)


class _Step(NamedTuple):
    """A step of E students.

    Attributes:
        factor: Of the learning rate.
        rows: (E, B), their images in the pool.
        numbers: (E · B, `CROP_DRAWS`), what their views are drawn from; empty where none are.
    """

    factor: float
    rows: Tensor
    numbers: Tensor


def train_probes(
    pool: Pool,
    targets: Tensor | RowTargets,
    rows: Tensor,
    spec: ProbeSpec,
    protocol: ProbeProtocol,
    epochs: int,
    lr: float,
    seeds: Sequence[int],
    accelerator: Accelerator | None = None,
) -> list[Probe]:
    """E students of one backbone, each on its own rows of `pool`; in evaluation mode.

    What is drawn for a student is a function of its seed: the head, the order, and the view of the image in each place
    of its rows in each epoch.

    Args:
        pool: R images.
        targets: Classes (R,) or logits (R, K), on the device.
        rows: (E, N) on the CPU: what each student is trained on.
        spec: The backbone, and the classes.
        protocol: The schedule.
        epochs: Passes of each student over its rows.
        lr: Of `protocol.lr_images` images in a step.
        seeds: One seed per student.
        accelerator: Says in what precision the backbone sees views, and whether it is compiled; heads learn in float32.

    Raises:
        ValueError: Labels have other classes than the head.
    """
    spec.backbone.to(pool.device)
    students = [spec.build(derive_seed(seed, "init")).to(pool.device) for seed in seeds]
    weight = torch.stack([student.head.weight.detach() for student in students]).requires_grad_()  # (E, K, D)
    bias = torch.stack([student.head.bias.detach() for student in students]).requires_grad_()  # (E, K)
    rate = lr * min(protocol.batch_size, rows.shape[1]) / protocol.lr_images
    optimizer = torch.optim.Adam([weight, bias], lr=rate, weight_decay=protocol.weight_decay, foreach=True)
    steps = _steps(rows, protocol, epochs, seeds)
    if protocol.seen_once:
        given = _once(pool, steps, rows, spec)
    else:
        given = _seen(pool, steps, rows, spec, protocol, accelerator)
    with no_autocast(pool.device.type):
        for factor, seen, features in given:
            labels = loss_targets(targets[upload(seen.flatten(), pool.device)]).unflatten(0, seen.shape)
            if labels.ndim == 3 and labels.shape[2] != spec.num_classes:
                raise ValueError(
                    f"labels of {labels.shape[2]} classes for a student of {spec.num_classes}; expected as many"
                )
            logits = torch.baddbmm(bias[:, None], features, weight.mT)  # (E, B, K)
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(0, 1), reduction="sum") / seen.shape[1]
            weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
    with torch.no_grad():
        for student, own, offset in zip(students, weight, bias, strict=True):
            student.head.weight.copy_(own)
            student.head.bias.copy_(offset)
    return [student.eval() for student in students]


def _steps(rows: Tensor, protocol: ProbeProtocol, epochs: int, seeds: Sequence[int]) -> Iterator[_Step]:
    """Every step of E students, on the CPU."""
    count, budget, done = rows.shape[1], protocol.budget, 0
    orders = [generator(seed, "order") for seed in seeds]
    draws = [derive_seed(seed, "views") for seed in seeds]
    for epoch in range(epochs):
        places = torch.arange(count).expand(len(seeds), -1)
        if count > protocol.batch_size:
            places = torch.stack([torch.randperm(count, generator=order) for order in orders])
        for batch in places.split(protocol.batch_size, dim=1):
            now, last = (epoch, epochs) if budget is None else (budget.epoch_at(done, protocol.epochs), protocol.epochs)
            numbers = torch.empty(0, CROP_DRAWS)
            if not protocol.seen_once:
                each = zip(draws, batch, strict=True)
                numbers = torch.cat([uniform(seed, (epoch, CROP), own, CROP_DRAWS) for seed, own in each])
            yield _Step(protocol.rate(now, last), rows.gather(1, batch), numbers)
            done += 1
            if budget is not None and done == budget.steps:
                return


_Given = tuple[float, Tensor, Tensor]  # factor, rows (E, B) on the CPU, features (E, B, D)


def _once(pool: Pool, steps: Iterator[_Step], rows: Tensor, spec: ProbeSpec) -> Iterator[_Given]:
    """What steps are given where the backbone looks at each image once."""
    used = rows.unique()
    features = spec.features(pool, None if len(used) == len(pool) else used)
    for step in steps:
        places = torch.searchsorted(used, step.rows)
        yield step.factor, step.rows, features[upload(places, pool.device)]


def _seen(
    pool: Pool,
    steps: Iterator[_Step],
    rows: Tensor,
    spec: ProbeSpec,
    protocol: ProbeProtocol,
    accelerator: Accelerator | None,
) -> Iterator[_Given]:
    """What steps are given where views are drawn: the backbone looks at those of as many steps as it can at once."""
    size, look = images_at_once(spec.seen, pool), in_precision(compiled(_look, accelerator), accelerator)
    pool = pool.holding(rows)

    def features(plan: Sequence[_Step]) -> Iterator[_Given]:
        numbers = torch.cat([step.numbers for step in plan]).split(size)
        parts = torch.cat([step.rows.flatten() for step in plan]).split(size)
        given = zip(pool.each(parts), numbers, strict=True)
        with torch.no_grad():
            seen = [
                look(spec.backbone, views(spec.pixels(images), drawn, spec.backbone.size, protocol))
                for (_, images), drawn in given
            ]
        counts = [step.rows.numel() for step in plan]
        for step, own in zip(plan, torch.cat(seen).split(counts), strict=True):
            yield step.factor, step.rows, own.unflatten(0, step.rows.shape)

    plan: list[_Step] = []
    for step in steps:
        if plan and (len(plan) + 1) * step.rows.numel() > size:
            yield from features(plan)
            plan = []
        plan.append(step)
    if plan:
        yield from features(plan)
