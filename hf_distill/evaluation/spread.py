"""How much of the real images a set covers, and how different its own images are: by features, (n, D) each.

Coverage is that of Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models" (ICML 2020); diversity
the score of Friedman and Dieng, "The Vendi Score" (TMLR 2023), with the cosine of features as the kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["coverage", "vendi_score"]

NEIGHBOURS = 5


def coverage(real: Tensor, images: Tensor) -> float:
    """The share of `real` images that have one of `images` nearer than their fifth nearest real neighbour.

    Args:
        real: (n, D), of which n is at least 2.
        images: (m, D).
    """
    real, images = real.double(), images.double()
    near = torch.cdist(real, real).topk(min(NEIGHBOURS + 1, len(real)), largest=False).values  # each is its own nearest
    return float((torch.cdist(real, images).amin(1) <= near[:, -1]).double().mean())


def vendi_score(images: Tensor) -> float:
    """How many different images these (m, D) are worth, from 1 where all are alike to m."""
    unit = F.normalize(images.double(), dim=1)
    shares = torch.linalg.eigvalsh(unit @ unit.T / len(unit)).clamp(min=0)
    return float(torch.special.entr(shares).sum().exp())
