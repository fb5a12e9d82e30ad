"""Labels of every epoch from the files of FKD, SRe2L, CDA and their kin: `epoch_<e>/batch_<b>.tar`.

Each file is what `torch.save` made of `[crops, flips, partners, λ, box, logits]` of one batch. Crops are fractions
(top / H, left / W, height / H, width / W); times the side and rounded they are whole pixels again, in float32 and in
float16. Cutting the fraction of a pixel off instead gives other crops: in float32 for 93 of 225 values at 224 pixels.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from ..crops import CropParams, Mix, apply_mix, crop_resize
from ..labels import LabelSource
from .files import load_pt

__all__ = ["BatchLabels", "ReplayedViews", "sampler_order", "whole_pixels"]


def sampler_order(count: int, epochs: int, seed: int = 42) -> Tensor:
    """The images of each epoch as a `RandomSampler` of one generator deals them, (epochs, count) int64.

    It is that of this version of torch: releases have drawn from the generator in different ways.
    """
    sampler = RandomSampler(range(count), generator=torch.Generator().manual_seed(seed))
    return torch.stack([torch.tensor(list(sampler)) for _ in range(epochs)])


def whole_pixels(fractions: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (n, 4) int64, top, left, height, width, of `fractions` (n, 4) of images of `size` (height, width)."""
    height, width = size
    return (fractions.double() * torch.tensor([height, width, height, width])).round().long()


@dataclass(frozen=True)
class _Epoch:
    """One epoch, by the rows of the set.

    Attributes:
        crops: Of each image.
        partners: (N,), each in the batch of its image.
        mix: That of its batch, for each image; None where nothing was mixed.
        logits: (N, K) float16.
    """

    crops: CropParams
    partners: Tensor
    mix: Mix | None
    logits: Tensor


class BatchLabels(LabelSource):
    """The logits in the authors' files, with the views that they are of. One epoch is in memory at a time.

    Args:
        folder: Holds `epoch_<e>/batch_<b>.tar`.
        order: (E, N): the rows that the batches of each epoch hold, one after another; `sampler_order` gives those of
            the authors' scripts.
        image_size: Height and width of the images that were labelled, in pixels.

    Attributes:
        views: What was labelled; after the last epoch comes the first again.
        num_images: N.
        num_classes: K.
        num_epochs: E.

    Raises:
        ValueError: Files are missing, hold something else or need code to be read, or do not fit `order`.
    """

    kind = "stored"

    def __init__(self, folder: str | Path, order: Tensor | Sequence[Sequence[int]], image_size: tuple[int, int]):
        self.folder, self.image_size = Path(folder), image_size
        self.order = torch.as_tensor(order, dtype=torch.long)
        if self.order.dim() != 2 or not self.order.numel():
            raise ValueError(f"an order of shape {tuple(self.order.shape)}; expected (epochs, images)")
        self.num_epochs, self.num_images = self.order.shape
        every = torch.arange(self.num_images)
        if not (self.order.sort(dim=1).values == every).all():
            raise ValueError(f"the order of an epoch does not name each of {self.num_images} images once")
        self._files = [self._batches(epoch) for epoch in range(self.num_epochs)]
        self.views: ReplayedViews = ReplayedViews(self)
        self._held: tuple[int, _Epoch] | None = None
        self._there: tuple[_Epoch, Tensor] | None = None  # its logits where they are used
        self.num_classes: int = self._epoch(0).logits.shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes of the files as they are: the crops are in them."""
        return sum(path.stat().st_size for files in self._files for path in files)

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """The stored logits (n, K) float32 of `rows` in an epoch, on the device of `images`.

        Raises:
            ValueError: `epoch` is None, or one of its files is damaged.
        """
        if epoch is None:
            raise ValueError("stored labels are of the views of an epoch, and no epoch was given; say which")
        known = self._epoch(epoch)
        if self._there is None or self._there[0] is not known or self._there[1].device != images.device:
            self._there = known, known.logits.to(images.device)
        return self._there[1][rows.to(images.device)].float()

    def _batches(self, epoch: int) -> list[Path]:
        folder = self.folder / f"epoch_{epoch}"
        numbered = {}
        for path in folder.glob("batch_*.tar"):
            found = re.fullmatch(r"batch_(\d+)", path.stem)
            if found:
                numbered[int(found[1])] = path
        if not numbered or sorted(numbered) != list(range(len(numbered))):
            raise ValueError(
                f"{folder} holds {len(numbered)} file(s) batch_<number>.tar; expected batch_0.tar and all after it"
            )
        return [numbered[number] for number in range(len(numbered))]

    def _epoch(self, epoch: int) -> _Epoch:
        epoch %= self.num_epochs
        if self._held is None or self._held[0] != epoch:
            self._held = epoch, self._load(epoch)
        return self._held[1]

    def _load(self, epoch: int) -> _Epoch:
        batches = [_batch(path, self.image_size) for path in self._files[epoch]]
        counts = [len(batch.logits) for batch in batches]
        if sum(counts) != self.num_images:
            raise ValueError(
                f"{self.folder}/epoch_{epoch} labels {sum(counts)} images, and there are {self.num_images}; use the "
                "images that were labelled"
            )
        kinds = {None if batch.mix is None else batch.mix.kind for batch in batches}
        widths = {batch.logits.shape[1] for batch in batches}
        if len(kinds) > 1 or len(widths) > 1:
            raise ValueError(f"the batches of {self.folder}/epoch_{epoch} differ in classes or in how they are mixed")
        rows = self.order[epoch]
        back = rows.argsort()
        partners = torch.cat(
            [own[batch.partners] for own, batch in zip(rows.split(counts), batches, strict=True)]
        )  # places in a batch become rows of the set
        mix = None
        if batches[0].mix is not None:
            values = torch.cat([batch.mix.values for batch in batches if batch.mix is not None])
            mix = Mix(batches[0].mix.kind, values[back])
        boxes = torch.cat([batch.crops.boxes for batch in batches])
        flip = torch.cat([batch.crops.flip for batch in batches])
        logits = torch.cat([batch.logits for batch in batches])
        return _Epoch(CropParams(boxes[back], flip[back]), partners[back], mix, logits[back])


class ReplayedViews:
    """The views that the authors' files speak of; called as `Views` are."""

    def __init__(self, labels: BatchLabels) -> None:
        self._labels = labels

    def __call__(self, images: Any, rows: Tensor, epoch: int, count: int, background: Tensor | float = 0.0) -> Tensor:
        """As `Views`.

        Raises:
            ValueError: The images are of another size or number than those that were labelled.
        """
        if count != self._labels.num_images:
            raise ValueError(
                f"labels of {self._labels.num_images:,} images for a student on {count:,}; expected the whole set that "
                "was labelled"
            )
        known, rows = self._labels._epoch(epoch), rows.cpu()
        own = self._cropped(images, rows, known)
        if known.mix is None:
            return own
        mix = Mix(known.mix.kind, known.mix.values[rows]).to(own.device)
        return apply_mix(own, self._cropped(images, known.partners[rows], known), mix)

    def _cropped(self, images: Any, rows: Tensor, known: _Epoch) -> Tensor:
        x = images(rows)
        if tuple(x.shape[2:]) != tuple(self._labels.image_size):
            raise ValueError(f"images of {tuple(x.shape[2:])} pixels; expected {tuple(self._labels.image_size)}")
        params = CropParams(known.crops.boxes[rows], known.crops.flip[rows])
        return crop_resize(x, params.to(x.device), self._labels.image_size)


def _batch(path: Path, size: tuple[int, int]) -> _Epoch:
    """One file: places in the batch stand for rows."""

    def refuse(what: str) -> ValueError:
        return ValueError(f"{path} {what}; expected [crops, flips, partners, λ, box, logits] of one batch")

    content = load_pt(path)
    if not isinstance(content, (list, tuple)) or len(content) != 6:
        raise refuse(f"holds a {type(content).__name__}, or not six parts")
    fractions, flip, partners, weight, box, logits = content
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point() or not len(logits):
        raise refuse("has no logits (images, classes)")
    if not logits.isfinite().all():
        raise refuse("has logits that are not finite")
    count, (height, width) = len(logits), size
    if not isinstance(fractions, Tensor) or fractions.shape != (count, 4) or not fractions.is_floating_point():
        raise refuse(f"has no crops ({count}, 4)")
    flip = torch.as_tensor(flip)
    if flip.shape != (count,):
        raise refuse(f"has no flips ({count},)")
    boxes = whole_pixels(fractions.clamp(-1, 2).nan_to_num(-1), size)
    ends = boxes[:, :2] + boxes[:, 2:]
    if boxes[:, :2].min() < 0 or boxes[:, 2:].min() < 1 or (ends > torch.tensor([height, width])).any():
        raise refuse(f"has crops beyond images of {height}x{width} pixels")
    crops = CropParams(boxes, flip != 0)
    if partners is None:
        return _Epoch(crops, torch.arange(count), None, logits.half())
    partners = torch.as_tensor(partners).long()
    if partners.shape != (count,) or not (partners.sort().values == torch.arange(count)).all():
        raise refuse(f"has partners that are no permutation of {count}")
    if box is None:
        weight = float(weight) if isinstance(weight, (int, float, np.number, Tensor)) else math.nan
        if not 0 <= weight <= 1:
            raise refuse("has a weight λ that is no number in [0, 1]")
        return _Epoch(crops, partners, Mix("mixup", torch.full((count,), weight)), logits.half())
    corners = torch.tensor([int(value) for value in box]) if isinstance(box, (list, tuple, Tensor)) else torch.empty(0)
    if len(corners) != 4 or corners.min() < 0 or (corners[2:] < corners[:2]).any():
        raise refuse("has a box that is none")
    # Their first axis is the image's first, the height, though they call it the width.
    top, left, bottom, right = corners.tolist()
    if bottom > height or right > width:
        raise refuse(f"has a box beyond images of {height}x{width} pixels")
    cut = torch.tensor([top, left, bottom - top, right - left]).repeat(count, 1)
    return _Epoch(crops, partners, Mix("cutmix", cut), logits.half())
