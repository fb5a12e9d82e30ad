"""Cutout and RandAugment as ImageNet-21K-P is trained with (arXiv:2104.10972), on whole batches of bytes.

First a rectangle of half the sides gets one random colour; it may reach beyond the border. Then come two operations
out of 15, each left out half the time, at one of nine strengths. What happens to an image is a function of its numbers.

The authors' code, github.com/Alibaba-MIIL/ImageNet21K, calls the package `randaugment` 1.0.2, which takes images of PIL
one after another. Here all images that drew an operation go through it together. It differs in this:

- Shears take the nearest pixel, as the authors' shifts and rotations do; their shears interpolate.
- Heights are heights: the authors exchange height and width, which are equal there.

As theirs, rotations go one way only, and what comes in from beyond the border is gray.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.upload import upload

CUTOUT_DRAWS, OPERATION_DRAWS, ROUNDS = 5, 6, 2
DRAWS = CUTOUT_DRAWS + ROUNDS * OPERATION_DRAWS
LEVELS = 9
GRAY = 128  # of what comes in from beyond the border
HOLE = (125, 122, 113)  # RandAugment's own cutout, of up to 20 pixels


def cutout_randaugment(images: Tensor, u: Tensor) -> Tensor:
    """A rectangle of one colour in each image, then two random operations.

    Args:
        images: (n, C, H, W) uint8, gray or RGB.
        u: (n, `DRAWS`) numbers in [0, 1) on the CPU, where they are read.

    Returns:
        (n, C, H, W) uint8.
    """
    device = images.device
    colours = upload((u[:, 2 : 2 + images.shape[1]] * 256).to(torch.uint8), device)
    half = [int(side * 0.5 + 0.5) // 2 for side in images.shape[2:]]
    centre = (u[:, :2] * torch.tensor(images.shape[2:])).long()
    reach = torch.tensor(half)
    images = _fill(images, upload(torch.cat([centre - reach, centre + reach + 1], 1), device), colours)
    for numbers in u[:, CUTOUT_DRAWS:DRAWS].split(OPERATION_DRAWS, dim=1):
        images = operate(images, *draw_operations(numbers))
    return images


def draw_operations(u: Tensor) -> tuple[Tensor, Tensor]:
    """One operation for each image, (n,) int64: an index into `OPERATIONS`, or their number for none; and its amounts.

    Args:
        u: (n, `OPERATION_DRAWS`) numbers in [0, 1) on the CPU.

    Returns:
        The operations, and (n, 4) float64: strength from 1/9 to 1; the same, negative in half the cases; a place, down
        and right, as shares of the image.
    """
    chosen = (u[:, 1] * len(OPERATIONS)).long().masked_fill(u[:, 0] < 0.5, len(OPERATIONS))
    strength = ((u[:, 2] * LEVELS).floor() + 1).double() / LEVELS
    signed = torch.where(u[:, 3] < 0.5, -strength, strength)
    return chosen, torch.cat([strength[:, None], signed[:, None], u[:, 4:6].double()], dim=1)


def operate(images: Tensor, chosen: Tensor, amounts: Tensor) -> Tensor:
    """`images` (n, C, H, W) uint8, each through the operation that `draw_operations` gave it."""
    order = chosen.argsort(stable=True)  # equal ones side by side: one call for each operation
    counts = chosen.bincount(minlength=len(OPERATIONS) + 1).tolist()
    there = upload(order, images.device)
    given = upload(amounts[order], images.device)
    done = images[there]
    parts = zip(done.split(counts), given.split(counts), strict=True)
    for operation, (part, amount) in zip(OPERATIONS.values(), parts, strict=False):  # what comes last is left out
        if len(part):
            part.copy_(operation(part, *amount.unbind(1)))
    result = torch.empty_like(images)
    result[there] = done
    return result


def _fill(images: Tensor, boxes: Tensor, colours: Tensor) -> Tensor:
    """`images` (n, C, H, W) with colours (n, C) in boxes (n, 4): top, left, bottom, right, the latter two outside."""
    top, left, bottom, right = boxes[:, :, None].unbind(1)  # (n, 1)
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return torch.where((down[:, :, None] & across[:, None, :])[:, None], colours[:, :, None, None], images)


def _moved(images: Tensor, **entries: Tensor) -> Tensor:
    """Each pixel (x, y) from (a x + b y + c, d x + e y + f), measured from the upper left corner; `entries` are (n,).

    Entries that are not given are those of the identity.
    """
    count, _, height, width = images.shape
    y, x = (torch.arange(side, device=images.device) + 0.5 for side in (height, width))
    rest = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 1.0, "f": 0.0}
    a, b, c, d, e, f = (entries[name][:, None, None] if name in entries else rest[name] for name in rest)
    columns = (a * x + b * y[:, None] + c).floor().long().expand(count, height, width)
    rows = (d * x + e * y[:, None] + f).floor().long().expand(count, height, width)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    which = torch.arange(count, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[which, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]  # (n, H, W, C)
    return moved.masked_fill(~inside[..., None], GRAY).permute(0, 3, 1, 2)


def _blended(images: Tensor, plain: Tensor, signed: Tensor) -> Tensor:
    """`plain` images, whole numbers, with up to 90 % more or less than all of the difference to `images`."""
    plain = plain.float()
    factor = (1 + 0.9 * signed).float()[:, None, None, None]
    return (plain + factor * (images - plain)).clamp(0, 255).to(torch.uint8)


def _luminance(images: Tensor) -> Tensor:
    """(n, 1, H, W) int32, with the weights of PIL."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None]


# Operations: of images (n, C, H, W) uint8, their strengths (n,), the signed ones (n,), and places (n,), (n,)


def _cutout(images: Tensor, strength: Tensor, signed: Tensor, down: Tensor, right: Tensor) -> Tensor:
    half = (strength * 20).round().long() // 2
    centre = [(share * side).long() for share, side in zip((down, right), images.shape[2:], strict=True)]
    boxes = torch.stack([*(at - half for at in centre), *(at + half for at in centre)], 1)
    colour = upload(torch.tensor(HOLE[: images.shape[1]], dtype=torch.uint8), images.device)
    return _fill(images, boxes, colour.expand(len(images), -1))


def _sharpness(images: Tensor, strength: Tensor, signed: Tensor, *place: Tensor) -> Tensor:
    if min(images.shape[2:]) < 3:
        return images
    smooth = images.float()
    inner = smooth[:, :, 1:-1, 1:-1]
    sums = F.avg_pool2d(smooth, 3, 1, divisor_override=1) + 4 * inner  # whole numbers
    inner.copy_((sums / 13).round())
    return _blended(images, smooth, signed)


def _autocontrast(images: Tensor, *numbers: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import autocontrast  # here, for it takes seconds to import

    return autocontrast(images)


def _equalize(images: Tensor, *numbers: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import equalize

    return equalize(images)


def _posterize(images: Tensor, strength: Tensor, signed: Tensor, *place: Tensor) -> Tensor:
    dropped = (4 * strength).round().int()  # bits; 4 strength never is half a bit
    return images & ((0xFF << dropped) & 0xFF).to(torch.uint8)[:, None, None, None]


def _rotate(images: Tensor, strength: Tensor, signed: Tensor, *place: Tensor) -> Tensor:
    height, width = images.shape[2:]
    angle = torch.deg2rad(30 * strength)
    cosine, sine = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    c, f = x - cosine * x + sine * y, y - sine * x - cosine * y
    return _moved(images, a=cosine, b=-sine, c=c, d=sine, e=cosine, f=f)


def _contrast(images: Tensor, strength: Tensor, signed: Tensor, *place: Tensor) -> Tensor:
    mean = _luminance(images).double().mean((1, 2, 3), keepdim=True)
    return _blended(images, (mean + 0.5).floor(), signed)


def _solarize(images: Tensor, strength: Tensor, signed: Tensor, *place: Tensor) -> Tensor:
    bound = (256 - 256 * strength)[:, None, None, None]
    return torch.where(images < bound, images, 255 - images)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "invert": lambda images, *_: 255 - images,
    "cutout": _cutout,
    "sharpness": _sharpness,
    "autocontrast": _autocontrast,
    "posterize": _posterize,
    "shear_x": lambda images, strength, signed, *_: _moved(images, b=0.3 * signed),
    "translate_x": lambda images, strength, signed, *_: _moved(images, c=150 / 331 * images.shape[3] * signed),
    "translate_y": lambda images, strength, signed, *_: _moved(images, f=150 / 331 * images.shape[2] * signed),
    "shear_y": lambda images, strength, signed, *_: _moved(images, d=0.3 * signed),
    "rotate": _rotate,
    "equalize": _equalize,
    "contrast": _contrast,
    "color": lambda images, strength, signed, *_: _blended(images, _luminance(images), signed),
    "solarize": _solarize,
    "brightness": lambda images, strength, signed, *_: _blended(images, torch.zeros_like(images), signed),
}
