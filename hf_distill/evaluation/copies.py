"""Which distilled images are copies: nearer to a real image than real images, which the set never saw, are to others.

What counts is how near the nearest training image is beside the next ones, t = d₁ / mean(d₂ … d₆): a copy has one
source, while what is blurred or flat is near to many. Held-out real images, cut and searched for in the same way, give
the t of images that are no copies. The p-value of t among n of them is conformal, exact where a distilled image might
as well be a held-out one:

    p = (1 + #{i: tᵢ ≤ t}) / (n + 1)

Below all of them it goes on along the tail, which for nearest neighbours is a power law (its exponent is the local
intrinsic dimension): with the k + 1 smallest, t₍₁₎ … t₍ₖ₎ < u, the log(u / t₍ᵢ₎) are exponential with a sum S, and a
new one exceeds x = log(u / t) with the chance (1 + x / S)⁻ᵏ. An image has several kinds of distance, and a set many
images: each p-value is multiplied by both numbers (Bonferroni), so that of sets without a copy `LEVEL` at most raise an
alarm.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..augmentation.crops import CROP_DRAWS, MIN_SCALE, draw_crops, uniform
from ..augmentation.shrinking import take_crops
from ..data.upload import upload
from ..rng import derive_seed
from .nearest import Fetch, Kind, Matches, kinds_for, nearest_features, nearest_windows, working

__all__ = ["KEPT", "LEVEL", "Copies", "Found", "find_copies", "mosaics", "rarity"]

LEVEL = 0.01  # share of sets without a copy that raise an alarm, at most
KEPT = 6  # nearest real images of each piece
TAIL, LEAST_TAIL = 10, 10  # the tail is a tenth of the held-out images, and so many at least
AT_ONCE = 256  # images that are made ready together
SMALLEST = 1e-4  # of t: what is nearer is as near


def rarity(values: Tensor, null: Tensor) -> Tensor:
    """The p-values (m,) float64 of `values` (m,): how rarely one as small comes among those of `null` (n,).

    They are in (0, 1]; n is at least 2.
    """
    values, null = (each.double().clamp(min=SMALLEST) for each in (values, null))
    n, ordered = len(null), null.sort().values
    exact = (1 + torch.searchsorted(ordered, values, right=True)) / (n + 1)
    k = min(n - 1, max(LEAST_TAIL, n // TAIL))
    spread = torch.log(ordered[k] / ordered[:k]).sum().clamp(min=1e-9)
    tail = (k + 1) / (n + 1) * (1 + torch.log(ordered[k] / values).clamp(min=0) / spread) ** -k
    return torch.where(values < ordered[0], tail.clamp(max=1 / (n + 1)), exact)


@dataclass(frozen=True)
class Found:
    """What a search of one kind found for m distilled and n held-out images of P pieces each.

    Attributes:
        kind: Where was searched; None for features.
        nearness: (m, P) of t.
        distances: (m, P, k) to the nearest training images, nearest first.
        rows: (m, P, k) of these.
        boxes: (m, P, k, 4), their windows in pixels of `working` images; all of them for features.
        mirrored: (m, P, k).
        held_out_nearness: (n, P).
        held_out_distances: (n, P), to the nearest.
    """

    kind: Kind | None
    nearness: Tensor
    distances: Tensor
    rows: Tensor
    boxes: Tensor
    mirrored: Tensor
    held_out_nearness: Tensor
    held_out_distances: Tensor

    def rarity(self) -> Tensor:
        """The p-value of each piece (m, P), among the rarest pieces of held-out images."""
        null = self.held_out_nearness.amin(1)
        return rarity(self.nearness.flatten(), null).unflatten(0, self.nearness.shape)


@dataclass(frozen=True)
class Copies:
    """What all searches found, by kind.

    Attributes:
        found: By kind.
        p_values: (m,) of the distilled images, for all kinds together.
    """

    found: dict[str, Found]
    p_values: Tensor

    @property
    def threshold(self) -> float:
        """The p-value of an image up to which it is a copy."""
        return LEVEL / len(self.p_values)

    @property
    def images(self) -> list[int]:
        """The images that are copies, ascending."""
        return torch.nonzero(self.p_values <= self.threshold).flatten().tolist()

    def rarest(self, image: int) -> tuple[str, int]:
        """The kind and the number of the piece of an image that is the rarest."""
        best = {name: found.rarity()[image].min(0) for name, found in self.found.items()}
        name = min(best, key=lambda name: float(best[name].values))
        return name, int(best[name].indices)

    def pieces(self, kind: str) -> Tensor:
        """Which pieces (m, P) of one kind are copies."""
        return len(self.found) * self.found[kind].rarity() <= self.threshold


def mosaics(pixels: Tensor, factor: int, seed: int) -> Tensor:
    """Images (n, C, H, W) of `factor` x `factor` random crops of as many others, made of n images, all uint8."""
    if factor == 1:
        return pixels
    count, (height, width) = len(pixels), pixels.shape[2:]
    rows, ratio = torch.arange(count), (width / height, width / height)
    lines = []
    for row in range(factor):
        line = []
        for column in range(factor):
            number = row * factor + column
            u = uniform(derive_seed(seed, "mosaics"), (number,), rows, CROP_DRAWS)
            boxes = draw_crops(u, (height, width), (MIN_SCALE, 1.0), ratio, flip=0.0).boxes
            size = tuple(side // factor + (place < side % factor) for side, place in ((height, row), (width, column)))
            line.append(take_crops(pixels.roll(number, 0), boxes, size))
        lines.append(torch.cat(line, dim=3))
    return torch.cat(lines, dim=2)


def find_copies(
    distilled: Tensor,
    held_out: Tensor,
    fetch: Fetch,
    count: int,
    factor: int,
    seed: int,
    device: torch.device | str = "cpu",
    features: tuple[Tensor, Tensor, Iterator[tuple[Tensor, Tensor]]] | None = None,
) -> Copies:
    """The nearest training images of distilled ones by all kinds of pieces, and how rare it is to be as near.

    Args:
        distilled: (m, C, H, W) uint8.
        held_out: (n, C, H, W) uint8. Of a factor above 1, tiles are measured by those of mosaics of them.
        fetch: Gives training images (n, C, H, W) uint8 by rows, on the CPU.
        count: Of the training images; two at least.
        factor: Tiles along a side of a distilled image.
        seed: Draws the mosaics.
        device: Where to search.
        features: Those of the distilled and of the held-out images, each (views, m or n, D), and those of all
            training images, part by part: rows (b,) and features (b, D).
    """
    m = len(distilled)

    def look(pixels: Tensor) -> Tensor:
        return torch.cat([working(upload(part, device)) for part in pixels.split(AT_ONCE)])

    own, whole, tiled = look(distilled), look(held_out), look(mosaics(held_out, factor, seed))
    found = {}
    for name, kind in kinds_for((own.shape[2], own.shape[3]), factor).items():
        pieces = kind.pieces(torch.cat([own, tiled if name == "tiles" else whole]))
        matches = nearest_windows(pieces, kind, lambda rows: look(fetch(rows)), count, KEPT)
        found[name] = _found(kind, m, matches)
    if features is not None:
        mine, others, blocks = features
        found["features"] = _found(None, m, nearest_features(torch.cat([mine, others], dim=1), blocks, KEPT))
    rarest = torch.stack([each.rarity().amin(1) for each in found.values()])
    return Copies(found, (len(found) * rarest.amin(0)).clamp(max=1))


def _found(kind: Kind | None, m: int, matches: Matches) -> Found:
    """What was found for m distilled images and the held-out ones behind them, which have as many pieces each."""
    pieces = 1 if kind is None else len(kind.boxes)
    distances, rows, boxes, mirrored = (each.cpu().unflatten(0, (-1, pieces)) for each in matches)
    nearness = distances[..., 0] / distances[..., 1:].mean(2).clamp(min=SMALLEST)
    mine = (each[:m] for each in (nearness, distances, rows, boxes, mirrored))
    return Found(kind, *mine, held_out_nearness=nearness[m:], held_out_distances=distances[m:, :, 0])
