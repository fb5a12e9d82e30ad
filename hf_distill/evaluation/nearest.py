"""The real images that are nearest to pieces of others: their windows at any place and scale, mirrored or not.

The distance of a piece a and a window b, both resized to p × p pixels, is that of the unit vectors that are left of
them without their means, whatever the brightness and the contrast:

    d(a, b) = ‖ã − b̃‖ = √(2 − 2 r)        r = ⟨ã, b̃⟩, their correlation        0 ≤ d ≤ 2

A search has two steps. The first compares each piece with windows of all real images on a grid, as thumbnails in
gray: one pass, block by block, whose products are nearly all of its cost. The second moves the windows of the few best
images pixel by pixel, in colour.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..augmentation.crops import edges
from ..data.precision import without_autocast
from ..data.resampling import resized, shrinking

__all__ = [
    "Kind",
    "Matches",
    "cut",
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
CANDIDATES = 12  # images for each piece that the first step leaves

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
        """The pieces of n `working` images, one image after another: (n pieces, C, side, side)."""
        return cut(images, self.boxes.to(images.device).expand(len(images), -1, -1), self.side).flatten(0, 1)


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
    """Pixels (n, C, H, W) as they are compared: float32, with sides of 64 pixels at most."""
    height, width = images.shape[2:]
    scale = min(1.0, LARGEST / max(height, width))
    if scale == 1:
        return images.float()
    return resized(images.float(), (max(1, round(scale * height)), max(1, round(scale * width))))


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


@without_autocast
def cut(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The boxes (n, m, 4) of `images` (n, C, H, W), each resized to `side` x `side`: (n, m, C, side, side)."""
    down, across = _cutting(boxes[..., :2], boxes[..., 2:], images, side)
    return down @ images[:, None] @ across


def _cutting(corners: Tensor, sizes: Tensor, images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What cuts windows (n, m, 2) out of images, from the left (n, m, 1, side, H) and the right (n, m, 1, W, side)."""
    many, places = corners.shape[:2], zip(corners.unbind(-1), sizes.unbind(-1), images.shape[2:], strict=True)
    down, across = (
        shrinking(first.flatten(), length.flatten(), full, side).unflatten(0, many)[:, :, None]
        for first, length, full in places
    )
    return down, across.mT


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
        self.boxes = (torch.cat(boxes) * torch.tensor([height, width, height, width])).round().long()

    def windows(self, images: Tensor) -> Tensor:
        """The thumbnails of all windows of `images` (n, C, H, W), standardised: (n, windows, thumb²)."""
        gray, (_, thumb, stride, *_) = images.mean(1, keepdim=True), self.kind
        parts = [F.unfold(resized(gray, (side, side)), thumb, stride=stride).mT for side in self.sides]
        return standardised(torch.cat(parts, dim=1).unflatten(2, (1, thumb, thumb)))


@torch.no_grad()
def nearest_windows(pieces: Tensor, kind: Kind, fetch: Fetch, count: int, kept: int) -> Matches:
    """The `kept` real images that are nearest to each of `pieces`, by the window of each that is nearest.

    Args:
        pieces: (Q, C, p, p), of the kind.
        kind: Says where to look for them.
        fetch: Gives real images as `working` leaves them, on the device of the pieces, by rows on the CPU.
        count: Of the real images; each is fetched once, and the nearest ones again.
        kept: How many of them, up to 12; all where there are fewer.
    """
    size: tuple[int, int] = tuple(fetch(torch.zeros(1, dtype=torch.long)).shape[2:])
    grid = _Grid(kind, size)
    both = torch.stack([pieces, pieces.flip(-1)])  # (2, Q, C, p, p)
    thumbs = standardised(resized(both.flatten(0, 1).mean(1, keepdim=True), (kind.thumb, kind.thumb)))
    part = max(1, min(len(thumbs), VALUES // len(grid.boxes)))
    block = max(1, min(256, VALUES // (len(grid.boxes) * part)))
    found: list[Tensor] = []
    for rows in torch.arange(count).split(block):
        windows = grid.windows(fetch(rows))
        products = [each @ windows.flatten(0, 1).T for each in thumbs.split(part)]
        best = [each.unflatten(1, windows.shape[:2]).max(2) for each in products]
        similarity = torch.cat([each.values for each in best]).unflatten(0, (2, -1))  # (2, Q, n)
        place = torch.cat([each.indices for each in best]).unflatten(0, (2, -1))
        mirrored = similarity[1] > similarity[0]
        place = torch.where(mirrored, place[1], place[0])
        numbers = rows.to(pieces.device).expand(len(pieces), -1)
        found = _best(found, [similarity.amax(0), numbers, place, mirrored], CANDIDATES)
    _, rows, place, mirrored = found
    boxes = grid.boxes.to(place.device)[place]
    where = torch.arange(len(pieces), device=pieces.device)[:, None].expand_as(rows)
    targets, refined = standardised(both), []
    pairs = (each.flatten(0, 1) for each in (where, rows, boxes, mirrored))
    for own, real, window, turned in zip(*(each.split(PAIRS) for each in pairs), strict=True):
        used, inverse = real.unique(return_inverse=True)
        refined.append(_refined(targets[turned.long(), own], fetch(used.cpu())[inverse], window, kind))
    distances = distance(torch.cat([similarity for similarity, _ in refined])).unflatten(0, rows.shape)
    boxes = torch.cat([moved for _, moved in refined]).unflatten(0, rows.shape)
    distances, order = distances.sort(dim=1, stable=True)
    order = order[:, :kept]
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return Matches(distances[:, :kept], rows.gather(1, order), boxes, mirrored.gather(1, order))


def _refined(targets: Tensor, images: Tensor, boxes: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """The similarity (n,) of each target with the best window near by, and that window (n, 4).

    Windows move, and where the kind says so grow and shrink, by an eighth of their size, then by half as much, down to
    a pixel.

    Args:
        targets: (n, D) unit vectors of pieces.
        images: (n, C, H, W).
        boxes: (n, 4) to begin at.
        kind: Of the pieces.
    """
    limits = torch.tensor(images.shape[2:], device=boxes.device)
    least = limits.clamp(max=LEAST)
    steps = torch.tensor([0, -1, 1], device=boxes.device)
    first = (boxes[:, 2:].amin(1) // 8).clamp(min=1)
    best = torch.zeros(len(boxes), device=boxes.device)
    halvings = int(first.max()).bit_length()
    for halving in (*range(halvings), halvings):
        by = (first >> halving).clamp(min=1)[:, None, None] * steps[:, None]  # (n, 3, 1)
        corners = (boxes[:, None, :2] + by).clamp(min=0).minimum(limits - boxes[:, None, 2:])
        down, across = _cutting(corners, boxes[:, None, 2:].expand(-1, 3, -1), images, kind.side)
        tall = down @ images[:, None]  # (n, 3, C, p, W)
        windows = tall[:, :, None] @ across[:, None]  # (n, 3, 3, C, p, p)
        best, place = (standardised(windows).flatten(1, 2) * targets[:, None]).sum(2).max(1)
        chosen = torch.stack([place // 3, place % 3], dim=1)[:, None]
        boxes = torch.cat([corners.gather(1, chosen)[:, 0], boxes[:, 2:]], dim=1)
        if kind.scales:
            grown = (by * limits / limits.amin()).round().long()
            sizes = (boxes[:, None, 2:] + grown).maximum(least).minimum(limits)  # (n, 3, 2)
            corners = boxes[:, None, :2] - (sizes - boxes[:, None, 2:]) // 2
            corners = corners.clamp(min=0).minimum(limits - sizes)
            down, across = _cutting(corners, sizes, images, kind.side)
            windows = down @ images[:, None] @ across
            best, place = (standardised(windows) * targets[:, None]).sum(2).max(1)
            boxes = torch.cat([corners, sizes], dim=2).gather(1, place[:, None, None].expand(-1, -1, 4))[:, 0]
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
