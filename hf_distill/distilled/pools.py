"""`Pool`: labelled images to train or test on, on the device."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..data.images import RealImages
from ..data.preprocessing import Preprocessing
from .labels import LabelSource

RESIDENT_BYTES = 2**32  # real images up to this size stay on the device
TEST_BATCH = 1024


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
            images = self.source[upload(rows, self.device)]
        else:
            images = upload(self.source.uint8(rows), self.device)
        return images if self.preprocessing is None else self.preprocessing(images)

    @property
    def black(self) -> Tensor | float:
        """What a network sees of a black pixel, (C, 1, 1) on the device; 0 where nothing tells."""
        if self.preprocessing is None or self.preprocessing.zca is not None:
            return 0.0
        return self.preprocessing(torch.zeros(1, *self.shape, device=self.device))[0, :, :1, :1]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Everything in order: rows (n,) on the CPU, and images (n, C, H, W)."""
        for rows in torch.arange(len(self)).split(TEST_BATCH):
            yield rows, self.images(rows)

    def targets(self, source: LabelSource, rows: Tensor | None = None) -> Tensor:
        """What `source` says of some images: classes (n,), or logits (n, K) as float16, which is how they travel.

        Args:
            source: Whom to ask.
            rows: (n,) on the CPU; all if not given.
        """
        rows = torch.arange(len(self)) if rows is None else rows
        found: list[Tensor] = []  # one tensor for all parts, when the first says what they are like
        for start in range(0, len(rows), TEST_BATCH):
            part = rows[start : start + TEST_BATCH]
            said = source(self.images(part), self.labels[part], part)
            if not found:
                dtype = torch.float16 if said.is_floating_point() else said.dtype
                found = [torch.empty((len(rows), *said.shape[1:]), dtype=dtype, device=self.device)]
            found[0][start : start + len(part)] = said  # halved part by part: all of ImageNet-1K are gigabytes
        return found[0]


class RowTargets:
    """What `source` says of some rows of a pool, to be found under their numbers in the pool."""

    def __init__(self, pool: Pool, source: LabelSource, rows: Tensor) -> None:
        used = rows.unique()
        self.rows, self.values = upload(used, pool.device), pool.targets(source, used)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.values[torch.searchsorted(self.rows, rows)]


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`; the host does not wait for the copy."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def loss_targets(targets: Tensor) -> Tensor:
    """What the cross-entropy takes: classes (N,) as they are, softmax(targets) for logits (N, K)."""
    return targets.float().softmax(dim=-1) if targets.is_floating_point() else targets
