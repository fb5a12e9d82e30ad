"""The real images that are nearest to pieces of others: their windows at any place and scale, mirrored or not.

The distance of a piece a and a window b, both resized to p × p pixels, is that of the unit vectors that are left of
them without their means, whatever the brightness and the contrast:

    d(a, b) = ‖ã − b̃‖ = √(2 − 2 r)        r = ⟨ã, b̃⟩, their correlation        0 ≤ d ≤ 2

Images are compared in gray, which finds those too whose colours were changed. A search has two steps: the first
compares each piece with windows of all real images on a grid, as thumbnails, in one pass, block by block; the second
moves the windows of the few best images pixel by pixel.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..augmentation.crops import edges
from ..data.resampling import resized, shrinking

__all__ = [
    "Kind",
    "Matches",
    "distance",
    "kinds_for",
    "nearest_features",
    "nearest_windows",
    "standardised",
    "working",
]

LARGEST = 64  # side in pixels at which images are compared; larger ones are reduced to it
LEAST = 4  # pixels of a window's side
PIECE = 16  # largest side at which a piece is compared in the end
LEAST_TILE = 8  # pixels of a tile's side, below which it has too few to be told apart
FLAT = 2.0  # of 255: what deviates less is noise, and is like nothing
VALUES = 2**25  # of products that are held at a time
PAIRS = 512  # of pieces and images that are refined together
CANDIDATES = 16  # windows for each piece that the first step leaves, of eight images at least

Fetch = Callable[[Tensor], Tensor]  # rows (n,) to images (n, C, H, W), or to features (n, D)


class Kind(NamedTuple):
    """Pieces of images, and the windows of real images that they are compared with at first.

    Attributes:
        boxes: (n, 4) int64, of the pieces: top, left, height, width.
        thumb: Side of a thumbnail.
        stride: Step between windows, in thumbnail pixels.
        sides: Of the real image, in thumbnail pixels: a window is `thumb / side` of it.
        scales: Windows grow and shrink in the second step.
    """

    boxes: Tensor
    thumb: int
    stride: int
    sides: tuple[int, ...]
    scales: bool

    @property
    def side(self) -> int:
        """Pixels of a side at which the pieces are compared in the end."""
        return min(PIECE, int(self.boxes[:, 2:].min()))

    def pieces(self, images: Tensor) -> Tensor:
        """The pieces of n `working` images, one image after another: (n pieces, 1, side, side)."""
        top, left, tall, wide = self.boxes.to(images.device).unbind(1)
        down = shrinking(top, tall, images.shape[2], self.side)
        across = shrinking(left, wide, images.shape[3], self.side)
        return (down @ images @ across.mT).flatten(0, 1)[:, None]


class Matches(NamedTuple):
    """The nearest real images of Q pieces, nearest first, each image once.

    Attributes:
        distances: (Q, k) float32.
        rows: (Q, k) int64, of the real images.
        boxes: (Q, k, 4) int64, their windows: top, left, height, width, in pixels of `working` images.
        mirrored: (Q, k) bool.
    """

    distances: Tensor
    rows: Tensor
    boxes: Tensor
    mirrored: Tensor


def working(images: Tensor) -> Tensor:
    """Pixels (n, C, H, W) as they are compared: gray, (n, 1, h, w) float32, with sides of 64 pixels at most."""
    gray, (height, width) = images.float().mean(1, keepdim=True), images.shape[2:]
    scale = LARGEST / max(height, width)
    return gray if scale >= 1 else resized(gray, (max(1, round(scale * height)), max(1, round(scale * width))))


def kinds_for(size: tuple[int, int], factor: int) -> dict[str, Kind]:
    """The pieces that are looked for of an image of this height and width, by kind.

    "image" finds what was copied, shifted by an eighth of a side at most, or mirrored: an eighth at each edge is left
    out. "crop" finds what was cut out and enlarged. "tiles" finds what was put together of `factor` x `factor` crops,
    for a factor of 1 of four; tiles of under 8 pixels are left out.
    """
    height, width = size
    tall, wide = (max(1, round(0.75 * side)) for side in size)
    middle = torch.tensor([[(height - tall) // 2, (width - wide) // 2, tall, wide]])
    kinds = {"image": Kind(middle, 12, 1, (16,), False)}
    for name, parts in (("crop", 1), ("tiles", max(2, factor))):
        if (name == "crop" and factor > 1) or min(size) // parts < LEAST_TILE:
            continue
        rows, columns = (list(pairwise(edges(side, parts))) for side in size)
        boxes = [[top, left, down - top, right - left] for (top, down), (left, right) in product(rows, columns)]
        kinds[name] = Kind(torch.tensor(boxes), 8, 2, (8, 10, 12, 14, 16, 20, 24, 28), True)
    return kinds


def standardised(images: Tensor) -> Tensor:
    """The unit vectors (..., D) of images (..., C, h, w) without their means; shorter ones of what is flat."""
    flat = images.flatten(-3)
    flat = flat - flat.mean(-1, keepdim=True)
    return flat / flat.norm(dim=-1, keepdim=True).clamp(min=FLAT * math.sqrt(flat.shape[-1]))


def distance(similarity: Tensor) -> Tensor:
    """The distance of unit vectors whose product is `similarity`."""
    return (2 - 2 * similarity).clamp(min=0).sqrt()


def _best(found: list[Tensor], new: list[Tensor], kept: int) -> list[Tensor]:
    """Of two lists of columns, of which the first is a similarity, the `kept` best of each line."""
    together = [torch.cat(pair, dim=1) for pair in zip(found, new, strict=True)] if found else new
    places = together[0].topk(min(kept, together[0].shape[1]), dim=1).indices
    return [column.gather(1, places) for column in together]


class _Grid:
    """The windows of images of one size that the first step compares, by number."""

    def __init__(self, kind: Kind, size: tuple[int, int]) -> None:
        self.kind = kind
        self.sides = [side for side in kind.sides if kind.thumb * min(size) >= LEAST * side]
        boxes = []
        for side in self.sides:
            steps = torch.arange(0, side - kind.thumb + 1, kind.stride) / side
            top, left = torch.meshgrid(steps, steps, indexing="ij")
            share = torch.full_like(top, kind.thumb / side)
            boxes.append(torch.stack([top, left, share, share], dim=-1).flatten(0, 1))
        height, width = size
        self.counts = [len(each) for each in boxes]
        self.boxes = (torch.cat(boxes) * torch.tensor([height, width, height, width])).round().long()

    def best(self, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """Of (Q, n, windows) the best of each image, and the best of another scale: two of each, (Q, n, 2).

        One, (Q, n, 1), where there is one scale.
        """
        best = [each.max(2) for each in similarity.split(self.counts, dim=2)]
        values, scale = torch.stack([each.values for each in best], dim=2).topk(min(2, len(best)), dim=2)
        first = torch.tensor([0, *self.counts[:-1]], device=scale.device).cumsum(0)
        places = torch.stack([each.indices for each in best], dim=2) + first
        return values, places.gather(2, scale)

    def windows(self, images: Tensor) -> Tensor:
        """The thumbnails of all windows of `images` (n, 1, H, W), standardised: (n, windows, thumb²)."""
        _, thumb, stride, *_ = self.kind
        parts = [F.unfold(resized(images, (side, side)), thumb, stride=stride).mT for side in self.sides]
        return standardised(torch.cat(parts, dim=1).unflatten(2, (1, thumb, thumb)))


@torch.no_grad()
def nearest_windows(pieces: Tensor, kind: Kind, fetch: Fetch, count: int, kept: int) -> Matches:
    """The `kept` real images that are nearest to each of `pieces`, by the window of each that is nearest.

    Args:
        pieces: (Q, 1, p, p), of the kind.
        kind: Says where to look for them.
        fetch: Gives real images as `working` leaves them, on the device of the pieces, by rows on the CPU.
        count: Of the real images; each is fetched once, and the nearest ones again.
        kept: How many of them, up to 8; all where there are fewer.
    """
    size: tuple[int, int] = tuple(fetch(torch.zeros(1, dtype=torch.long)).shape[2:])
    grid = _Grid(kind, size)
    both = torch.stack([pieces, pieces.flip(-1)])  # (2, Q, 1, p, p)
    thumbs = standardised(resized(both.flatten(0, 1), (kind.thumb, kind.thumb)))
    part = max(1, min(len(thumbs), VALUES // len(grid.boxes)))
    block = max(1, min(256, VALUES // (len(grid.boxes) * part)))
    found: list[Tensor] = []
    for rows in torch.arange(count).split(block):
        windows = grid.windows(fetch(rows))
        products = [each @ windows.flatten(0, 1).T for each in thumbs.split(part)]
        best = [grid.best(each.unflatten(1, windows.shape[:2])) for each in products]
        similarity, place = (torch.cat(each).unflatten(0, (2, -1)) for each in zip(*best, strict=True))  # (2, Q, n, 2)
        mirrored = similarity[1] > similarity[0]
        place = torch.where(mirrored, place[1], place[0])
        numbers = rows.to(pieces.device)[:, None].expand_as(place)
        found = _best(found, [each.flatten(1) for each in (similarity.amax(0), numbers, place, mirrored)], CANDIDATES)
    _, rows, place, mirrored = found
    boxes = grid.boxes.to(place.device)[place]
    where = torch.arange(len(pieces), device=pieces.device)[:, None].expand_as(rows)
    targets, cutter, refined = standardised(both), _Cutter(size, kind.side, pieces.device), []
    pairs = (each.flatten(0, 1) for each in (where, rows, boxes, mirrored))
    for own, real, window, turned in zip(*(each.split(PAIRS) for each in pairs), strict=True):
        used, inverse = real.unique(return_inverse=True)
        refined.append(_refined(targets[turned.long(), own], fetch(used.cpu())[inverse], window, kind.scales, cutter))
    distances = distance(torch.cat([similarity for similarity, _ in refined])).unflatten(0, rows.shape)
    boxes = torch.cat([moved for _, moved in refined]).unflatten(0, rows.shape)
    distances, order = distances.sort(dim=1, stable=True)
    ordered = rows.gather(1, order)
    again = (ordered[:, :, None] == ordered[:, None]).tril(-1).any(2)  # another window of an image that is there
    first = again.int().argsort(dim=1, stable=True)[:, : min(kept, int((~again).sum(1).min()))]
    order = order.gather(1, first)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return Matches(distances.gather(1, first), rows.gather(1, order), boxes, mirrored.gather(1, order))


class _Cutter:
    """What cuts windows out of images of one size, and resizes them to one side: a matrix for each place and length."""

    def __init__(self, size: tuple[int, int], side: int, device: torch.device) -> None:
        self.tables = []
        for full in size:
            first, length = torch.meshgrid(torch.arange(full), torch.arange(1, full + 1), indexing="ij")
            matrices = shrinking(first.flatten(), length.flatten(), full, side)
            self.tables.append(matrices.unflatten(0, (full, full)).to(device))

    def __call__(self, images: Tensor, corners: Tensor, sizes: Tensor) -> Tensor:
        """Windows at m places down and m across, of s sizes: (n, s, m, m, p, p).

        Args:
            images: (n, 1, H, W).
            corners: (n, s, m, 2), of which each place down goes with each across.
            sizes: (n, s, m, 2).
        """
        down, across = (
            table[first, length - 1]  # (n, s, m, p, H or W)
            for table, first, length in zip(self.tables, corners.unbind(-1), sizes.unbind(-1), strict=True)
        )
        many, (places, side) = down.shape[:2], down.shape[2:4]
        lines = (down.flatten(1, 3) @ images[:, 0]).unflatten(1, (many[1], places * side))
        windows = lines @ across.flatten(2, 3).mT  # (n, s, m p, m p)
        return windows.unflatten(3, (places, side)).unflatten(2, (places, side)).transpose(3, 4)


def _refined(targets: Tensor, images: Tensor, boxes: Tensor, scales: bool, cutter: _Cutter) -> tuple[Tensor, Tensor]:
    """The similarity (n,) of each target with the best window near by, and that window (n, 4).

    Windows move, and with `scales` grow and shrink too, by an eighth of their size, then by half as much, down to a
    pixel.

    Args:
        targets: (n, D) unit vectors of pieces.
        images: (n, 1, H, W).
        boxes: (n, 4) to begin at.
        scales: See above.
        cutter: For these images, and the side of the pieces.
    """
    limits = torch.tensor(images.shape[2:], device=boxes.device)
    least = limits.clamp(max=LEAST)
    steps = torch.tensor([0, -1, 1], device=boxes.device)
    first = (boxes[:, 2:].amin(1) // 8).clamp(min=1)
    best = torch.zeros(len(boxes), device=boxes.device)
    halvings = int(first.max()).bit_length()
    for halving in (*range(halvings), halvings):
        by = (first >> halving).clamp(min=1)[:, None, None] * steps[:, None]  # (n, 3, 1)
        grown = (by[:, : 3 if scales else 1] * limits / limits.amin()).round().long()
        sizes = (boxes[:, None, 2:] + grown).maximum(least).minimum(limits)[:, :, None].expand(-1, -1, 3, -1)
        corners = boxes[:, None, None, :2] - (sizes - boxes[:, None, None, 2:]) // 2 + by[:, None]  # (n, sizes, 3, 2)
        corners = corners.clamp(min=0).minimum(limits - sizes)
        windows = cutter(images, corners, sizes)  # (n, sizes, 3, 3, p, p), by place down and across
        best, place = (standardised(windows.flatten(1, 3)[:, :, None]) @ targets[..., None])[..., 0].max(1)
        size, down, across = place // 9, place // 3 % 3, place % 3
        every = torch.arange(len(boxes), device=boxes.device)
        top, left = corners[every, size, down, 0], corners[every, size, across, 1]
        boxes = torch.stack([top, left, *sizes[every, size, 0].unbind(1)], dim=1)
    return best, boxes


@torch.no_grad()
def nearest_features(features: Tensor, blocks: Iterator[tuple[Tensor, Tensor]], kept: int) -> Matches:
    """The `kept` real images that are nearest to each of Q by their features; the boxes are empty.

    Args:
        features: (2, Q, D), of the images, and of them mirrored; they are compared as unit vectors.
        blocks: Rows (n,) and features (n, D) of all real images, part by part.
        kept: How many of them; all where there are fewer.
    """
    own = F.normalize(features, dim=-1)
    found: list[Tensor] = []
    for rows, real in blocks:
        similarity = own @ F.normalize(real, dim=-1).T  # (2, Q, n)
        numbers = rows.to(similarity.device).expand(similarity.shape[1:])
        found = _best(found, [similarity.amax(0), numbers, similarity[1] > similarity[0]], kept)
    similarity, rows, mirrored = found
    return Matches(distance(similarity), rows, rows.new_zeros((*rows.shape, 4)), mirrored)
