"""Shifted and bilinearly sampled images whose gradients are gathered: the same bits on every run of an accelerator.

PyTorch's gradient of `grid_sample` is scattered: every sample adds its part to the four pixels that it was made of, on
an accelerator in the order in which its threads come by. Here each pixel collects the parts of the samples that it went
into, in one order. These are the samples around the place to which the inverse map sends the pixel: of a rotation, or
of a map that shrinks distances to two thirds of themselves at most, three in a row and three in a column.

Both functions are linear in the images, and their gradients can be differentiated as often as one likes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.precision import without_autocast
from ..data.upload import upload

__all__ = ["sampled", "shifted"]

IN_ORDER = frozenset({"cpu"})  # devices where one thread adds up what `grid_sample` scatters into an image
BEYOND = 3  # zeros around an image, which the neighbours of what lies outside of it fall into


def shifted(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Pixel (i, j) of each image from (i + down, j + right), zero where that is beyond the border.

    Args:
        x: (n, C, H, W), of any floating type; differentiable.
        down, right: (n,) int64, in pixels.
    """
    return _Shifted.apply(x, down, right)


@without_autocast
def sampled(x: Tensor, matrices: Tensor) -> Tensor:
    """The pixel at p from the centre of each image from M p, by bilinear interpolation, zero beyond the border.

    Args:
        x: (n, C, H, W), of any floating type; differentiable. Half precision is computed in float32.
        matrices: M (n, 2, 2), for (across, down) in pixels: rotations, or maps that have an inverse which makes no
            distance along a side more than 1.5 times as long.
    """
    height, width = x.shape[2:]
    if 1 in (height, width):  # a single row or column has no second direction
        lines = upload(torch.tensor([[width > 1, False], [False, height > 1]]), x.device)
        matrices = torch.where(lines, matrices, torch.eye(2, dtype=matrices.dtype, device=x.device))
    exact = x if x.dtype == torch.float64 else x.float()
    return _Sampled.apply(exact, _grid(matrices, exact), matrices).to(x.dtype)


class _Shifted(torch.autograd.Function):
    """The gradient of images that were shifted is shifted back."""

    @staticmethod
    def forward(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows = torch.arange(height, device=x.device) + down.view(-1, 1)  # (n, H)
        columns = torch.arange(width, device=x.device) + right.view(-1, 1)  # (n, W)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        place = (rows.clamp(0, height - 1) * width)[:, :, None] + columns.clamp(0, width - 1)[:, None, :]
        moved = x.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)
        return moved * inside[:, None].to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        down, right = ctx.saved_tensors
        return shifted(gradient, -down, -right), None, None


class _Sampled(torch.autograd.Function):
    """A of `sampled`, for which (A x)(p) is the sample of x at M p; `grid` says the same as `matrices`."""

    @staticmethod
    def forward(x: Tensor, grid: Tensor, matrices: Tensor) -> Tensor:
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Collected.apply(gradient, *ctx.saved_tensors), None, None


class _Collected(torch.autograd.Function):
    """Aᵀ: every pixel gets the parts of the samples that it went into. Its own gradient is A."""

    @staticmethod
    def forward(y: Tensor, grid: Tensor, matrices: Tensor) -> Tensor:
        if y.device.type in IN_ORDER:  # several times as fast as gathering there
            return torch.ops.aten.grid_sampler_2d_backward(y, y, grid, 0, 0, True, [True, False])[0]
        return collected(y, matrices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Sampled.apply(gradient, *ctx.saved_tensors), None, None


def _grid(matrices: Tensor, x: Tensor) -> Tensor:
    """The places M p as `grid_sample` counts them: from -1 to 1 between the middles of the outer pixels of a side."""
    ratio = max(x.shape[2] - 1, 1) / max(x.shape[3] - 1, 1)  # keeps an image that is not square from shearing
    a, b, c, d = matrices.flatten(1).unbind(1)
    nothing = torch.zeros_like(a)
    theta = torch.stack([a, b * ratio, nothing, c / ratio, d, nothing], dim=1).view(-1, 2, 3)
    return F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=True)


def collected(y: Tensor, matrices: Tensor) -> Tensor:
    """Aᵀ y (n, C, H, W) of `sampled`'s A, without a sum whose order can vary: each pixel looks at nine samples.

    Args:
        y: (n, C, H, W): what the samples have to give.
        matrices: As in `sampled`.
    """
    height, width = y.shape[2:]
    a, b, c, d = matrices.to(y.dtype).flatten(1)[..., None, None].unbind(1)  # (n, 1, 1)
    down = (torch.arange(height, dtype=y.dtype, device=y.device) - (height - 1) / 2)[:, None]
    across = torch.arange(width, dtype=y.dtype, device=y.device) - (width - 1) / 2
    # The sample that was taken nearest to each pixel, from the corner, and how far from the pixel.
    determinant = a * d - b * c
    column = ((d * across - b * down) / determinant + (width - 1) / 2).round()  # (n, H, W)
    row = ((a * down - c * across) / determinant + (height - 1) / 2).round()
    beside, below = column - (width - 1) / 2, row - (height - 1) / 2
    beside, below = a * beside + b * below - across, c * beside + d * below - down
    line = width + 2 * BEYOND
    padded = F.pad(y, (BEYOND,) * 4).flatten(2)  # (n, C, (H + 6) (W + 6))
    place = (row.clamp(-2, height + 1) + BEYOND).long() * line + (column.clamp(-2, width + 1) + BEYOND).long()
    total = torch.zeros_like(y)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            weight = (1 - (beside + (a * j + b * i)).abs()).clamp(min=0)
            weight = weight * (1 - (below + (c * j + d * i)).abs()).clamp(min=0)
            samples = padded.gather(2, (place + (i * line + j)).flatten(1)[:, None].expand(-1, y.shape[1], -1))
            total.addcmul_(weight[:, None], samples.view_as(y))
    return total
