"""`accuracy`: how many images of a pool a network names rightly; and on what device."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..data.feed import Pool
from ..networks.batches import images_at_once
from ..networks.probes import Probe

__all__ = ["accuracy", "device_name"]


def device_name(device: torch.device) -> str:
    """The name of a device in reports."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@torch.no_grad()
def accuracy(model: nn.Module, pool: Pool, k: int = 1) -> float:
    """Top-k accuracy in [0, 1] of `model`, which is put into evaluation mode, on all images of `pool`.

    As many go through it at a time as its activations leave room for; a frozen backbone looks at them once.
    The guesses of all batches stay on the device, and reach the host in one transfer.

    Args:
        model: Gives logits (n, K) for images (n, C, H, W).
        pool: The images.
        k: How many guesses count; all when there are fewer classes.
    """
    from .metrics import Accuracy, TopKAccuracy  # which import `evaluate`, for seconds

    model.eval()
    guesses = []
    for logits in _logits(model, pool):
        guesses.append(logits.topk(min(k, logits.shape[1]), dim=1).indices)
    *columns, references = torch.cat([torch.cat(guesses), pool.labels[:, None]], dim=1).cpu().T.numpy()
    if k == 1:
        return Accuracy(keep_in_memory=True).compute(predictions=columns[0], references=references)["accuracy"]
    predictions = list(zip(*columns, strict=True))
    return TopKAccuracy(keep_in_memory=True).compute(predictions=predictions, references=references)["accuracy"]


def _logits(model: nn.Module, pool: Pool) -> Iterator[Tensor]:
    """The logits (n, K) of all images, part by part."""
    if isinstance(model, Probe):
        return iter([model.logits(pool)])
    return (model(images) for _, images in pool.batches(images_at_once(model, pool)))
