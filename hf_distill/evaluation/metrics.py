"""The metrics of the reports, as modules of `evaluate`, which need no network for them.

Importing `evaluate` takes seconds; whoever uses these imports them when there is something to measure.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike

from ..hub.scores import augmentation_robust_score, label_robust_score

__all__ = ["Accuracy", "AugmentationRobustScore", "LabelRobustScore", "TopKAccuracy"]


class _Metric(evaluate.Metric):
    """A metric that needs no folder where it is kept in memory."""

    def _build_data_dir(self) -> str:
        # `evaluate` makes a folder for the files of its modules. What is kept in memory has no files, and must work
        # where nothing can be written.
        return self._data_dir_root if self.keep_in_memory else super()._build_data_dir()


class _HitRate(_Metric):
    """The share of images whose class is among those that are guessed of them."""

    def _describe(self, rule: str, predictions: str, kind: datasets.Value | datasets.List) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"The share of images, in [0, 1], {rule}.",
            citation="",
            inputs_description=f"predictions: {predictions}; references: classes (N,).",
            features=datasets.Features({"predictions": kind, "references": datasets.Value("int64")}),
        )

    def _compute(self, *, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        guesses = np.asarray(predictions).reshape(len(references), -1)  # (N, k)
        hits = (guesses == np.asarray(references)[:, None]).any(axis=1)
        return {"accuracy": int(hits.sum()) / len(hits)}


class Accuracy(_HitRate):
    """The share of images, in [0, 1], whose predicted class is theirs.

    Example:
        >>> Accuracy(keep_in_memory=True).compute(predictions=[1, 0, 2, 2], references=[1, 0, 2, 0])
        {'accuracy': 0.75}
    """

    def _info(self) -> evaluate.MetricInfo:
        return self._describe("whose predicted class is theirs", "classes (N,)", datasets.Value("int64"))


class TopKAccuracy(_HitRate):
    """The share of images, in [0, 1], whose class is among the k that are guessed.

    Example:
        >>> TopKAccuracy(keep_in_memory=True).compute(predictions=[[1, 2], [0, 1]], references=[2, 2])
        {'accuracy': 0.5}
    """

    def _info(self) -> evaluate.MetricInfo:
        guesses = datasets.List(datasets.Value("int64"))
        return self._describe("whose class is among the k that are guessed", "k classes each, (N, k)", guesses)


class _Score(_Metric):
    """A score of the accuracies that students reach on several sets."""

    arms: tuple[str, ...]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(self.__doc__ or "").partition("\n")[0],
            citation="arXiv:2505.13300",
            inputs_description=f"{', '.join(self.arms)}: accuracies in [0, 1] by the number of the seed, (n,) each.",
            features=datasets.Features({arm: datasets.Value("float64") for arm in self.arms}),
        )


class LabelRobustScore(_Score):
    """The label robust score by seed, as `hub.scores.label_robust_score` gives it to a report.

    `compute` gives the `values` of the seeds with their `mean`, `std` (n - 1) and 95 % t-`interval`, the same of the
    `components` HLR and IOR, and takes `weight`, that of IOR. It raises a `ValueError` for percent.

    Example:
        >>> arms = {"full_hard": [0.8, 0.9], "distilled_hard": [0.6, 0.6], "distilled_own": [0.6, 0.6]}
        >>> score = LabelRobustScore(keep_in_memory=True).compute(**arms, random_own=[0.3, 0.4])
        >>> round(score["mean"], 3), round(score["components"]["HLR"]["mean"], 3)
        (0.269, 0.25)
    """

    arms = ("full_hard", "distilled_hard", "distilled_own", "random_own")

    def _compute(self, *, weight: float = 0.5, **arms: list[float]) -> dict[str, Any]:
        return label_robust_score(**arms, weight=weight).to_json()


class AugmentationRobustScore(_Score):
    """The augmentation robust score by seed, as `hub.scores.augmentation_robust_score` gives it to a report.

    `compute` gives and raises what that of `LabelRobustScore` does; its components are what is gained over random
    images `augmented` and `unaugmented`, and its `weight` is that of the former.
    """

    arms = ("distilled_augmented", "random_augmented", "distilled_unaugmented", "random_unaugmented")

    def _compute(self, *, weight: float = 0.5, **arms: list[float]) -> dict[str, Any]:
        return augmentation_robust_score(**arms, weight=weight).to_json()
