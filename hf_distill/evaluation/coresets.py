"""Subsets of real images to compare a distilled set with: random, herding and k-center."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..data.feed import TEST_BATCH, Pool
from ..data.images import RealImages
from ..networks.batches import images_at_once
from ..rng import generator


def herding(features: Tensor, n: int) -> Tensor:
    """Rows (n,) of `features` (M, D), one after another such that the mean of those taken stays nearest to the mean."""
    features = features.double()
    norms, mean = features.square().sum(dim=1), features.mean(dim=0)
    taken, total = [], torch.zeros_like(mean)
    for size in range(1, n + 1):
        # ‖(total + f)/size − mean‖² up to what all f share, times size²
        distances = norms - 2 * features @ (size * mean - total)
        distances[taken] = math.inf
        taken.append(int(distances.argmin()))
        total += features[taken[-1]]
    return torch.tensor(taken, dtype=torch.long)


def k_center(features: Tensor, n: int, first: int) -> Tensor:
    """Rows (n,) of `features` (M, D), from `first` on each the farthest from its nearest row among those taken."""
    features = features.double()
    taken, distances = [first], torch.full((len(features),), math.inf, dtype=torch.float64, device=features.device)
    while len(taken) < n:
        distances = torch.minimum(distances, (features - features[taken[-1]]).square().sum(dim=1))
        distances[taken] = -1  # also where images are equal
        taken.append(int(distances.argmax()))
    return torch.tensor(taken[:n], dtype=torch.long)


def random_rows(real: RealImages, counts: Sequence[int], seed: int, *path: int | str) -> Tensor:
    """Rows of `real`, class by class, as many of each as `counts` says, drawn from the stream (seed, path)."""
    stream = generator(seed, "random subset", *path)
    drawn = [torch.randperm(len(real.class_rows(label)), generator=stream)[:n] for label, n in enumerate(counts)]
    return torch.cat([real.class_rows(label)[rows] for label, rows in enumerate(drawn)])


@torch.no_grad()
def coresets(
    real: RealImages,
    pool: Pool,
    counts: Sequence[int],
    names: Sequence[str],
    features_of: Callable[[Tensor], Tensor] | None,
) -> dict[str, Tensor]:
    """Rows of `real` that herding and k-center take, class by class.

    Args:
        real: The images.
        pool: The same images, on the device.
        counts: How many of each class.
        names: Out of "herding" and "k-center".
        features_of: Gives what is compared, (n, D), of images (n, C, H, W) as networks see them; None compares pixels.
    """
    if not names:
        return {}
    size = TEST_BATCH if features_of is None else images_at_once(features_of, pool)
    chosen: dict[str, list[Tensor]] = {name: [] for name in names}
    for label, n in enumerate(counts):
        rows = real.class_rows(label)
        parts = (images for _, images in pool.each(rows.split(size)))
        features = torch.cat([(part if features_of is None else features_of(part)).flatten(1) for part in parts])
        for name in names:
            if name == "herding":
                picked = herding(features, n)
            else:
                picked = k_center(features, n, int((features - features.mean(dim=0)).square().sum(dim=1).argmin()))
            chosen[name].append(rows[picked])
    return {name: torch.cat(rows) for name, rows in chosen.items()}
