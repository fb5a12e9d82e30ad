"""`Ragged`: images of different shapes, one after another in one buffer, and boxes cut out of them all at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .upload import upload

__all__ = ["Ragged"]


@dataclass(frozen=True)
class Ragged:
    """A batch of images of different shapes.

    Attributes:
        pixels: (P, C) uint8, on any device: the pixels of all images, each image row by row.
        sizes: (n, 2) int64 on the CPU: height and width of each.
    """

    pixels: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, images: Sequence[np.ndarray], channels: int) -> "Ragged":
        """A copy of images (h, w, C) uint8."""
        sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int64).reshape(-1, 2)
        pixels = np.concatenate([np.empty((0, channels), np.uint8), *(image.reshape(-1, channels) for image in images)])
        return cls(torch.from_numpy(pixels), sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels.device

    def to(self, device: torch.device | str) -> "Ragged":
        """The same images on `device`."""
        return Ragged(upload(self.pixels, device), self.sizes)

    def cut(self, numbers: Tensor, boxes: Tensor) -> Tensor:
        """One box of each of some images, (m, C, h, w) uint8: each at the top left of a canvas for the largest one.

        What is below and to the right of a smaller box repeats its last row and column.

        Args:
            numbers: (m,) int64 on the CPU, of the images; one may come several times.
            boxes: (m, 4) int64 on the CPU: top, left, height, width, in pixels, inside the image.
        """
        starts = self.sizes.prod(1).cumsum(0) - self.sizes.prod(1)
        parts = torch.cat([starts[numbers, None], self.sizes[numbers, 1:], boxes], dim=1)
        start, stride, top, left, tall, wide = upload(parts, self.device)[:, :, None, None].unbind(1)
        down, across = (torch.arange(int(boxes[:, side].max()), device=self.device) for side in (2, 3))
        y = top + down[:, None].minimum(tall - 1)  # (m, h, 1)
        x = left + across.minimum(wide - 1)  # (m, 1, w)
        return self.pixels[start + y * stride + x].permute(0, 3, 1, 2)
