"""`NoisyCrops`: mirrored, resized crops, some of them with noise, as linear gradient matching looks at images.

Everything is drawn from counters, as in `crops`: a function of (seed, path, id), and differentiable in the images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.precision import without_autocast
from .crops import CROP_DRAWS, MIN_SCALE, crop_resize, draw_crops, uniform

__all__ = ["NoisyCrops", "normal"]

CROP, NOISE = 1, 2  # paths of the draws, behind the caller's


def normal(seed: int, path: Sequence[int], ids: Tensor, count: int, device: torch.device | str | None = None) -> Tensor:
    """`count` standard normal numbers for each id, (n, count) float32, by Box and Muller; see `crops.uniform`."""
    half = (count + 1) // 2
    u = uniform(seed, path, ids, 2 * half, device)
    radius, angle = (-2 * torch.log1p(-u[:, :half])).sqrt(), 2 * math.pi * u[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


@dataclass(frozen=True)
class NoisyCrops:
    """Random crops of images, resized and mirrored, some of which get noise.

    Attributes:
        seed: Everything random is a function of it, of a path and of ids.
        scale: Smallest and largest area of a crop, as a share of the image.
        flip: Probability of mirroring.
        noise: Probability of noise.
        noise_mean, noise_std: Of the normal noise that is added to pixels in [0, 1], which nothing cuts off then.
    """

    seed: int = 0
    scale: tuple[float, float] = (MIN_SCALE, 1.0)
    flip: float = 0.5
    noise: float = 0.5
    noise_mean: float = 0.5
    noise_std: float = 0.2

    @without_autocast
    def __call__(self, images: Tensor, path: Sequence[int], ids: Tensor, size: tuple[int, int]) -> Tensor:
        """The crops (n, C, *size) float32 of images; differentiable.

        Args:
            images: (n, C, H, W) in [0, 1], or uint8.
            path: What the crops are for.
            ids: (n,) int64: each has a crop of its own.
            size: Height and width in pixels.
        """
        device = images.device
        u = uniform(self.seed, (*path, CROP), ids, CROP_DRAWS + 1, device)
        boxes = draw_crops(u, (images.shape[2], images.shape[3]), self.scale, flip=self.flip)
        seen = crop_resize(images, boxes, size)
        if not self.noise:
            return seen
        noise = normal(self.seed, (*path, NOISE), ids, seen[0].numel(), device).view_as(seen)
        noisy = (u[:, CROP_DRAWS] < self.noise).view(-1, 1, 1, 1)
        return seen + noisy * (self.noise_mean + self.noise_std * noise)
