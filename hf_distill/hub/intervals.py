"""What the students of several seeds say of a mean: its interval, the verdict on a difference, the seeds that it takes.

The intervals are Student's, at 95 %, over seeds: over initialisations, orders, augmentations, and where a subset is
drawn anew for each seed over the draws. They answer what other students of the same set would reach on the same test
images. Neither the noise of the choice of test images is in them, for which a report would have to keep what each
student said of each image, nor another run of the distillation: a set is one of many that its method could have made.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import ndtri, stdtrit

__all__ = ["VERDICTS", "Difference", "Sample", "paired"]

LEVEL, POWER = 0.95, 0.8
EQUAL = 1e-9  # a spread below this is one of rounding: accuracies are counts of images over their number
VERDICTS = ("better", "no difference shown", "worse")


@dataclass(frozen=True)
class Sample:
    """Numbers of students, one for each seed.

    Example:
        >>> from hf_distill.hub.intervals import Sample
        >>> low, high = Sample((0.5, 0.6, 0.7)).interval
        >>> round(low, 4), round(high, 4)
        (0.3516, 0.8484)

    Attributes:
        values: At least one.
    """

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Standard deviation of the sample (n - 1); None for a single value."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % t-interval of the mean.

        None for a single value; and for values that are all equal, as where every student is right about everything:
        they do not tell how far others may be, and an interval without width would claim to be certain.
        """
        if self.std is None or self.std < EQUAL:
            return None
        half = float(stdtrit(self.n - 1, (1 + LEVEL) / 2)) * self.std / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    def to_json(self) -> dict[str, Any]:
        """Values, mean, std and interval as JSON types; null is what there is not."""
        interval = None if self.interval is None else list(self.interval)
        return {"values": list(self.values), "mean": self.mean, "std": self.std, "interval": interval}


@dataclass(frozen=True)
class Difference(Sample):
    """What each student of one set reaches less what that of the same number reaches on another."""

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`: better or worse where the interval is on one side of 0, and nothing shown without one."""
        low, high = self.interval or (0.0, 0.0)
        return VERDICTS[0] if low > 0 else VERDICTS[2] if high < 0 else VERDICTS[1]

    def seeds_for(self, difference: float = 0.01) -> int | None:
        """Seeds of a paired t-test that shows a true `difference` in four of five evaluations; None without interval.

        It is the least n ≥ ((t₀.₉₇₅ + t₀.₈) s / difference)², with quantiles for n - 1 degrees of freedom and s the
        standard deviation of these pairs; of few of them s is a rough guess, and so is n.
        """
        if self.std is None or self.std < EQUAL:
            return None
        ratio = (self.std / difference) ** 2
        n = max(2, math.floor(ratio * (ndtri((1 + LEVEL) / 2) + ndtri(POWER)) ** 2))  # a t-test takes no fewer
        while n < ratio * (stdtrit(n - 1, (1 + LEVEL) / 2) + stdtrit(n - 1, POWER)) ** 2:
            n += 1
        return n

    def to_json(self) -> dict[str, Any]:
        """As of any sample, with the verdict and the seeds for a hundredth."""
        return {**super().to_json(), "verdict": self.verdict, "seeds_for_one_point": self.seeds_for()}


def paired(one: Sequence[float], other: Sequence[float]) -> Difference:
    """The differences `one` - `other`, number by number, of the seeds that both have: the first ones.

    Args:
        one, other: Accuracies by the number of the seed, from 0.
    """
    return Difference(tuple(a - b for a, b in zip(one, other, strict=False)))
