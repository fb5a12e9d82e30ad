"""Crops, flips, rolls, shuffles and mixes of images that stay on the device, drawn from counters instead of generators.

What is drawn for an image is a pure function of (seed, path, id), with the epoch as the usual path and the row as the
id. So an image gets the same crop whichever batch, order, worker or process it is met in, and whoever labels it in
epoch 7 sees what the student sees in epoch 7, without a crop ever being stored.

`uniform` makes the numbers, in integers, equal to the last bit on every device. `draw_*` turns them into whole pixels,
`crop_resize`, `roll`, `shuffle_tiles` and `apply_mix` apply these. Nothing loops over images, and nothing waits for the
device, but for what is shared by a whole batch: its few numbers are read by the host, so they are best drawn there.

Columns of `uniform` that each draw takes: `draw_crops` the first `CROP_DRAWS`, `draw_cutmix` three, `draw_mixup` one,
`draw_roll` two, `draw_shuffle` two for each tile along a side. Two draws from the same columns are not independent of
each other: give each a path of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.upload import upload

ATTEMPTS = 10  # of a random box to fit into the image before the central one is taken
CROP_DRAWS = 2 * ATTEMPTS + 3
MIN_SCALE = 0.08

Curve = Literal["none", "step", "linear", "cosine"]

# splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the constants
# of Vigna's reference.
_STEP = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1
_PARTNERS = int.from_bytes(b"partners", "big")


# Numbers


def uniform(
    seed: int, path: Sequence[int], ids: Tensor, count: int, device: torch.device | str | None = None
) -> Tensor:
    """`count` numbers in [0, 1) for each id, (n, count) float32: multiples of 2⁻²⁴, the same bits on every device.

    Each id has a splitmix64 stream of its own, from a state that is a hash of (seed, path, id).

    Args:
        seed: The run's seed; integers count modulo 2⁶⁴ here and in the path.
        path: What the numbers are for, for example `(epoch,)`. Different paths give independent numbers.
        ids: (n,) int64, usually the rows of the images in their dataset.
        count: Numbers per id; asking for more does not change the first ones.
        device: Where to draw; by default where the ids are.
    """
    bits = _bits(seed, path, upload(ids, device or ids.device), count)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def partners(seed: int, epoch: int, count: int, device: torch.device | str | None = None) -> Tensor:
    """The row with which each of `count` rows is mixed in an epoch, (count,) int64: a permutation of the whole set."""
    keys = _bits(seed, (_PARTNERS, epoch), torch.arange(count, device=device), 1)
    return keys[:, 0].argsort(stable=True)


def _bits(seed: int, path: Sequence[int], ids: Tensor, count: int) -> Tensor:
    """(n, count) int64, all 64 bits random."""
    key = 0
    for part in (seed, *path):
        key = _mix_word((key + _STEP & _WORD) ^ (part & _WORD))
    state = _mix(_mix(ids.to(torch.int64)) ^ _signed(key))  # twice: a stream must not be a shift of its neighbour's
    steps = torch.arange(1, count + 1, device=ids.device) * _signed(_STEP)
    return _mix(state[:, None] + steps)


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned word; a tensor's integers wrap around as words do."""
    return word - (1 << 64) if word >> 63 else word


def _shift(x: Tensor, by: int) -> Tensor:
    """A logical shift to the right; the one of int64 copies the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def _mix_word(x: int) -> int:
    x = (x ^ x >> 30) * _FIRST & _WORD
    x = (x ^ x >> 27) * _SECOND & _WORD
    return x ^ x >> 31


# Crops


@dataclass(frozen=True)
class CropParams:
    """Which part of each image is shown, and which are mirrored. One row counts for a whole batch.

    Attributes:
        boxes: (n, 4) int64: top, left, height, width, in pixels, inside the image.
        flip: (n,) bool: left and right change places, after the crop.
    """

    boxes: Tensor
    flip: Tensor

    def to(self, device: torch.device | str) -> "CropParams":
        """The same parameters on `device`."""
        return CropParams(upload(self.boxes, device), upload(self.flip, device))


def draw_crops(
    u: Tensor,
    image_size: int | tuple[int, int] | Tensor,
    scale: tuple[float, float] = (MIN_SCALE, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> CropParams:
    """Random boxes by the rule of torchvision's RandomResizedCrop, and flips.

    Up to `ATTEMPTS` times an area and the logarithm of a ratio are drawn uniformly; the first box that fits gets a
    uniform place. If none fits, it is the largest central box with a ratio in range. Computed in double precision, so
    that the last bits, in which the exponentials of devices differ, are rounded away with the fractions of pixels.

    Args:
        u: Numbers in [0, 1), (n, at least `CROP_DRAWS`), where the boxes are to be.
        image_size: Height and width in pixels, or the side of a square; or of each image, (n, 2), where `u` is.
        scale: Smallest and largest area, as a share of the image.
        ratio: Smallest and largest width / height.
        flip: Probability of mirroring.

    Raises:
        ValueError: Too few numbers, or a scale or ratio that is no range of positive numbers.
    """
    _check_columns(u, CROP_DRAWS, "a crop")
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high:
            raise ValueError(f"crops with {name}=({low}, {high}); expected 0 < smallest <= largest")
    if isinstance(image_size, Tensor):
        height, width = image_size.double().unbind(1)
    else:
        height, width = (torch.full((1,), side, device=u.device).double() for side in _pair(image_size))
    u = u.double()
    area, log_ratio = u[:, :ATTEMPTS], u[:, ATTEMPTS : 2 * ATTEMPTS]
    area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = (math.log(value) for value in ratio)
    ratios = torch.exp(low + (high - low) * log_ratio)
    widths, heights = torch.sqrt(area * ratios).round(), torch.sqrt(area / ratios).round()
    fits = (widths > 0) & (widths <= width[:, None]) & (heights > 0) & (heights <= height[:, None])
    first = fits.int().argmax(1, keepdim=True)
    tall, wide = heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0]
    top = (u[:, 2 * ATTEMPTS] * (height - tall + 1)).floor()
    left = (u[:, 2 * ATTEMPTS + 1] * (width - wide + 1)).floor()

    central_tall = torch.where(width / height < ratio[0], (width / ratio[0]).round(), height)
    central_wide = torch.where(width / height > ratio[1], (height * ratio[1]).round(), width)
    central_top, central_left = ((height - central_tall) / 2).floor(), ((width - central_wide) / 2).floor()
    any_fits = fits.any(1)
    drawn = zip((top, left, tall, wide), (central_top, central_left, central_tall, central_wide), strict=True)
    boxes = torch.stack([torch.where(any_fits, one, other) for one, other in drawn], dim=1)
    return CropParams(boxes.long(), u[:, CROP_DRAWS - 1] < flip)


def crop_resize(images: Tensor, params: CropParams, size: int | tuple[int, int]) -> Tensor:
    """The boxes of `images`, each resized to `size` as if it were an image of its own, and flipped; differentiable.

    Equal to cutting each box out and `F.interpolate(..., mode="bilinear", align_corners=False, antialias=False)`:
    pixels beyond the box have no part in it. In float32, images of 224 pixels come within 0.01/255 of that. It is meant
    for crops that grow; one that shrinks to less than half skips pixels (`shrinking.take_crops` does not).

    Args:
        images: (n, C, H, W), floats of any range, or uint8, which become float32 in [0, 1].
        params: One row per image, on the images' device; or one row for all, which the host reads.
        size: Height and width of the result in pixels, or the side of a square.

    Returns:
        (n, C, *size), of the type of float images and in their memory format. Half precision is computed in float32.
    """
    count = len(params.boxes)
    if count not in (1, len(images)):
        raise ValueError(f"{count} crops for {len(images)} images; expected one for each, or one for all")
    dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    x = images if images.dtype == torch.float64 else images.float()
    # A batch that happens to hold one image takes the same way as larger ones: its bits must not depend on the batch.
    cropped = _crop_one(x, params, _pair(size)) if count < len(images) else _crop_each(x, params, _pair(size))
    if images.dtype == torch.uint8:
        cropped = cropped / 255
    return cropped.to(dtype, memory_format=_memory_format(images))


def _crop_one(x: Tensor, params: CropParams, size: tuple[int, int]) -> Tensor:
    top, left, tall, wide = params.boxes[0].tolist()
    part = x[:, :, top : top + tall, left : left + wide]
    if size != (tall, wide):
        part = F.interpolate(part, size, mode="bilinear", align_corners=False, antialias=False)
    return part.flip(3) if bool(params.flip[0]) else part


def _crop_each(x: Tensor, params: CropParams, size: tuple[int, int]) -> Tensor:
    height, width = x.shape[2:]
    top, left, tall, wide = params.boxes.unbind(1)
    y = _places(top, tall, height, size[0], x.dtype)  # (n, h)
    across = _places(left, wide, width, size[1], x.dtype)  # (n, w)
    across = torch.where(params.flip[:, None], across.flip(1), across)
    shape = (len(x), *size)
    grid = torch.stack([across[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _places(first: Tensor, length: Tensor, full: int, size: int, dtype: torch.dtype) -> Tensor:
    """The places along a side of `full` pixels of each box's `size` samples, (n, size), in `grid_sample`'s [-1, 1].

    Sample i of a box that starts at f lies at p = f + clamp((i + ½) l / size − ½, 0, l − 1), which is (2p + 1) / full
    − 1 for the sampler. Times size · full that is an integer: only the division at the end rounds.
    """
    first, length = first[:, None], length[:, None]
    inside = (torch.arange(1, 2 * size, 2, device=first.device) * length).clamp(min=size)
    inside = inside.minimum((2 * length - 1) * size)
    return (inside + (2 * first - full) * size).to(dtype) / (size * full)


def min_scale(t: int, milestone_steps: float, curve: Curve) -> float:
    """The smallest area of a crop at step `t` of CDA's curriculum (arXiv:2311.18838), as a share of the image.

    It falls from 1 to 0.08 over the first `milestone_steps` along a cosine or a line, or holds 1 until the step there;
    "none" is 0.08 throughout.
    """
    if curve not in ("none", "step", "linear", "cosine"):
        raise ValueError(f"the crop curriculum {curve!r}; expected none, step, linear or cosine")
    if curve == "none" or t >= milestone_steps:
        return MIN_SCALE
    if curve == "step":
        return 1.0
    done = t / milestone_steps
    left = 1 - done if curve == "linear" else (1 + math.cos(math.pi * done)) / 2
    return MIN_SCALE + (1 - MIN_SCALE) * left


# Rolls


def draw_roll(u: Tensor, reach: int, symmetric: bool = False) -> Tensor:
    """Pixels to roll down and right, (n, 2) int64: each of 0 to `reach` as likely, or of -reach to reach."""
    _check_columns(u, 2, "a roll")
    low = -reach if symmetric else 0
    return (u[:, :2].double() * (reach - low + 1)).floor().long() + low


def roll(images: Tensor, offsets: Tensor) -> Tensor:
    """All `images` (n, C, H, W) rolled down and right by the same pixels: what leaves at one side enters opposite.

    Args:
        images: Of any type; differentiable.
        offsets: Down and right, (2,) or (1, 2); the host reads them.
    """
    down, right = offsets.flatten().tolist()
    return torch.roll(images, (down, right), dims=(2, 3))


# Tiles


def edges(side: int, factor: int) -> list[int]:
    """The ends of tiles along a side: `factor` + 1 pixels, and the first tiles are the longer ones."""
    short, rest = divmod(side, factor)
    return [short * tile + min(tile, rest) for tile in range(factor + 1)]


def draw_shuffle(u: Tensor, factor: int) -> Tensor:
    """Orders of `factor` tiles along each side, (n, 2, factor) int64: down, then across; each order is as likely.

    Args:
        u: Numbers in [0, 1), (n, at least 2 `factor`).
        factor: Tiles along a side.
    """
    _check_columns(u, 2 * factor, f"a shuffle of {factor}x{factor} tiles")
    return u[:, : 2 * factor].unflatten(1, (2, factor)).argsort(dim=2, stable=True)


def shuffle_tiles(images: Tensor, orders: Tensor) -> Tensor:
    """`images` (n, C, H, W) with their rows of tiles, and their columns of tiles, in other orders; differentiable.

    Tiles lie as `edges` says, whole rows and whole columns of them move, and no pixel is changed. For two tiles along
    an even side, the other order is a roll by half of it.

    Args:
        images: Of any type.
        orders: (n, 2, f) int64, as `draw_shuffle` gives them: which row of tiles comes first, second, ...; and which
            column.

    Raises:
        ValueError: There are more tiles than pixels along a side.
    """
    down, across = (
        upload(_shuffled(order, side), images.device)
        for order, side in zip(orders.unbind(1), images.shape[2:], strict=True)
    )
    shuffled = images.gather(2, down[:, None, :, None].expand_as(images))
    return shuffled.gather(3, across[:, None, None, :].expand_as(images))


def _shuffled(order: Tensor, side: int) -> Tensor:
    """The pixel that comes to each place along a side, (n, side) int64, for orders (n, f) of its tiles."""
    factor = order.shape[1]
    if factor > side:
        raise ValueError(f"{factor} tiles along a side of {side} pixels; expected at most {side}")
    starts = upload(torch.tensor(edges(side, factor)), order.device)
    first, length = starts[order], starts.diff()[order]  # (n, f), of the tiles as they come
    ends = length.cumsum(1)
    places = torch.arange(side, device=order.device).repeat(len(order), 1)
    return places + (first + length - ends).gather(1, torch.searchsorted(ends, places, right=True))


# Mixes


@dataclass(frozen=True)
class Mix:
    """The mix of each image with a partner. One row counts for a whole batch.

    Attributes:
        kind: "cutmix", where a box shows the partner, or "mixup", a weighted mean.
        values: The boxes (n, 4) int64: top, left, height, width, maybe empty; or the images' own weights (n,) float32.
        partners: Rows (n,) of the partners in the dataset, where the draw was told them.
    """

    kind: Literal["cutmix", "mixup"]
    values: Tensor
    partners: Tensor | None = None

    def to(self, device: torch.device | str) -> "Mix":
        """The same mix on `device`."""
        partners = None if self.partners is None else upload(self.partners, device)
        return Mix(self.kind, upload(self.values, device), partners)

    def own_share(self, image_size: tuple[int, int]) -> Tensor:
        """The share of each mixed image that is the image itself, (n,) float32: of its pixels, or its weight."""
        if self.kind == "mixup":
            return self.values
        area = self.values[:, 2] * self.values[:, 3]
        return 1 - area / (image_size[0] * image_size[1])


def draw_cutmix(
    u: Tensor, image_size: int | tuple[int, int], alpha: float = 1.0, partners: Tensor | None = None
) -> Mix:
    """Boxes that show the partner: sides ⌊S √(1 − λ)⌋ with λ ~ Beta(alpha, alpha), around any pixel, clipped.

    A side of one or none leaves the box empty, and odd sides lose a pixel, as in the authors' code. The share of the
    box is not λ after clipping; whoever mixes labels by hand takes it from the box.

    Args:
        u: Numbers in [0, 1), (n, at least 3).
        image_size: Height and width in pixels, or the side of a square.
        alpha: Of the Beta distribution; 1 is uniform.
        partners: To be kept in the result.
    """
    _check_columns(u, 3, "CutMix")
    side = torch.sqrt(1 - _beta(u[:, 0].double(), alpha))
    corners, lengths = [], []
    for length, place in zip(_pair(image_size), (u[:, 1], u[:, 2]), strict=True):
        half = (length * side).floor().long() // 2
        centre = (place.double() * length).floor().long()
        start, end = (centre - half).clamp(min=0), (centre + half).clamp(max=length)
        corners.append(start)
        lengths.append(end - start)
    return Mix("cutmix", torch.stack(corners + lengths, dim=1), partners)


def draw_mixup(u: Tensor, alpha: float = 0.8, partners: Tensor | None = None) -> Mix:
    """Weights λ ~ Beta(alpha, alpha) of the images; their partners weigh 1 − λ.

    Args:
        u: Numbers in [0, 1), (n, at least 1); λ is the quantile at the first.
        alpha: Of the Beta distribution; 1 is uniform.
        partners: To be kept in the result.
    """
    _check_columns(u, 1, "Mixup")
    return Mix("mixup", _beta(u[:, 0].double(), alpha).float(), partners)


def apply_mix(images: Tensor, partners_images: Tensor, mix: Mix) -> Tensor:
    """`images` (n, C, H, W) mixed with their partners, of the same shape; differentiable in both.

    The partners come as images because each has a crop of its own, from its own row.
    """
    if mix.kind == "mixup":
        weights = mix.values.view(-1, 1, 1, 1)
        return (weights * images + (1 - weights) * partners_images).to(images.dtype)
    height, width = images.shape[2:]
    top, left, tall, wide = mix.values[:, :, None].unbind(1)  # (n, 1)
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    down = (rows >= top) & (rows < top + tall)  # (n, H)
    across = (columns >= left) & (columns < left + wide)  # (n, W)
    return torch.where((down[:, :, None] & across[:, None, :])[:, None], partners_images, images)


def _beta(u: Tensor, alpha: float) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at `u` (n,) float64, to 1e-5.

    The distribution function F is proportional to xᵃ (1 − x)ᵃ ₂F₁(2a, 1; a + 1; x) (DLMF 8.17.8), a series that
    converges on the half [0, ½], and symmetry gives the other. (2 F)^(1/a) is smooth and nearly linear in x, so
    straight lines between knots invert it.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"a Beta distribution with alpha={alpha}; expected a positive number (1 is uniform)")
    if alpha == 1:
        return u
    x = torch.linspace(0, 0.5, 2049, dtype=u.dtype, device=u.device)
    k = torch.arange(100, dtype=u.dtype, device=u.device)
    ratios = (2 * alpha + k) / (alpha + 1 + k)
    series = 1 + torch.cumprod(x[:, None] * ratios, dim=1).sum(1)
    knots = x * (1 - x) * series ** (1 / alpha)
    knots = knots / knots[-1]
    place = (2 * torch.minimum(u, 1 - u)) ** (1 / alpha)
    above = torch.searchsorted(knots, place).clamp(1, len(x) - 1)
    low, high = knots[above - 1], knots[above]
    lower = x[above - 1] + (x[above] - x[above - 1]) * (place - low) / (high - low)
    return torch.where(u < 0.5, lower, 1 - lower)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _memory_format(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _check_columns(u: Tensor, count: int, what: str) -> None:
    if u.dim() != 2 or u.shape[1] < count:
        raise ValueError(f"random numbers of shape {tuple(u.shape)}; {what} takes (n, {count}) or more columns")
