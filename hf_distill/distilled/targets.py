"""Targets that labels give to the images of a pool, as losses take them."""

import torch
from torch import Tensor

from ..data.feed import TEST_BATCH, Pool, upload
from .labels import LabelSource


def targets_of(pool: Pool, source: LabelSource, rows: Tensor | None = None) -> Tensor:
    """The labels that `source` gives to images of `pool`: classes (n,), or logits (n, K) as float16.

    Logits travel as that, and are halved part by part: those of all of ImageNet-1K are gigabytes. Parts are of one size
    for every network, for the last bits of logits depend on how many images were together, and these labels are stored
    and trained on; with networks that see whole batches the labels themselves depend on it.

    Args:
        pool: The images.
        source: Whom to ask.
        rows: (n,) on the CPU; all if not given.
    """
    rows = torch.arange(len(pool)) if rows is None else rows
    if not len(rows):
        raise ValueError("labels of no images; expected at least one row")
    targets, done = torch.empty(0), 0  # one tensor for all parts, when the first says what they are like
    for part, images in pool.each(rows.split(TEST_BATCH)):
        labels = source(images, pool.labels[upload(part, pool.device)], part)
        if not done:
            dtype = torch.float16 if labels.is_floating_point() else labels.dtype
            targets = torch.empty((len(rows), *labels.shape[1:]), dtype=dtype, device=pool.device)
        targets[done : done + len(part)] = labels
        done += len(part)
    return targets


class RowTargets:
    """The labels that `source` gives to some rows of a pool, under their numbers in the pool."""

    def __init__(self, pool: Pool, source: LabelSource, rows: Tensor) -> None:
        used = rows.unique()
        self.rows, self.values = upload(used, pool.device), targets_of(pool, source, used)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.values[torch.searchsorted(self.rows, rows)]


def loss_targets(targets: Tensor) -> Tensor:
    """Targets as the cross-entropy takes them: classes (N,) as they are, softmax(targets) for logits (N, K)."""
    return targets.float().softmax(dim=-1) if targets.is_floating_point() else targets
