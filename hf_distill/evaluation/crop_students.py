"""Students trained on random crops of mixed images, with the labels of these very views: SRe2L's, CDA's and RDED's way.

Images stay on the device as the bytes they are; crops, flips and mixes are tensor operations on whole batches, and
there are no workers. Labels come batch by batch, from a teacher that looks at the views or from what one said before.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..data.feed import Pool, upload
from ..distilled.labels import LabelSource, compiled_labels
from ..networks.architectures import StudentSpec, layout_for
from ..networks.compiling import compiled, forward, in_precision
from ..rng import derive_seed, generator
from .protocols import CropProtocol

__all__ = [
    "classes_loss",
    "distillation_loss",
    "matching_loss",
    "parameter_groups",
    "repeat_updates",
    "train_on_crops",
]


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float, squared: bool = False, smoothing: float = 0.0
) -> Tensor:
    """KL(softmax(z_T / τ) ‖ softmax(z_S / τ)), the mean over the batch, times τ² where `squared`.

    Args:
        student: z_S, logits (B, K).
        teacher: z_T, logits (B, K).
        temperature: τ.
        squared: Keep the size of the gradients.
        smoothing: Share of each target that is spread over all classes.
    """
    probabilities = (teacher.float() / temperature).softmax(dim=1)
    if smoothing:
        probabilities = (1 - smoothing) * probabilities + smoothing / probabilities.shape[1]
    loss = F.kl_div((student.float() / temperature).log_softmax(dim=1), probabilities, reduction="batchmean")
    return loss * temperature**2 if squared else loss


def matching_loss(student: Tensor, teacher: Tensor, centred: bool = True) -> Tensor:
    """The squared difference of two rows of logits, its mean over the classes, (B,) float32.

    Args:
        student: z_S, logits (B, K).
        teacher: z_T, logits (B, K).
        centred: Reduce both by their mean over the classes first: a softmax does not see it.
    """
    difference = student.float() - teacher.float()
    if centred:
        difference = difference - difference.mean(1, keepdim=True)
    return difference.square().mean(1)


def classes_loss(logits: Tensor, own: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """The cross-entropy (B,) of views that belong to two classes each, by their shares.

    Args:
        logits: (B, K).
        own: (B,) classes of the images.
        partners: (B,) classes of those that they are mixed with.
        share: (B,) in [0, 1], of the image itself.
    """
    one, two = (F.cross_entropy(logits.float(), labels, reduction="none") for labels in (own, partners))
    return share * one + (1 - share) * two


def _soft_loss(logits: Tensor, targets: Tensor, protocol: CropProtocol) -> Tensor:
    if protocol.loss == "mse":
        return matching_loss(logits, targets).mean()
    return distillation_loss(logits, targets, protocol.temperature, protocol.squared, protocol.label_smoothing)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of two dimensions or more, which decay, and the rest (biases, normalisation), which does not."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _optimizer(model: nn.Module, protocol: CropProtocol, lr: float) -> torch.optim.Optimizer:
    decay = protocol.weight_decay
    groups = parameter_groups(model, decay)
    if protocol.decay_all:
        groups = [{"params": list(model.parameters()), "weight_decay": decay}]
    if protocol.momentum is None:
        return torch.optim.AdamW(groups, lr=lr, foreach=True)
    return torch.optim.SGD(groups, lr=lr, momentum=protocol.momentum, foreach=True)


def repeat_updates(model: nn.Module, times: int) -> None:
    """Let each batch enter the running statistics of `model` so many times, at the cost of once.

    A statistic r becomes r + m (s − r) of a batch with s. Another look at the same batch with the same weights sees the
    same s, so that k looks leave r + (1 − (1 − m)ᵏ) (s − r): one look with a larger momentum.
    """
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and layer.momentum is not None:
            layer.momentum = 1 - (1 - layer.momentum) ** times


def _parted(places: Tensor, count: int) -> Sequence[Tensor]:
    """A batch in so many parts, of two images at least; or the whole of a smaller one."""
    return places.tensor_split(count) if len(places) >= 2 * count else (places,)


def train_on_crops(
    pool: Pool,
    targets: Tensor | LabelSource,
    rows: Tensor,
    spec: StudentSpec,
    protocol: CropProtocol,
    epochs: int,
    lr: float,
    seed: int,
    accelerator: Accelerator | None = None,
) -> nn.Module:
    """One student, freshly initialised, trained on the views of some rows of `pool`; in evaluation mode.

    Args:
        pool: R images.
        targets: Classes (R,) on the device, or what labels the views; one that was stored brings its own views.
        rows: (N,) on the CPU: what the student is trained on.
        spec: The architecture.
        protocol: The schedule.
        epochs: Passes over the rows.
        lr: The largest learning rate.
        seed: Of initialisation, order, views and dropout.
        accelerator: Says in what precision forward passes, the student's and a teacher's, are, and whether they are
            compiled.
    """
    device, count = pool.device, len(rows)
    model = spec.build(derive_seed(seed, "init")).train()
    repeat_updates(model, protocol.batchnorm_updates)
    layout = layout_for(model, device)
    model.to(device, memory_format=layout)
    optimizer = _optimizer(model, protocol, lr)
    views = protocol.views_for(targets, seed)
    order = generator(seed, "order")
    background = pool.black
    budget, steps = protocol.budget, 0
    look = in_precision(compiled(forward, accelerator), accelerator)
    label = targets
    if not isinstance(label, Tensor):
        label = in_precision(compiled_labels(label, accelerator, device), accelerator)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "dropout"))
        for epoch in range(epochs):
            factor = protocol.rate(epoch, epochs)
            parts = torch.randperm(count, generator=order).split(protocol.batch_size)
            for number, places in enumerate(parts):
                if pool.reads_pixels:
                    for following in parts[number + 1 : number + 2]:
                        pool.expect(rows[following])
                        pool.expect(rows[views.mixing(following, epoch, count, pool.shape[1:])[0]])
                if len(places) == 1:  # the rest of an epoch: BatchNorm has no statistics of one image
                    continue
                if budget is not None:
                    factor = protocol.rate(budget.epoch_at(steps, protocol.epochs), protocol.epochs)
                for group in optimizer.param_groups:
                    group["lr"] = lr * factor
                optimizer.zero_grad()
                for part in _parted(places, protocol.accumulate):
                    x = views(lambda chosen: pool.images(rows[chosen]), part, epoch, count, background)
                    if device.type == "cuda":
                        x = x.contiguous(memory_format=layout)
                    chosen = rows[part]
                    if isinstance(label, Tensor):
                        answers = label[upload(chosen, device)]
                        loss = F.cross_entropy(look(model, x), answers, label_smoothing=protocol.label_smoothing)
                    else:
                        with torch.no_grad():
                            answers = label(x, pool.labels[upload(chosen, device)], upload(chosen, device), epoch)
                        logits = look(model, x)
                        loss = _soft_loss(logits, answers, protocol)
                        if protocol.ce_weight:
                            partners, share = views.mixing(part, epoch, count, pool.shape[1:])
                            own, other = (pool.labels[upload(rows[which], device)] for which in (part, partners))
                            classes = classes_loss(logits, own, other, upload(share, device))
                            loss = loss + protocol.ce_weight * classes.mean()
                    (loss if len(part) == len(places) else loss * (len(part) / len(places))).backward()
                optimizer.step()
                steps += 1
                if budget is not None and steps == budget.steps:
                    return model.eval()
    return model.eval()
