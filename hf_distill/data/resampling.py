"""Resizing as two matrix products, whose gradient is the same on every run, on an accelerator too."""

import torch
from torch import Tensor

from .precision import without_autocast

__all__ = ["resized", "shrinking"]


def shrinking(first: Tensor, length: Tensor, full: int, size: int) -> Tensor:
    """The matrices (n, size, full) that cut `length` of `full` pixels out at `first` and resize them to `size`.

    Row i holds the weights of the pixels that become pixel i: a triangle around its middle, as wide as two pixels of
    the result, or of the cut where that is the smaller one. That is bilinear interpolation with antialiasing.

    Args:
        first, length: (n,) int64, in pixels.
    """
    first, length = first[:, None, None].double(), length[:, None, None].double()
    scale = length / size
    middle = (torch.arange(size, device=first.device)[:, None] + 0.5) * scale
    place = torch.arange(full, device=first.device) + 0.5 - first
    weights = (1 - (place - middle).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((place > 0) & (place < length))
    return (weights / weights.sum(2, keepdim=True)).float()


@without_autocast
def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`images` (n, C, h, w) as (n, C, *size), by bilinear interpolation with antialiasing; differentiable."""
    zero = torch.zeros(1, dtype=torch.int64, device=images.device)
    down, across = (
        shrinking(zero, zero + full, full, side)[0].to(images.dtype)
        for full, side in zip(images.shape[2:], size, strict=True)
    )
    return down @ images @ across.T
