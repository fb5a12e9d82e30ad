"""Crops that shrink: boxes of images, each resized with antialiasing, as two matrix products."""

import torch
from torch import Tensor

from ..data.precision import without_autocast
from ..data.ragged import Ragged
from ..data.resampling import shrinking
from ..data.upload import upload

MOST_PIXELS = 2**24  # of boxes of images of different shapes that are cut out at once


@without_autocast
def take_crops(images: Tensor | Ragged, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The boxes of `images`, each resized with antialiasing as if it were an image of its own, (n, C, *size) uint8.

    Args:
        images: (n, C, H, W) uint8, or n of different shapes.
        boxes: (n, 4) int64: top, left, height, width; on the CPU, or where images of one shape are.
        size: Height and width of the result.
    """
    if isinstance(images, Tensor):
        return _taken(images, upload(boxes, images.device), size)
    largest = int(boxes[:, 2:].amax(0).prod())
    parts = torch.arange(len(boxes)).split(max(1, MOST_PIXELS // largest))
    corner = torch.tensor([0, 0, 1, 1])
    taken = [_taken(images.cut(part, boxes[part]), upload(boxes[part] * corner, images.device), size) for part in parts]
    return torch.cat(taken)


def _taken(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    top, left, tall, wide = boxes.unbind(1)
    down = shrinking(top, tall, images.shape[2], size[0])[:, None]
    across = shrinking(left, wide, images.shape[3], size[1])[:, None]
    return (down @ images.float() @ across.mT).round().clamp(0, 255).to(torch.uint8)
