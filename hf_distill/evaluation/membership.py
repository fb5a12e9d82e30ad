"""Membership inference: can students of a set tell the images that it was made of from those that were held out?

The likelihood ratio attack of Carlini et al., "Membership Inference Attacks From First Principles" (S&P 2022), in its
offline form with one variance for all images: how much more confident the students in question are of an image than
others that never saw it, which takes the difficulty of the image out of it,

    φ(x) = log p_y / (1 − p_y)        Λ(x) = mean over students φ(x) − mean over references without x φ(x)

and the area under the curve of Λ, which is the chance that an image that was held in gets more than one that was not.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..hub.checks import is_number

__all__ = ["Auc", "are_confidences", "auc", "confidence", "excess"]

Z = 1.959964  # of a 95 % interval


class Auc(NamedTuple):
    """An area under a curve in [0, 1], and its 95 % interval."""

    value: float
    low: float
    high: float


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """φ (n,) of logits (n, K) for the classes (n,): the logarithm of the odds of the right one."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf)
    return own[:, 0] - others.logsumexp(1)


def excess(confidences: Tensor, references: Tensor, seen: Tensor) -> Tensor:
    """Λ (n,): confidences (n,) without the mean of the references (R, n) that have not `seen` (R, n) the image.

    NaN where all of them have.
    """
    unseen = ~seen
    return confidences - (references * unseen).sum(0) / unseen.sum(0)


def auc(inside: Tensor, outside: Tensor) -> Auc:
    """The area under the curve by which scores (m,) of the one kind are told from those (n,) of the other.

    The interval is that of DeLong et al. (1988), from the places of each score among the others; ties count half. Where
    all pairs end alike, as where nothing overlaps, it has no width, and the exact bound of a binomial takes its place:
    min(m, n) pairs share no score, and all of them end so with a chance of 2.5 % at most unless one does with more than
    q = 0.025^(1 / min(m, n)).
    """
    inside, outside = inside.double(), outside.double()
    above = _share_below(inside, outside)  # (m,): of each, the share of the other kind that it is above
    below = 1 - _share_below(outside, inside)
    value = float(above.mean())
    variance = sum(float(each.var()) / len(each) for each in (above, below) if len(each) > 1)
    if not variance:
        q = 0.025 ** (1 / min(len(inside), len(outside)))
        return Auc(value, q * value, q * value + 1 - q)
    reach = Z * math.sqrt(variance)
    return Auc(value, max(0.0, value - reach), min(1.0, value + reach))


def _share_below(scores: Tensor, others: Tensor) -> Tensor:
    """For each score the share of the `others` that are below it; those that equal it count half."""
    ordered = others.sort().values
    ends = [torch.searchsorted(ordered, scores, right=right) for right in (False, True)]
    return (ends[0] + ends[1]).double() / (2 * len(others))


def are_confidences(value: object, count: int) -> bool:
    """True for what may be `count` confidences, as JSON types."""
    return isinstance(value, list) and len(value) == count and all(map(is_number, value))
