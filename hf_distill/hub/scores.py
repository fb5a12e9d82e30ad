"""The label robust score and the augmentation robust score of DD-Ranking (arXiv:2505.13300), of fractions and by seed.

    f(α) = (eᵅ - e⁻¹) / (e - e⁻¹), so that f(-1) = 0, f(0) = 0.2689 and f(1) = 1
    HLR  = full data, hard labels - distilled, hard labels        what hard labels do not recover; less is better
    IOR  = distilled, own labels - random images, such labels     what is gained over random images
    LRS  = f(w·IOR - (1-w)·HLR)
    ARS  = f(γ·(distilled - random, augmented) + (1-γ)·(distilled - random, without augmentation))

The definitions are those of DD-Ranking 0.2.0 (commit b8b09664). f is convex, so the score is the mean of f over seeds,
and not f of the mean. What its code gives is another number, which is why nothing here compares with the table that it
ships: it feeds percent into f, takes the best epoch and learning rate on the test images, draws its seeds from the
clock, searches a rate for random images and not for all distilled ones, and trains full data as long as the method's
set. Deviations are those of a sample here (n - 1), and theirs of a population.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .intervals import Sample

__all__ = ["ARS", "LRS", "NOT_COMPARABLE", "Score", "augmentation_robust_score", "label_robust_score", "squashed"]

LRS, ARS = "label robust score", "augmentation robust score"
NOT_COMPARABLE = (
    "definitions of DD-Ranking 0.2.0 (arXiv:2505.13300); not comparable with the table that it ships, whose code feeds "
    "percent into the exponential, chooses epochs and learning rates on the test images, tunes its arms unevenly and "
    "draws seeds from the clock"
)


def squashed(alpha: float) -> float:
    """f(α) in [0, 1], for α in [-1, 1]; a `ValueError` for another, such as one of percent."""
    if not -1 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected a number in [-1, 1], made of fractions and not of percent")
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


@dataclass(frozen=True)
class Score:
    """A score by seed, and what it was made of, for two very different sets can share one score.

    Attributes:
        name: `LRS` or `ARS`.
        values: f(α) of each seed.
        components: α is `weight` times one of them, and 1 - `weight` times the other: "IOR" and "HLR", which is taken
            off, or the gains over random images "augmented" and "unaugmented".
        weight: w or γ.
    """

    name: str
    values: Sample
    components: dict[str, Sample]
    weight: float

    def to_json(self) -> dict[str, Any]:
        """Name, weight, the values by seed with mean, std and interval, and the same of each component."""
        parts = {name: values.to_json() for name, values in self.components.items()}
        return {"name": self.name, "weight": self.weight, **self.values.to_json(), "components": parts}


def label_robust_score(
    full_hard: Sequence[float],
    distilled_hard: Sequence[float],
    distilled_own: Sequence[float],
    random_own: Sequence[float],
    weight: float = 0.5,
) -> Score:
    """The label robust score, from accuracies in [0, 1] by the number of the seed, as many of each arm.

    Example:
        >>> from hf_distill.hub.scores import label_robust_score
        >>> score = label_robust_score([0.85], [0.6], [0.6], [0.3])
        >>> round(score.values.mean, 4), round(score.components["HLR"].mean, 4)
        (0.2797, 0.25)

    Args:
        full_hard: On all real images, with hard labels.
        distilled_hard: On the distilled images with hard labels.
        distilled_own: On them with the method's labels, which may be hard.
        random_own: On as many random images, with labels of that kind.
        weight: w, of IOR.

    Raises:
        ValueError: A number is not in [0, 1], such as percent, or arms have different numbers of seeds.
    """
    arms = {
        "full_hard": full_hard,
        "distilled_hard": distilled_hard,
        "distilled_own": distilled_own,
        "random_own": random_own,
    }
    _check(arms, weight)
    lost, gained = _differences(full_hard, distilled_hard), _differences(distilled_own, random_own)
    values = [squashed(weight * ior - (1 - weight) * hlr) for ior, hlr in zip(gained, lost, strict=True)]
    return Score(LRS, Sample(tuple(values)), {"HLR": Sample(lost), "IOR": Sample(gained)}, weight)


def augmentation_robust_score(
    distilled_augmented: Sequence[float],
    random_augmented: Sequence[float],
    distilled_unaugmented: Sequence[float],
    random_unaugmented: Sequence[float],
    weight: float = 0.5,
) -> Score:
    """The augmentation robust score, from accuracies in [0, 1] by the number of the seed, as many of each arm.

    Args:
        distilled_augmented, random_augmented: With the method's labels, under its protocol.
        distilled_unaugmented, random_unaugmented: Under the same without augmentation.
        weight: γ, of what is gained under augmentation.

    Raises:
        ValueError: As `label_robust_score`.
    """
    arms = {
        "distilled_augmented": distilled_augmented,
        "random_augmented": random_augmented,
        "distilled_unaugmented": distilled_unaugmented,
        "random_unaugmented": random_unaugmented,
    }
    _check(arms, weight)
    augmented = _differences(distilled_augmented, random_augmented)
    unaugmented = _differences(distilled_unaugmented, random_unaugmented)
    values = [squashed(weight * one + (1 - weight) * two) for one, two in zip(augmented, unaugmented, strict=True)]
    parts = {"augmented": Sample(augmented), "unaugmented": Sample(unaugmented)}
    return Score(ARS, Sample(tuple(values)), parts, weight)


def _differences(one: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
    return tuple(a - b for a, b in zip(one, other, strict=True))


def _check(arms: Mapping[str, Sequence[float]], weight: float) -> None:
    for name, values in {**arms, "weight": [weight]}.items():
        if not hasattr(values, "__len__") or isinstance(values, str):
            raise ValueError(f"{name} is {values!r}; expected accuracies in a list, one for each seed")
        wrong = [value for value in values if not (isinstance(value, numbers.Real) and 0 <= value <= 1)]
        if wrong:
            raise ValueError(f"{name} has {wrong[0]}; expected fractions in [0, 1]: percent are to be divided by 100")
    counts = {name: len(values) for name, values in arms.items()}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"the arms of a score have {told} seeds; expected the same number of each, at least one")
