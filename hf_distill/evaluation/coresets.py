"""Subsets of real images to compare a distilled set with: all as many images of each class as the set has.

    random      drawn anew for each student
    herding     the mean of those taken stays nearest to the mean of the class
    k-center    each the farthest from its nearest among those taken
    centroid    the nearest to the mean of the class
    neighbour   of each distilled image the nearest; two may have the same
    el2n        the highest error ‖softmax − onehot‖₂ early in training (Paul et al., arXiv:2107.07075)
    forgetting  learned and forgotten most often (Toneva et al., arXiv:1812.05159)
    ccs         evenly from all degrees of difficulty, without the hardest (Zheng et al., arXiv:2210.15809)
    bps         the centres and the uncertain of clusters of features: like BPS, whose clusters are found otherwise

Images are compared within their class, for the set is balanced; the papers of el2n, forgetting and ccs rank all images
together. They prune a part of many images, where the hard ones are worth most: of few, easier ones teach more, which is
why ccs drops the hardest. What the scores are read from is in `difficulty`.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.feed import TEST_BATCH, Pool, upload
from ..data.images import RealImages
from ..networks.batches import images_at_once
from ..networks.probes import Probe
from ..rng import derive_seed, generator
from .difficulty import Difficulty, el2n, entropy

# Compare images by features; the others but random by scores.
COMPARING = ("herding", "k-center", "centroid", "neighbour", "bps")
DROPPED, STRATA = 0.3, 50  # β and k of CCS: those of its paper where it prunes most, 90 % of CIFAR-10


# Of one class


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


def centroid(features: Tensor, n: int) -> Tensor:
    """Rows (n,) of `features` (M, D), those that are nearest to the mean, the nearest first."""
    features = features.double()
    return highest(-(features - features.mean(dim=0)).square().sum(dim=1), n)


def neighbours(features: Tensor, own: Tensor) -> Tensor:
    """For each of `own` (n, D) the nearest row of `features` (M, D), (n,)."""
    features, own = features.double(), own.double()
    return (features.square().sum(dim=1) - 2 * own @ features.T).argmin(dim=1)  # ‖own‖² is the same for all


def highest(scores: Tensor, n: int) -> Tensor:
    """Rows (n,) of the highest `scores` (M,), the highest first, and of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:n]


def ccs(hardness: Tensor, n: int, draw: torch.Generator, dropped: float = DROPPED, strata: int = STRATA) -> Tensor:
    """Rows (n,) drawn evenly from all degrees of difficulty but the highest: Algorithm 1 of arXiv:2210.15809.

    The hardest ⌊β M⌋ are dropped, or fewer where n must be left. The range of the others is cut into strata of one
    width. From the smallest stratum to the largest, each gives its even share ⌊n' / strata left⌋ of the n' that are
    still to be drawn, or all that it has.

    Args:
        hardness: (M,), on the CPU.
        n: At most M.
        draw: What is drawn from within a stratum.
        dropped: β.
        strata: How many, of which those without images give nothing.
    """
    order = hardness.argsort(stable=True)  # the hardest last
    kept = order[: max(n, len(order) - int(dropped * len(order)))]
    scores = hardness[kept].double()
    low, width = scores.min(), (scores.max() - scores.min()) / strata
    where = ((scores - low) / width).long().clamp(max=strata - 1) if width > 0 else torch.zeros_like(kept)
    bins = [members for stratum in range(strata) if len(members := kept[where == stratum])]
    taken = []
    for left, members in zip(range(len(bins), 0, -1), sorted(bins, key=len), strict=True):
        share = min(len(members), (n - sum(map(len, taken))) // left)
        taken.append(members[torch.randperm(len(members), generator=draw)[:share]])
    return torch.cat(taken)


def bps(features: Tensor, entropies: Tensor, n: int, seed: int) -> Tensor:
    """Rows (n,) that are central in clusters of `features`, or uncertain there, half and half.

    ⌈√n⌉ clusters of directions by k-means. Each gives its part of n, rounded down; the rest is taken from the largest,
    one each. Of that, the first half, rounded up, is nearest to the mean direction of the cluster, and the second has
    the highest entropies of the others. BPS itself trains an encoder for its clusters, and Infomap counts them.

    Args:
        features: (M, D).
        entropies: (M,), of a teacher's guesses.
        n: At most M, from 1.
        seed: Of k-means.
    """
    from sklearn.cluster import KMeans  # here, for it takes a second to import

    directions, entropies = F.normalize(features.double().flatten(1), dim=1).cpu(), entropies.cpu()
    count = min(math.ceil(math.sqrt(n)), len(directions.unique(dim=0)))  # equal images are one point
    kmeans = KMeans(count, n_init=4, random_state=seed % 2**32)
    clusters = torch.from_numpy(kmeans.fit_predict(directions.numpy())).long()
    sizes = clusters.bincount(minlength=count)
    budgets = n * sizes // len(directions)
    budgets[highest(sizes, n - int(budgets.sum()))] += 1
    taken = []
    for cluster, budget in enumerate(budgets.tolist()):
        members = (clusters == cluster).nonzero().flatten()
        near = members[highest(directions[members] @ directions[members].mean(dim=0), (budget + 1) // 2)]
        others = members[~torch.isin(members, near)]
        taken += [near, others[highest(entropies[others], budget // 2)]]
    return torch.cat(taken)


# Of all classes


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
    look: Callable[[Tensor], tuple[Tensor, Tensor]] | Probe | None,
    *,
    own: tuple[Pool, Tensor] | None = None,
    difficulty: Difficulty | None = None,
    seed: int = 0,
    classes: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Rows of `real` that all baselines but random take, class by class.

    All are chosen in one pass over the images, of which the features of one class are held at a time.

    Args:
        real: The images.
        pool: The same images, on the device.
        counts: How many of each class.
        names: Of the baselines.
        look: Gives the features (n, D) and the logits (n, K) of images (n, C, H, W) as networks see them; a probe has
            looked at all of `pool` before. None compares pixels, and knows neither bps nor, without `difficulty`, el2n
            and ccs.
        own: The distilled images, whose neighbours are taken where that is asked for, and their classes on the CPU.
        difficulty: Scores of the images; without it el2n and ccs go by the errors of `look`.
        seed: Of what is drawn.
        classes: Those to look at; all if not given.
    """
    if not names:
        return {}
    looks = difficulty is None or any(name in COMPARING for name in names)
    size = TEST_BATCH if look is None or isinstance(look, Probe) or not looks else images_at_once(look, pool)
    chosen: dict[str, list[Tensor]] = {name: [torch.empty(0, dtype=torch.long)] for name in names}
    for label in range(len(counts)) if classes is None else classes:
        n, rows = counts[label], real.class_rows(label)
        if not n:
            continue
        features, logits = _seen(pool, rows.split(size), look) if looks else (rows, None)
        for name in names:
            if name == "herding":
                picked = herding(features, n)
            elif name == "k-center":
                picked = k_center(features, n, int((features - features.mean(dim=0)).square().sum(dim=1).argmin()))
            elif name == "centroid":
                picked = centroid(features, n)
            elif name == "neighbour":
                if own is None:
                    raise ValueError("neighbours are asked for, and of no images; give the distilled ones (own)")
                mine = (own[1] == label).nonzero().flatten()
                picked = neighbours(features, _seen(own[0], mine.split(size), look)[0])
            elif name == "bps":
                picked = bps(features, entropy(logits), n, derive_seed(seed, "bps", label))
            else:
                if difficulty is None:
                    hardness = el2n(logits, upload(pool.labels.new_full((len(rows),), label), logits.device)).cpu()
                else:
                    hardness = difficulty.hardness(name)[rows]
                draw = generator(seed, "ccs", label)
                picked = ccs(hardness, n, draw) if name == "ccs" else highest(hardness, n)
            chosen[name].append(rows[picked.cpu()])
    return {name: torch.cat(rows) for name, rows in chosen.items()}


def _seen(
    pool: Pool, parts: Sequence[Tensor], look: Callable[[Tensor], tuple[Tensor, Tensor]] | Probe | None
) -> tuple[Tensor, Tensor | None]:
    """The features (M, D) of images, and their logits (M, K); the pixels of images, and None, without a `look`."""
    if isinstance(look, Probe):
        features = look.spec.features(pool)[upload(torch.cat([*parts]), pool.device)]
        return features, look.head(features)
    images = (images for _, images in pool.each(parts))
    if look is None:
        return torch.cat([part.flatten(1) for part in images]), None
    features, logits = zip(*map(look, images), strict=True)
    return torch.cat(features).flatten(1), torch.cat(logits)
